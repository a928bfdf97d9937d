"""Streaming sums over batches: all that a calibration run stores of activations.

Shape letters: B sequences, T tokens, C channels, G groups of a norm, R tokens routed to E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from importance.score.clock import Clock

# The estimators, which the command line lists, build on this: torch is imported where it is used.
if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Array: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Totals:
    """Named sums over batches, all that a calibration run keeps: their size follows from the model alone."""

    sums: dict[Hashable, Tensor] = field(default_factory=dict)
    """In float64, each on the device where its numbers arise."""

    clock: Clock = field(default_factory=Clock)
    """What it took to add to them."""

    def add(self, name: Hashable, amount: Tensor) -> None:
        """Add a batch's part to the sum `name`, which begins at zero."""
        if name in self.sums:
            self.sums[name] += amount
        else:
            import torch

            self.sums[name] = amount.to(torch.float64, copy=True)

    def forget(self, name: Hashable) -> None:
        """Let go of a sum, if there is one of that name."""
        self.sums.pop(name, None)

    def note(self, name: Hashable, value: Callable[[], Tensor]) -> None:
        """Keep what is the same for every batch: `value` is called the first time only."""
        if name not in self.sums:
            self.sums[name] = value().double()

    def __getitem__(self, name: Hashable) -> Array:
        """The sum so far; raises KeyError where nothing was added."""
        return self.sums[name].cpu().numpy()


@dataclass
class Batch:
    """What a module deep in the model cannot see of the batch that passes."""

    sequences: int = 0
    """B; every layer is given [B, T, hidden], modules inside it may be given all tokens in one row."""


@dataclass(frozen=True)
class Routing:
    """Which expert each of R rows belongs to, and which sequence it comes from."""

    expert: Tensor
    """[R], ascending."""

    sequence: Tensor
    """[R]."""

    experts: int
    """E."""

    sequences: int
    """B."""


def sums_by(index: Tensor, values: Tensor, size: int) -> Tensor:
    """[R], [R, ...] -> [size, ...]: the sum of the values of each index."""
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, index, values)


def energy_shares(states: Tensor, gate: Tensor | None, groups: int) -> Tensor:
    """[..., C] -> [C]: sum over tokens of x_c^2 / (mean of x^2 over c's group of channels), x the input of an RMS norm.

    x is `states` or, for a gated norm (Mamba-2), states * silu(gate).  Groups are equal runs of channels; a token whose
    group is all zeros counts as zero."""
    import torch

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
    import torch

    cosines = torch.cosine_similarity(before.to(wide(before)), after.to(wide(after)), dim=-1)
    return (1 - cosines).double().sum()


def wide(tensor: Tensor) -> torch.dtype:
    """The type to reckon in: fp32, or float64 for a tensor of that."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
