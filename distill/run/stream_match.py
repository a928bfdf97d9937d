"""Stream matching: every layer of a pruned student learns the residual stream that its parent has there.

What the cut keeps of the parent's stream (minitron.cut.stream_map) is the target of the student's, so nothing stands
between the two that would have to be learnt, as the projections of hidden-state distillation do where widths differ
(Jiao et al. 2019, TinyBERT, arXiv 1909.10351, equation 8).  With S_l the student's stream after its layer l of L and
T_l the target, [tokens, K] both, and m_l the mean square of T_l on held-out text, the error is

    1 / L * sum over l of mean((S_l - T_l)^2) / m_l

or each channel's error is divided by its own variance in the place of m_l: a few channels of dense models are so large
that the others hardly count beside them.

Shape letters: B sequences, T tokens, K the student's hidden size, D directions, L layers of the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.teacher.cache import TeacherCache
from distill.teacher.streamed import StreamedTeacher
from distill.teacher.streams import Found, Streams, counted, layers_of
from distill.teacher.teacher_source import Reference
from minitron.model.layer_by_layer import states_of
from minitron.model.spec import ModelSpec


@dataclass
class Seen:
    """The streams of one pass."""

    ids: Tensor
    """[B, T]."""

    theirs: Found
    mine: Found = field(default_factory=dict)


class StreamMatch:
    """A student's layers, what they are to be compared with, and how."""

    def __init__(
        self,
        weight: float,
        streams: Streams,
        student: tuple[PreTrainedModel, ModelSpec],
        teacher: tuple[Reference, ModelSpec],
        squares: Sequence[float],
        variances: Sequence[Sequence[float]] = (),
    ) -> None:
        """`squares` [L] are the mean squares of the targets, `variances` [L, K] those of their channels where errors
        are told in their units; the error is multiplied by `weight`."""
        self.weight, self.squares = weight, squares
        self._units = [torch.tensor(one, dtype=torch.float32) for one in (variances or squares)]
        self._streams, self._teacher = streams, teacher[0]
        self._mine = layers_of(*student)
        self._theirs: list[nn.Module] = []
        if isinstance(self._teacher, PreTrainedModel):
            self._theirs = streams.kept_layers(self._teacher, teacher[1])

    @property
    def told(self) -> str:
        """What is compared, in a sentence."""
        few = self._streams.directions
        where = "" if few is None else f" in {few} random directions"
        return f"Every layer also learns the teacher's residual stream{where} (--stream-weight {self.weight:g})."

    @contextmanager
    def watching(self, ids: Tensor, places: Sequence[tuple[int, int]] = ()) -> Iterator[Seen]:
        """What student and teacher have in their streams over the sequences `ids` [B, T] until the block ends; `places`
        are those of the sequences in the text."""
        with ExitStack() as undo:
            if isinstance(self._teacher, TeacherCache):
                theirs = self._teacher.streams(places, self.squares)
            elif isinstance(self._teacher, StreamedTeacher):
                theirs = self._teacher.streams(ids)
            else:
                theirs = undo.enter_context(self._streams.watching(self._theirs, ids))
            seen = Seen(ids, theirs)
            for layer, module in enumerate(self._mine):
                undo.callback(module.register_forward_hook(self._keep(seen, layer)).remove)
            yield seen

    def _keep(self, seen: Seen, layer: int) -> Any:
        def hook(module: nn.Module, given: Any, made: Any) -> None:
            seen.mine[layer] = self._streams.mine(states_of(made), seen.ids)

        return hook

    def error(self, seen: Seen) -> Tensor:
        """The mean, over layers, of the squared error of a stream in units of its mean square, or of its
        channels' variances."""
        parts = []
        for layer, mine in seen.mine.items():
            target = seen.theirs.pop(layer)
            apart = counted(mine).float() - counted(target).to(mine.device, torch.float32)
            parts.append((apart.pow(2) / self._units[layer].to(mine.device)).mean())
        return torch.stack(parts).mean()
