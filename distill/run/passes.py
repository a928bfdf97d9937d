"""What goes through the models at once: the sequences of a batch, dealt out into passes.

Shape letters: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.losses.slopes import chunks
from distill.text.data import Batch


@dataclass(frozen=True)
class Pass:
    """Some sequences that have one loss and one teacher."""

    ids: Tensor
    """[B, T]."""

    counted: Tensor | None
    """[B, T]: which of them are to be learnt; None is all."""

    places: tuple[tuple[int, int], ...]
    """(part of the text, number among that part's) of each sequence."""

    divisor: float
    """Tokens that count in the whole batch, over all passes and processes."""

    is_own: bool = False
    """Whether they end with what the student wrote itself."""

    teacher: int = 0
    """The number of the teacher whose text they are."""


def tokens_that_count(batch: Batch, numbers: Sequence[int]) -> int:
    """How many of some sequences of a batch; a sequence's first one is learnt at no other."""
    if batch.counted is None:
        return len(numbers) * int(batch.ids.shape[1])
    return max(int(batch.counted[list(numbers), 1:].sum()), 1)


def passes(
    batch: Batch, numbers: Sequence[int], size: int, divisor: float, *, is_own: bool = False, teacher: int = 0
) -> Iterator[tuple[int, Pass]]:
    """The sequences `numbers` of a batch, in passes of at most `size`, each with its first one's number."""
    for part in chunks(len(numbers), size):
        rows = np.asarray(numbers[part], dtype=np.int64)
        counted = None if batch.counted is None else torch.from_numpy(batch.counted[rows])
        places = tuple(batch.places[row] for row in rows)
        yield int(rows[0]), Pass(torch.from_numpy(batch.ids[rows]), counted, places, divisor, is_own, teacher)
