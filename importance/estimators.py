"""From the activations of a batch to a number a channel: sums that grow batch by batch, and what becomes of them.

Shape letters: B sequences, T tokens, C channels, G groups of a norm.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Totals:
    """Named sums over batches, all that a calibration run keeps: their size follows from the model alone."""

    sums: dict[Hashable, Tensor] = field(default_factory=dict)
    """In float64, each on the device where its numbers arise."""

    def add(self, name: Hashable, amount: Tensor) -> None:
        """Add a batch's part to the sum `name`, which begins at zero."""
        amount = amount.double()
        self.sums[name] = self.sums[name] + amount if name in self.sums else amount

    def __getitem__(self, name: Hashable) -> Array:
        """The sum so far; raises KeyError where nothing was added."""
        return self.sums[name].cpu().numpy()


@dataclass
class Batch:
    """What a module deep in the model cannot see of the batch that passes."""

    sequences: int = 0
    """B; every layer is given [B, T, hidden], modules inside it may be given all tokens in one row."""


@dataclass(frozen=True)
class Estimator:
    """A way to judge channels by what passes through them."""

    statistic: Callable[[Tensor], Tensor]
    """Activations [B, T, C] -> [C]: what a batch adds to the sum."""

    finish: Callable[[Array], Array]
    """The sum over batches [C] -> the scores [C]."""


def mean_absolute_squares(activations: Tensor) -> Tensor:
    """[B, T, C] -> [C]: sum over sequences of (mean over the sequence of |a|)^2.

    The square root of its sum over all batches is A(c), Minitron's importance (Muralidharan et al. 2024, arXiv
    2407.14679, section 2.2: mean over the sequence, L2 over the batch, the best of nine aggregations)."""
    means = activations.abs().sum(1, dtype=wide(activations)) / activations.shape[1]
    return means.double().square().sum(0)


ESTIMATORS: Final[dict[str, Estimator]] = {
    "activation": Estimator(mean_absolute_squares, np.sqrt),
}


def energy_shares(states: Tensor, gate: Tensor | None, groups: int) -> Tensor:
    """[..., C] -> [C]: sum over tokens of x_c^2 / (mean of x^2 over c's group of channels), x the input of an RMS norm.

    x is `states` or, for a gated norm (Mamba-2), states * silu(gate).  Groups are equal runs of channels; a token whose
    group is all zeros counts as zero."""
    if gate is None:
        inputs = states.to(wide(states), copy=True)
    else:
        inputs = torch.nn.functional.silu(gate.to(wide(gate))).mul_(states)
    # In place, for these are the largest tensors that observing makes.
    squares = inputs.square_().reshape(-1, groups, states.shape[-1] // groups)
    means = squares.mean(-1).clamp_min_(torch.finfo(squares.dtype).tiny)
    return torch.einsum("tg,tgc->gc", means.reciprocal_(), squares).flatten()


def dissimilarity(before: Tensor, after: Tensor) -> Tensor:
    """[B, T, C] twice -> []: sum over tokens of 1 - cosine of what goes into a layer and what comes out.

    Block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853, equation 1)."""
    cosines = torch.cosine_similarity(before.to(wide(before)), after.to(wide(after)), dim=-1)
    return (1 - cosines).double().sum()


def wide(tensor: Tensor) -> torch.dtype:
    """The type to reckon in: fp32, or float64 for a tensor of that."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
