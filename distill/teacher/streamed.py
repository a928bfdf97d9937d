"""A teacher larger than memory: its layers are read from disk one by one, for many sequences at once.

Shape letters: S sequences, B sequences of a batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import exp
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.losses.slopes import chunks
from minitron.measure.quality import CHUNK_LOGITS
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.output_layer import OutputLayer, as_read, output_layer
from minitron.model.spec import read_spec
from minitron.progress import Advance


class StreamedTeacher:
    """What a checkpoint says of sequences it was asked about; in memory are one layer at a time, and the output layer.

    It answers as minitron.measure.quality.Answers do."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Reads the output layer.  Raises MinitronError for a family that Minitron has no table for."""
        self._source = LayerwiseModel(folder, read_spec(folder), dtype=torch.bfloat16, device=device)
        self._always = ExitStack()
        self._always.enter_context(self._source.resident(OUTPUT))
        self._held_out: dict[bytes, Tensor] = {}
        self._kept: dict[bytes, Tensor] = {}

    @property
    def head(self) -> OutputLayer:
        """Its output layer."""
        return output_layer(self._source.model)

    def ask_held_out(self, blocks: NDArray[np.int64], batch_size: int, advance: Advance) -> float:
        """Keep for good the states of the sequences `blocks` [S, T]; returns the perplexity."""
        self._held_out = self._walk(blocks, batch_size, advance)
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
        """Keep the states of the sequences `blocks` [S, T] on the CPU, S * T * H * 2 bytes, until it is asked about
        others.  `advance` is told of their tokens, spread over the layers."""
        self._kept = {}
        self._kept = self._walk(blocks, batch_size, advance or _ignore)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of sequences [B, T] that it was asked about; raises KeyError for others."""
        keys = [row.tobytes() for row in ids.cpu().numpy()]
        found = [self._held_out[key] if key in self._held_out else self._kept[key] for key in keys]
        return torch.stack(found).to(self.weight.device)

    @property
    def weight(self) -> Tensor:
        """[V, H] of the output layer."""
        return self.head.weight

    @torch.no_grad()
    def _walk(self, blocks: NDArray[np.int64], batch_size: int, advance: Advance) -> dict[bytes, Tensor]:
        walk, count = LayerByLayer(self._source, blocks, batch_size, States()), len(self._source.spec.layers)
        for layer in range(count):
            with self._source.resident(layer):
                for _, tokens in walk.go(layer):
                    advance(tokens / count, f"layer {layer + 1} of {count}")
        found: dict[bytes, Tensor] = {}
        for batch in walk.batches:
            rows = blocks[batch * batch_size : (batch + 1) * batch_size]
            states = as_read(walk.norm(walk.state(batch)), self.weight).cpu()
            found |= {row.tobytes(): one for row, one in zip(rows, states, strict=True)}
        return found


def _ignore(amount: float, note: str = "") -> None:
    return
