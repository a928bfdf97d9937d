"""Records as one long row of token ids, on disk where it is long: which of them count is kept beside them.

Shape letters: N tokens of all records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from distill.text.answers import answers
from minitron.arrays import StoredArray
from minitron.errors import MinitronError
from minitron.files import new_folder, read_sealed, write_sealed
from minitron.measure.records import Broken, Record, Source, records
from minitron.measure.text import BrokenRecordError, Renderer, encoded, end_of_text, token_ids
from minitron.model.identity import file_hashes, first_changed

AT_ONCE: Final = 2**20
"""Tokens in memory before they are written."""

ABOUT: Final = "about.json"


@dataclass(frozen=True)
class Tokens:
    """All tokens of a source, every record followed by the end-of-text token."""

    ids: NDArray[np.int32] | StoredArray
    """[N]."""

    counted: NDArray[np.bool_] | StoredArray | None
    """[N]: what the student is to learn to say; None is all of it."""

    broken: int
    """Records that were left out."""

    named: tuple[str, ...]
    """The first of those."""

    @property
    def highest(self) -> int:
        """The highest id; -1 where there is none."""
        parts = (self.ids[start : start + AT_ONCE] for start in range(0, len(self.ids), AT_ONCE))
        return max((int(part.max()) for part in parts), default=-1)


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    folder: Path | None,
    *,
    assistant_only: bool = False,
    most_broken: int = 10,
) -> Tokens:
    """The tokens of a source; given a folder they are kept in files in it, read when they are needed, and not made
    again where it is there.

    Conversations go through the tokenizer's chat template; `assistant_only` counts what the assistant says and the end
    of its turn.  Raises MinitronError where there is no chat template."""
    if folder is not None and folder.exists():
        return _mapped(folder)
    broken = Broken(most_broken, "--most-broken")
    runs = _runs(tokenizer, source, broken, assistant_only)
    if folder is None:
        ids, counted = _joined(list(runs))
        return Tokens(ids, counted if assistant_only else None, broken.count, tuple(broken.named))
    with new_folder(folder) as partial:
        with (partial / "ids").open("wb") as ids_file, (partial / "counted").open("wb") as counted_file:
            for part in _batches(runs):
                ids, counted = _joined(part)
                ids.tofile(ids_file)
                if assistant_only:
                    counted.tofile(counted_file)
        names = ("ids", "counted")
        sums = dict(zip(names, file_hashes([partial / name for name in names]), strict=True))
        about = {"assistant_only": assistant_only, "broken": broken.count, "named": broken.named, "files": sums}
        write_sealed(partial / ABOUT, about)
    return _mapped(folder)


def require_sound(folder: Path) -> None:
    """Raise MinitronError where the tokens that `tokenise` left in `folder`, if any, are not as it wrote them."""
    if not folder.exists():
        return
    sums = read_sealed(folder / ABOUT)["files"]
    if (changed := first_changed({folder / name: digest for name, digest in sums.items()})) is not None:
        raise MinitronError(f"{changed} is damaged (its checksum differs); remove {folder}, and it is made again.")


def _mapped(folder: Path) -> Tokens:
    about = read_sealed(folder / ABOUT)

    counted = StoredArray(folder / "counted", np.bool_) if about["assistant_only"] else None
    return Tokens(StoredArray(folder / "ids", np.int32), counted, about["broken"], tuple(about["named"]))


Run = tuple[list[int], list[bool]]


def _joined(runs: list[Run]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    ids = [np.asarray(run[0], dtype=np.int32) for run in runs] or [np.empty(0, np.int32)]
    counted = [np.asarray(run[1], dtype=np.bool_) for run in runs] or [np.empty(0, np.bool_)]
    return np.concatenate(ids), np.concatenate(counted)


def _batches(runs: Iterator[Run]) -> Iterator[list[Run]]:
    part: list[Run] = []
    size = 0
    for run in runs:
        part.append(run)
        size += len(run[0])
        if size >= AT_ONCE:
            yield part
            part, size = [], 0
    yield part


def _runs(tokenizer: PreTrainedTokenizerBase, source: Source, broken: Broken, assistant_only: bool) -> Iterator[Run]:
    end = end_of_text(tokenizer)
    with Renderer(tokenizer) as renderer:
        for record in records(source, broken):
            try:
                ids, counted = _record(renderer, record, assistant_only)
            except BrokenRecordError as error:
                broken.add(record.where, str(error))
                continue
            # What ends a record counts as what came before it.
            yield ids + end, counted + counted[-1:] * len(end) if counted else [not assistant_only] * len(end)


def _record(renderer: Renderer, record: Record, assistant_only: bool) -> Run:
    if not assistant_only or record.text is not None:
        ids = token_ids(renderer.tokenizer, renderer.text(record))
        return ids, [not assistant_only] * len(ids)
    text, spans = answers(renderer, record)
    told = encoded(renderer.tokenizer, text)
    if not renderer.tokenizer.is_fast:
        raise MinitronError(
            "this tokenizer does not say where its tokens stand, so assistant tokens cannot be identified; drop "
            "--assistant-only."
        )
    ids = list(told["input_ids"])
    counted = [False] * len(ids)
    for start, stop in spans:
        first, last = _token_from(told, start, len(text)), _token_from(told, stop, len(text))
        counted[first:last] = [True] * (last - first)
    return ids, counted


def _token_from(told: BatchEncoding, character: int, length: int) -> int:
    """The first token that begins with a character of a text of that length or later; how many there are, where none
    does."""
    # Characters that no token has, such as spaces that are dropped, are passed over.
    found = (told.char_to_token(place) for place in range(character, length))
    token = next((one for one in found if one is not None), None)
    if token is None:
        return len(told["input_ids"])
    begins: int = told.token_to_chars(token).start
    return int(token) + int(begins < character)
