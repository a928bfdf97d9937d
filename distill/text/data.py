"""The text of a run as sequences of token ids: the held-out ones, and the order of the others.

Shape letters: S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distill.text.tokens import Tokens, tokenise
from minitron.errors import MinitronError
from minitron.files import file_hash
from minitron.measure.records import Source
from minitron.measure.text import token_blocks

GOLDEN: Final = 11400714819323198485
"""2^64 divided by the golden ratio: multiples of it, modulo 2^64, are spread more evenly than chance would."""


@dataclass(frozen=True)
class Batch:
    """Some sequences."""

    ids: NDArray[np.int64]
    """[S, T]."""

    counted: NDArray[np.bool_] | None
    """[S, T]: which tokens are to be learnt; None is all of them."""

    places: tuple[tuple[int, int], ...]
    """(part, number among that part's) of each."""


@dataclass(frozen=True)
class Part:
    """The training sequences of one source, in the order of its records."""

    name: str
    weight: float
    tokens: Tokens
    sequences: int
    sequence_length: int

    def sequence(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
        """[T] ids and which of them count."""
        place = slice(number * self.sequence_length, (number + 1) * self.sequence_length)
        counted = self.tokens.counted
        return self.tokens.ids[place].astype(np.int64), None if counted is None else np.asarray(counted[place])


@dataclass(frozen=True)
class Text:
    """What is trained on and what is held out; no sequence is in both."""

    parts: tuple[Part, ...]
    """The sources of the blend."""

    validation: NDArray[np.int64]
    """[S, T] token ids."""

    source: dict[str, Any]
    """Which files, by name and SHA-256: what the order and the model card depend on."""

    held_out: tuple[int, ...] = ()
    """How many of the held-out sequences come from each part, in order; empty where they are a file of their own."""

    _picked: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    """Position in the stream -> how many sequences came from each part before it."""

    @property
    def broken(self) -> list[str]:
        """The first records of each source that were left out."""
        return [name for part in self.parts for name in part.tokens.named]

    def told_of_broken(self) -> str:
        """How many records were left out, and the first of them."""
        return f"{sum(part.tokens.broken for part in self.parts)} broken records skipped: {'; '.join(self.broken)}."

    def batch(self, position: int, count: int, *, seed: int) -> Batch:
        """The sequences number `position` and following of an endless stream.

        Each comes from a part by weight, spread as evenly as can be.  A part goes through all of its sequences once an
        epoch, each epoch in an order of its own that follows from `seed`, the part and the epoch's number alone: a
        position is all there is to remember."""
        places = tuple(
            (int(part), self._in_epoch(part, int(number), seed))
            for part, number in zip(*self._places(position, count, seed), strict=True)
        )
        found = [self.parts[part].sequence(number) for part, number in places]
        ids = np.stack([each[0] for each in found])
        if all(each[1] is None for each in found):
            return Batch(ids, None, places)
        everything = np.ones(ids.shape[1], dtype=np.bool_)
        return Batch(ids, np.stack([everything if each[1] is None else each[1] for each in found]), places)

    def _places(self, position: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[count] twice: the part of each sequence, and its number among that part's."""
        parts = self._parts(position, count, seed)
        before = self._before(position, seed)
        numbers = np.empty(count, dtype=np.int64)
        for part in range(len(self.parts)):
            mine = parts == part
            numbers[mine] = before[part] + np.arange(mine.sum())
        self._picked[position + count] = before + np.bincount(parts, minlength=len(self.parts))
        return parts, numbers

    def _parts(self, position: int, count: int, seed: int) -> NDArray[np.int64]:
        """[count]: which part each sequence of the stream comes from; in integers, so that no rounding adds up."""
        weights = np.array([part.weight for part in self.parts])
        limits = np.cumsum(weights / weights.sum())[:-1]
        start = np.random.default_rng([seed, len(self.parts)]).integers(2**63, dtype=np.uint64)
        with np.errstate(over="ignore"):
            turns = (np.arange(position + 1, position + count + 1, dtype=np.uint64) * np.uint64(GOLDEN)) + start
        return np.searchsorted(limits, turns / 2.0**64, side="right").astype(np.int64)

    def _before(self, position: int, seed: int) -> NDArray[np.int64]:
        """[parts]: how many sequences of each came before."""
        if len(self.parts) == 1:
            return np.array([position])
        known = max((place for place in self._picked if place <= position), default=0)
        counts = self._picked.get(known, np.zeros(len(self.parts), dtype=np.int64))
        for start in range(known, position, 2**20):
            parts = self._parts(start, min(2**20, position - start), seed)
            counts = counts + np.bincount(parts, minlength=len(self.parts))
        return np.asarray(counts)

    def _in_epoch(self, part: int, number: int, seed: int) -> int:
        size = self.parts[part].sequences
        return int(_order(seed, part, number // size, size)[number % size])


def _order(seed: int, part: int, epoch: int, size: int) -> NDArray[np.int64]:
    key = (seed, part, epoch, size)
    if key not in _ORDERS:
        while len(_ORDERS) > 16:
            _ORDERS.pop(next(iter(_ORDERS)))
        _ORDERS[key] = np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(size)
    return _ORDERS[key]


_ORDERS: dict[tuple[int, int, int, int], NDArray[np.int64]] = {}
"""The last orders that were needed: of a long text one takes a second to make."""


def describe(data: Sequence[Source], validation: Path | None) -> dict[str, Any]:
    """What a run depends on of its text: names, SHA-256 and weights.

    Raises MinitronError where a file is missing, or the validation text is one that is trained on."""
    found: dict[str, Any] = {}
    for number, source in enumerate(data, 1):
        about: dict[str, Any] = {"name": source.name, "sha256": source.fingerprint()}
        found["data" if number == 1 else f"data {number}"] = about | (
            {"weight": source.weight} if len(data) > 1 else {}
        )
        if source.domain:
            found["data" if number == 1 else f"data {number}"]["domain"] = source.domain
    if validation is not None:
        if not validation.is_file():
            raise MinitronError(f"{validation} does not exist; give a text file or a .jsonl file for --text.")
        about = {"name": validation.name, "sha256": file_hash(validation)}
        if any(about["sha256"] == other["sha256"] for other in found.values()):
            raise MinitronError(
                f"{validation} is also a training text; give another file for --text, or none to "
                "hold out part of the text."
            )
        found["validation"] = about
    return found


def read_text(
    tokenizer: PreTrainedTokenizerBase,
    data: Path | Sequence[Source],
    *,
    sequence_length: int,
    validation: Path | None = None,
    validation_sequences: int,
    folder: Path | None = None,
    assistant_only: bool = False,
    most_broken: int = 10,
) -> Text:
    """The sequences of `data`, and held out from it or from the file `validation` at most `validation_sequences`.

    Without a file for validation the end of every source is held out, by weight, at most a tenth of it and at least one
    sequence: a stretch of its own, where sequences from all over would continue what was trained on.  Tokens are kept
    in `folder`, where one is given, and mapped from there.  Raises MinitronError where a text is too short, or
    validation is a text that is trained on, and past `most_broken` broken records of a source."""
    sources = [Source(str(data))] if isinstance(data, Path) else list(data)
    about = describe(sources, validation)
    held_out = (
        None
        if validation is None
        else token_blocks(tokenizer, validation, sequence_length=sequence_length, samples=validation_sequences)
    )
    whole = sum(source.weight for source in sources)
    parts, ends = [], []
    for number, source in enumerate(sources):
        tokens = tokenise(
            tokenizer,
            source,
            None if folder is None else folder / f"{number}",
            assistant_only=assistant_only,
            most_broken=most_broken,
        )
        count = len(tokens.ids) // sequence_length
        if count == 0:
            raise MinitronError(
                f"{source.name} holds {len(tokens.ids)} tokens, less than one sequence of {sequence_length}; "
                "give more text or a smaller --sequence-length."
            )
        if held_out is None:
            away = max(1, min(round(validation_sequences * source.weight / whole), count // 10))
            if count <= away:
                raise MinitronError(
                    f"{source.name} holds {count} sequence of {sequence_length} tokens, too few to "
                    "hold one out; give more text, a smaller --sequence-length, or --text."
                )
            count -= away
            end = tokens.ids[count * sequence_length : (count + away) * sequence_length]
            ends.append(np.asarray(end, dtype=np.int64).reshape(away, sequence_length))
        parts.append(Part(source.name, source.weight, tokens, count, sequence_length))
    if held_out is not None:
        return Text(tuple(parts), held_out, about)
    return Text(tuple(parts), np.concatenate(ends), about, tuple(len(end) for end in ends))
