"""A teacher larger than memory: its layers are read from disk one by one, for many sequences at once.

Shape letters: S sequences, B sequences of a batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from math import exp
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.losses.slopes import chunks
from distill.teacher.streams import Found, Streams, mean_square
from minitron.measure.quality import CHUNK_LOGITS
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.output_layer import OutputLayer, as_read, output_layer
from minitron.model.spec import read_spec
from minitron.progress import Advance

See = Callable[[int, Tensor, NDArray[np.int64]], None]
"""Is told the student's layer, the stream [B, T, H] after the one it was, and the sequences [B, T]."""


class StreamedTeacher:
    """What a checkpoint says of sequences it was asked about; in memory are one layer at a time, and the output layer.

    It answers as minitron.measure.quality.Answers do."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        streams: Streams | None = None,
        *,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Reads the output layer; `streams` are kept too.  All is in `dtype`.  Raises MinitronError for a family that
        Minitron has no table for."""
        self._source = LayerwiseModel(folder, read_spec(folder), dtype=dtype, device=device)
        self._always = ExitStack()
        self._always.enter_context(self._source.resident(OUTPUT))
        self._held_out: dict[bytes, Tensor] = {}
        self._kept: dict[bytes, Tensor] = {}
        self._streams, self._seen = streams, dict[bytes, dict[int, Tensor]]()
        self.squares: list[float] = []
        """[L]: the mean squares of the streams, over held-out sequences."""

    @property
    def head(self) -> OutputLayer:
        """Its output layer."""
        return output_layer(self._source.model)

    def ask_held_out(self, blocks: NDArray[np.int64], batch_size: int, advance: Advance) -> float:
        """Keep for good the states of the sequences `blocks` [S, T]; returns the perplexity."""
        self.squares = [0.0] * (0 if self._streams is None else len(self._streams.stream.layers))
        self._held_out = self._walk(blocks, batch_size, advance, self._square)
        self.squares = [total / len(blocks) for total in self.squares]
        head, nll = self.head, 0.0
        rows = max(1, CHUNK_LOGITS // self.weight.shape[0])
        with torch.no_grad():
            for block in blocks:
                states = self._held_out[block.tobytes()][:-1].to(self.weight.device)
                following = torch.from_numpy(block[1:]).to(states.device)
                for part in chunks(len(states), rows):
                    log_p = head(states[part]).log_softmax(-1)
                    nll -= float(log_p.gather(-1, following[part, None]).double().sum())
        return exp(nll / (blocks.size - len(blocks)))

    def ask(self, blocks: NDArray[np.int64], batch_size: int, advance: Advance | None = None) -> None:
        """Keep the states of the sequences `blocks` [S, T] on the CPU, S * T * H numbers, until it is asked about
        others.  `advance` is told of their tokens, spread over the layers."""
        self._kept, self._seen = {}, {}
        self._kept = self._walk(blocks, batch_size, advance or _ignore, self._keep)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of sequences [B, T] that it was asked about; raises KeyError for others."""
        keys = [row.tobytes() for row in ids.cpu().numpy()]
        found = [self._held_out[key] if key in self._held_out else self._kept[key] for key in keys]
        return torch.stack(found).to(self.weight.device)

    def streams(self, ids: Tensor) -> Found:
        """Those of sequences [B, T] that it was asked about; raises KeyError for others."""
        found = [self._seen[row.tobytes()] for row in ids.cpu().numpy()]
        return {layer: torch.stack([one[layer] for one in found]) for layer in found[0]}

    def _keep(self, layer: int, states: Tensor, rows: NDArray[np.int64]) -> None:
        assert self._streams is not None
        for row, stream in zip(rows, self._streams.of(states, torch.from_numpy(rows)), strict=True):
            self._seen.setdefault(row.tobytes(), {})[layer] = stream.to("cpu", self._source.dtype)

    def _square(self, layer: int, states: Tensor, rows: NDArray[np.int64]) -> None:
        assert self._streams is not None
        self.squares[layer] += mean_square(self._streams.stream.of_student(states)) * len(rows)

    @property
    def weight(self) -> Tensor:
        """[V, H] of the output layer."""
        return self.head.weight

    @torch.no_grad()
    def _walk(self, blocks: NDArray[np.int64], batch_size: int, advance: Advance, see: See) -> dict[bytes, Tensor]:
        walk, count = LayerByLayer(self._source, blocks, batch_size, States()), len(self._source.spec.layers)
        compared = () if self._streams is None else self._streams.stream.layers
        rows_of = [blocks[batch * batch_size : (batch + 1) * batch_size] for batch in walk.batches]
        for layer in range(count):
            with self._source.resident(layer):
                for batch, tokens in walk.go(layer):
                    advance(tokens / count, f"layer {layer + 1} of {count}")
                    if layer in compared:
                        see(compared.index(layer), walk.state(batch), rows_of[batch])
        found: dict[bytes, Tensor] = {}
        for batch in walk.batches:
            rows = rows_of[batch]
            states = as_read(walk.norm(walk.state(batch)), self.weight).cpu()
            found |= {row.tobytes(): one for row, one in zip(rows, states, strict=True)}
        return found


def _ignore(amount: float, note: str = "") -> None:
    return
