"""The sequences of a step, dealt out: which the student writes itself, and which teacher each learns from.

Shape letters: S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill.processes import Processes
from distill.run.domains import Domains
from distill.run.own_text import OwnText
from distill.run.passes import Pass, passes, tokens_that_count
from distill.text.data import Batch, Text

Write = Callable[[OwnText, Batch, list[int]], Batch]
"""(who writes, a batch, which of its sequences) -> the batch in which the student has written these."""


@dataclass(frozen=True)
class Dealing:
    """How the sequences of a run are dealt out."""

    size: int
    """Sequences of a pass, at most."""

    processes: Processes
    device: torch.device
    """Where processes add up numbers."""

    own: OwnText | None = None
    """Where the student's own sequences come from; None where it writes none."""

    domains: Domains | None = None
    """None where there is one teacher."""

    def passes(self, batch: Batch, position: int, write: Write) -> Iterator[tuple[int, Pass]]:
        """What this process works on in a step that begins with the sequence `position`, each pass with the number of
        its first sequence in the batch."""
        count = len(batch.ids)
        mine, own = range(count)[self.processes.share(count)], self.own_numbers(position, count)
        others = [number for number in range(count) if number not in own]
        if self.own is not None and own:
            numbers = [number for number in mine if number in own]
            written = write(self.own, batch, numbers)
            tokens = self.processes.sum(torch.tensor(tokens_that_count(written, numbers), device=self.device))
            yield from self._dealt(written, numbers, int(tokens) * count / len(own), is_own=True)
        if others:
            tokens_of_text = tokens_that_count(batch, others) * count / len(others)
            yield from self._dealt(batch, [number for number in mine if number in others], tokens_of_text)

    def own_numbers(self, position: int, count: int) -> list[int]:
        """Which of the `count` sequences of the step that begins with the sequence `position` are the student's own."""
        return [] if self.own is None else self.own.numbers(position, count, self.processes.world_size)

    def taught_by(self, teacher: int, batch: Batch, numbers: Sequence[int]) -> list[int]:
        """Which of the sequences `numbers` of a batch learn from a teacher."""
        if self.domains is None:
            return list(numbers)
        return [number for number in numbers if self.domains.of_part[batch.places[number][0]] == teacher]

    def held_out(self, text: Text) -> list[NDArray[np.int64]]:
        """The held-out sequences [S, T] of each teacher; S may be 0."""
        if self.domains is None:
            return [text.validation]
        teachers = self.domains.of_held_out(text)
        return [text.validation[teachers == teacher] for teacher in range(self._teachers)]

    @property
    def _teachers(self) -> int:
        return 1 if self.domains is None else 1 + len(self.domains.names)

    def _dealt(
        self, batch: Batch, numbers: Sequence[int], divisor: float, *, is_own: bool = False
    ) -> Iterator[tuple[int, Pass]]:
        for teacher in range(self._teachers):
            mine = self.taught_by(teacher, batch, numbers)
            yield from passes(batch, mine, self.size, divisor, is_own=is_own, teacher=teacher)
