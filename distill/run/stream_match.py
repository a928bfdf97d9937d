"""Stream matching: every layer of a pruned student learns the residual stream that its parent has there.

What the cut keeps of the parent's stream (minitron.cut.stream_map) is the target of the student's, so nothing stands
between the two that would have to be learnt, as the projections of hidden-state distillation do where widths differ
(Jiao et al. 2019, TinyBERT, arXiv 1909.10351, equation 8).  With S_l the student's stream after its layer l of L and
T_l the target, [tokens, K] both, and m_l the mean square of T_l on held-out text, the loss is

    1 / L * sum over l of mean((S_l - T_l)^2) / m_l

Shape letters: B sequences, T tokens, H the teacher's hidden size, K the student's, L layers of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from minitron.cut.stream_map import StreamMap
from minitron.measure.quality import hidden_states
from minitron.model.layer_by_layer import states_of
from minitron.model.layerwise import layers_module
from minitron.model.spec import ModelSpec

FIRST: Final = 4
"""Tokens at the beginning of a sequence that are left out: attention parks what it does not need on the first ones,
whose stream is thousands of times as large as that of all others (Xiao et al. 2023, arXiv 2309.17453)."""

MEASURED: Final = 8
"""Held-out sequences by which the mean square of every layer's stream is taken."""


@dataclass
class Seen:
    """The streams of one pass."""

    mine: dict[int, Tensor] = field(default_factory=dict)
    """The student's layer -> [B, T, K]."""

    theirs: dict[int, Tensor] = field(default_factory=dict)
    """The student's layer -> its target [B, T, K]."""


class StreamMatch:
    """A student's layers, what they are to be compared with, and how."""

    def __init__(
        self,
        weight: float,
        stream: StreamMap,
        student: Sequence[nn.Module],
        teacher: Sequence[nn.Module],
        squares: Tensor,
    ) -> None:
        """`student` are its layers, `teacher` those of the teacher that each was; `squares` [L] the mean square of each
        target; the error is multiplied by `weight`."""
        self.weight = weight
        self._stream, self._student, self._teacher = stream, student, teacher
        self.squares = squares

    @classmethod
    def of(
        cls,
        weight: float,
        stream: StreamMap,
        student: tuple[PreTrainedModel, ModelSpec],
        teacher: tuple[PreTrainedModel, ModelSpec],
        blocks: NDArray[np.int64],
    ) -> StreamMatch:
        """Of models in memory; `blocks` [S, T] is held-out text."""
        mine, theirs = (layers_of(*model) for model in (student, teacher))
        match = cls(weight, stream, mine, [theirs[layer] for layer in stream.layers], torch.ones(len(mine)))
        sums = torch.zeros(len(mine), dtype=torch.float64)
        count = min(MEASURED, len(blocks))
        for block in blocks[:count]:
            with match.watching() as seen, torch.no_grad():
                hidden_states(teacher[0], torch.from_numpy(block[None]))
            sums += torch.stack([_counted(seen.theirs[layer]).double().pow(2).mean().cpu() for layer in seen.theirs])
        match.squares = (sums / count).float()
        return match

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """What the models that run until the block ends have in their streams."""
        seen = Seen()
        with ExitStack() as undo:
            for layer, (mine, theirs) in enumerate(zip(self._student, self._teacher, strict=True)):
                undo.callback(mine.register_forward_hook(_keep(seen.mine, layer)).remove)
                undo.callback(theirs.register_forward_hook(_keep(seen.theirs, layer, self._stream.of_student)).remove)
            yield seen

    def error(self, seen: Seen) -> Tensor:
        """The mean, over layers, of the squared error of a stream in units of its mean square."""
        parts = []
        for layer, mine in seen.mine.items():
            target = seen.theirs.pop(layer)
            apart = _counted(mine).float() - _counted(target).to(mine.device, torch.float32)
            parts.append(apart.pow(2).mean() / float(self.squares[layer]))
        return torch.stack(parts).mean()


def layers_of(model: PreTrainedModel, spec: ModelSpec) -> list[nn.Module]:
    """The layers of a model in memory."""
    module = model.get_submodule(layers_module(spec))
    assert isinstance(module, nn.ModuleList)
    return list(module)


def _counted(states: Tensor) -> Tensor:
    """Without the first tokens of every sequence, but for one so short that nothing would be left."""
    return states[:, min(FIRST, states.shape[1] - 1) :]


def _keep(into: dict[int, Tensor], layer: int, of: Callable[[Tensor], Tensor] = lambda states: states) -> Any:
    def hook(module: nn.Module, given: Any, made: Any) -> None:
        into[layer] = of(states_of(made))

    return hook
