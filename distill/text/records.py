"""Records of text from files of several kinds; broken records are counted and named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.measure.text import text_hash

Message = dict[str, str]
Record = str | list[Message]
"""A text, or a conversation: messages with `role` and `content`."""

KINDS: Final = (".txt", ".md", ".jsonl", ".parquet")
"""What is read of a folder."""

NAMED: Final = 5
"""Broken records that are told by name."""

HUB: Final = "hf:"
"""Before the name of a dataset on the Hugging Face hub."""


@dataclass(frozen=True)
class Source:
    """Where records come from."""

    place: str
    """A file, a folder, or `hf:owner/name`."""

    weight: float = 1.0
    """Its share of a blend, beside those of the others."""

    @property
    def path(self) -> Path | None:
        """The file or folder; None for a dataset on the hub."""
        return None if self.place.startswith(HUB) else Path(self.place)

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.place if self.path is None else self.path.name

    def files(self) -> list[Path]:
        """The files to read, in order; raises MinitronError where there are none."""
        path = self.path
        if path is None:
            return []
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.rglob("*") if file.suffix in KINDS and file.is_file())
        if not found:
            raise MinitronError(f"{path} holds no {', '.join(KINDS)} file; give another folder.")
        return found

    def fingerprint(self) -> str:
        """The SHA-256 of a file, of a folder's names and files, or of a dataset's name."""
        if self.path is not None and self.path.is_file():
            return text_hash(self.path)
        parts = [self.place] if self.path is None else []
        for file in self.files():
            if not file.is_file():
                raise MinitronError(f"{file} does not exist; give text, .jsonl or .parquet files, or a folder of them.")
            assert self.path is not None
            parts += [file.relative_to(self.path).as_posix(), text_hash(file)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parse_source(typed: str) -> Source:
    """`PATH` or `WEIGHT:PATH`; raises MinitronError for a weight that is not above zero."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+):(.+)", typed)
    if found is None:
        return Source(typed)
    if not float(found[1]) > 0:
        raise MinitronError(f"{typed}: the weight {found[1]} is not positive; give one above 0, or drop it.")
    return Source(found[2], float(found[1]))


@dataclass
class Broken:
    """Records that could not be read."""

    limit: int
    """One more raises MinitronError."""

    count: int = 0
    named: list[str] = field(default_factory=list)
    """The first of them: where, and what is wrong."""

    def add(self, where: str, what: str) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(f"{where} {what}")
        if self.count > self.limit:
            raise MinitronError(
                f"{self.count} records are broken, the first {self.named[0]}; fix them or raise --most-broken."
            )


def records(source: Source, broken: Broken) -> Iterator[Record]:
    """All records of a source, in order.  A text file is one record; a line of .jsonl or a row of .parquet is one, its
    text under `text` or its conversation under `messages`.

    Raises MinitronError where a file is missing or no text, and past the limit of `broken`."""
    if source.path is None:
        yield from _rows(source.name, _from_hub(source.place.removeprefix(HUB)), broken)
        return
    for file in source.files():
        if not file.is_file():
            raise MinitronError(f"{file} does not exist; give text, .jsonl or .parquet files, or a folder of them.")
        if file.suffix == ".parquet":
            yield from _rows(str(file), _from_parquet(file), broken)
            continue
        try:
            if file.suffix == ".jsonl":
                yield from _lines(file, broken)
            else:
                yield file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise MinitronError(f"{file} is not UTF-8 text ({error}); convert it first.") from None


def _lines(file: Path, broken: Broken) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                broken.add(f"{file} line {number}", f"is not JSON ({error})")
                continue
            record = _record(row)
            if record is None:
                broken.add(f"{file} line {number}", "has no string `text` and no `messages` with role and content")
            else:
                yield record


def _rows(name: str, rows: Iterator[Any], broken: Broken) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        record = _record(row)
        if record is None:
            broken.add(f"{name} row {number}", "has no string `text` and no `messages` with role and content")
        else:
            yield record


def _record(row: Any) -> Record | None:
    if not isinstance(row, dict):
        return None
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        wanted = [
            {"role": message["role"], "content": message["content"]}
            for message in messages
            if isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ]
        return wanted if len(wanted) == len(messages) else None
    text = row.get("text")
    return text if isinstance(text, str) else None


def _from_parquet(file: Path) -> Iterator[Any]:
    import datasets
    import pyarrow

    try:
        yield from datasets.load_dataset("parquet", data_files=str(file), split="train", streaming=True)
    except pyarrow.ArrowInvalid as error:
        raise MinitronError(f"{file} is not a readable Parquet file ({error}); write it again.") from None


def _from_hub(name: str) -> Iterator[Any]:
    import datasets

    try:
        found = datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise MinitronError(
            f"the dataset {name} cannot be loaded from the hub ({error}); check the name and the "
            "network, or give a file."
        ) from None
    yield from found
