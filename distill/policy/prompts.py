"""Which sequences of a run are the student's own, the prompts they begin with, and what becomes of its answers.

Shape letters: S sequences, T tokens of a sequence, P of its prompt, A of the longest answer: T = P + A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distill.text.data import Part
from minitron.errors import MinitronError

_AT_ONCE: Final = 2**16
"""Tokens that are searched for the beginning of an answer at a time."""


@dataclass(frozen=True)
class Answered:
    """Prompts with their answers."""

    ids: NDArray[np.int64]
    """[S, T]; what is behind a short answer is filled up."""

    counted: NDArray[np.bool_]
    """[S, T]: the tokens of the answers."""


def is_own(number: int, share: float) -> bool:
    """Whether the sequence with that number in the stream is the student's own: a `share` of them is, evenly spread."""
    return floor((number + 1) * share) > floor(number * share)


def prompt(part: Part, number: int, length: int) -> NDArray[np.int64]:
    """[P]: the first tokens of a sequence of the text.

    Where it is marked what is to be learnt, they are instead the tokens before the first stretch of that, such as a
    turn of the assistant, that begins in the sequence or after it; past the end of the text, from its beginning.
    Raises MinitronError where none begins anywhere."""
    first = number * part.sequence_length
    if part.tokens.counted is None:
        return part.tokens.ids[first : first + length].astype(np.int64)
    stop = part.sequences * part.sequence_length
    for low, high in ((max(first, length), stop), (length, min(stop, first))):
        start = _beginning(part, low, high)
        if start is not None:
            return part.tokens.ids[start - length : start].astype(np.int64)
    raise MinitronError(
        f"{part.name} has no turn of the assistant with {length} tokens before it, so that the student has nothing to "
        "answer; give more text, a larger --on-policy-answer, or drop --assistant-only."
    )


def _beginning(part: Part, low: int, high: int) -> int | None:
    """The first token from `low` on and before `high` that counts while the one before it does not."""
    counted = part.tokens.counted
    assert counted is not None
    for place in range(low, high, _AT_ONCE):
        marks = np.asarray(counted[max(place - 1, 0) : min(place + _AT_ONCE, high)])
        found = np.flatnonzero(marks[1:] & ~marks[:-1])
        if len(found):
            return int(found[0]) + max(place - 1, 0) + 1
    return None


def join(prompts: NDArray[np.int64], answers: Sequence[Sequence[int]], length: int, *, filler: int) -> Answered:
    """Prompts [S, P] followed by answers of at least one token, in sequences of `length` tokens; the rest of a
    sequence is `filler`, which no token before it sees."""
    ids = np.full((len(prompts), length), filler, dtype=np.int64)
    counted = np.zeros(ids.shape, dtype=np.bool_)
    size = prompts.shape[1]
    ids[:, :size] = prompts
    for row, answer in enumerate(answers):
        ids[row, size : size + len(answer)] = answer
        counted[row, size : size + len(answer)] = True
    return Answered(ids, counted)


def until_stop(answer: Sequence[int], stops: frozenset[int]) -> list[int]:
    """An answer up to the first token that ends it, with that."""
    end = next((place + 1 for place, token in enumerate(answer) if token in stops), len(answer))
    return [int(token) for token in answer[:end]]
