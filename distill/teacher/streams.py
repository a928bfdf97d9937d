"""A teacher's residual stream in the directions in which a student is compared with it.

All directions that the cut kept, or random ones, others for every sequence: with R [K, D] of independent normal numbers
of variance 1 / K the mean of (e R)^2 over D has the expectation of the mean of e^2 over K (Johnson and Lindenstrauss
1984; Achlioptas 2003, equation 1).  So few numbers a token are enough of a teacher that is not there.

Shape letters: B sequences, T tokens, H the teacher's hidden size, K the student's, D directions, L layers kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
whose stream can be thousands of times as large as that of all others (Xiao et al. 2023, arXiv 2309.17453)."""

LEAST: Final = 1e-6
"""A channel that hardly varies is told in units of this share of the mean variance: its errors are not to outweigh all
others'."""

Found = dict[int, Tensor]
"""The student's layer -> [B, T, K] or [B, T, D]."""


@dataclass(frozen=True, eq=False)
class Streams:
    """Which streams are compared, and in which directions."""

    stream: StreamMap
    """Where the student's lies in the teacher's."""

    directions: int | None = None
    """Random ones of every sequence; None compares all."""

    by_channel: bool = False
    """Whether errors are told in units of each channel's own variance; of all directions only."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that what is kept of a teacher's streams depends on beside the teacher."""
        cut = self.stream.cut
        kept = None if cut is None else np.ascontiguousarray(getattr(cut, "matrix", cut))
        told = "all" if kept is None else hashlib.sha256(kept.data).hexdigest()
        return {"layers": list(self.stream.layers), "stream": told, "directions": self.directions}

    def of(self, states: Tensor, ids: Tensor) -> Tensor:
        """[B, T, K] or [B, T, D] of the teacher's stream [B, T, H]."""
        return self.mine(self.stream.of_student(states), ids)

    def mine(self, states: Tensor, ids: Tensor) -> Tensor:
        """The same of the student's stream [B, T, K], over the sequences `ids` [B, T]."""
        if self.directions is None or self.directions >= states.shape[-1]:
            return states
        # Not in bf16: what is compared are small differences.
        with torch.autocast(states.device.type, enabled=False):
            return states.float() @ self._random(states.shape[-1], ids).to(states.device)

    def _random(self, size: int, ids: Tensor) -> Tensor:
        """[B, K, D]: those of each sequence, which follow from its tokens alone.  What is read off them has the size of
        the stream's own numbers."""
        assert self.directions is not None
        found = []
        for row in ids.cpu().numpy():
            seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(row, np.int64).data).digest()[:7], "big")
            chance = torch.Generator().manual_seed(seed)
            found.append(torch.randn(size, self.directions, generator=chance) / size**0.5)
        return torch.stack(found)

    @contextmanager
    def watching(self, layers: Sequence[nn.Module], ids: Tensor) -> Iterator[Found]:
        """What the teacher's `layers`, those that stay, have in their streams over the sequences `ids` [B, T], when it
        runs before the block ends."""
        found: Found = {}

        def keep(layer: int) -> Any:
            def hook(module: nn.Module, given: Any, made: Any) -> None:
                found[layer] = self.of(states_of(made), ids)

            return hook

        with ExitStack() as undo:
            for layer, module in enumerate(layers):
                undo.callback(module.register_forward_hook(keep(layer)).remove)
            yield found

    def kept_layers(self, model: PreTrainedModel, spec: ModelSpec) -> list[nn.Module]:
        """The layers of a teacher in memory that stay."""
        layers = layers_of(model, spec)
        return [layers[layer] for layer in self.stream.layers]


class WatchedTeacher:
    """A teacher in memory whose streams are kept beside what it answers, as a streamed one keeps them
    (minitron.measure.quality.Answers)."""

    def __init__(self, teacher: Any, model: PreTrainedModel, spec: ModelSpec, streams: Streams) -> None:
        """`teacher` answers for `model`."""
        self._teacher, self._streams, self._layers = teacher, streams, streams.kept_layers(model, spec)
        self.head = teacher.head
        self._found: Found = {}

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of sequences [B, T]."""
        with self._streams.watching(self._layers, ids) as self._found:
            states: Tensor = self._teacher.hidden_states(ids)
        return states

    def streams(self, ids: Tensor) -> Found:
        """Those of the sequences [B, T] that it was just asked about."""
        return self._found


def layers_of(model: PreTrainedModel, spec: ModelSpec) -> list[nn.Module]:
    """The layers of a model in memory."""
    module = model.get_submodule(layers_module(spec))
    assert isinstance(module, nn.ModuleList)
    return list(module)


def counted(states: Tensor) -> Tensor:
    """[B, T, *]: without the first tokens of every sequence, unless it is so short that nothing would be left."""
    return states[:, min(FIRST, states.shape[1] - 1) :]


def mean_square(states: Tensor) -> float:
    """Of the tokens that count, in float64."""
    return float(counted(states).double().pow(2).mean())


def mean_squares(streams: Streams, model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64]) -> list[float]:
    """[L]: of what stays of each layer's stream of a teacher in memory, over the sequences `blocks` [S, T]."""
    found = [
        {layer: mean_square(states) for layer, states in seen.items()} for seen in _seen(streams, model, spec, blocks)
    ]
    return [float(np.mean([one[layer] for one in found])) for layer in range(len(streams.stream.layers))]


def variances(
    streams: Streams, model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64]
) -> list[list[float]]:
    """[L, K]: of each channel of what stays of a layer's stream of a teacher in memory, over the tokens that count of
    `blocks` [S, T]; none is taken for less than LEAST of the mean."""
    sums: dict[int, Tensor] = {}
    tokens = 0
    for seen in _seen(streams, model, spec, blocks):
        for layer, states in seen.items():
            rows = counted(states).flatten(0, 1).double().cpu()
            part = torch.stack([rows.sum(0), rows.square().sum(0)])
            sums[layer] = sums[layer] + part if layer in sums else part
        tokens += len(rows)
    found = [sums[layer][1] / tokens - (sums[layer][0] / tokens).square() for layer in range(len(sums))]
    return [one.clamp_min(LEAST * float(one.mean())).tolist() for one in found]


@torch.no_grad()
def _seen(streams: Streams, model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64]) -> Iterator[Found]:
    """What stays of the streams of a teacher in memory, sequence after sequence."""
    whole, layers = Streams(streams.stream), streams.kept_layers(model, spec)
    for block in blocks:
        ids = torch.from_numpy(block[None])
        with whole.watching(layers, ids) as seen:
            hidden_states(model, ids)
        yield seen
