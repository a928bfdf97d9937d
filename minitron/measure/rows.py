"""Rows of data files: texts, JSON lines and arrays, tables; read by what is in a file where its name does not say."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from minitron.errors import MinitronError

# UTF-8, with or without the byte order mark that some editors put in front of a file.
_ENCODING: Final = "utf-8-sig"

_LONGEST_CELL: Final = 2**31 - 1
"""Characters in a cell of a .csv file; the module's own limit of 131,072 is less than a long document."""


@dataclass(frozen=True)
class Row:
    """One record as it stands in a file."""

    where: str
    """The file and the line or number, for messages."""

    value: Any
    """The whole text of a text file (a string), or what a record holds (mostly a dict)."""

    flaw: str = ""
    """What is wrong with it, where it could not be parsed."""


def rows(file: Path) -> Iterator[Row]:
    """The rows of a file, in order; a text file is one.

    Raises MinitronError where the file is missing, compressed in an unknown way, not UTF-8, or no table."""
    if not file.is_file():
        raise MinitronError(f"{file} does not exist; give text, JSON, .csv or .parquet files, or a folder of them.")
    kind = _kind(file)
    if kind in _UNREADABLE:
        raise MinitronError(f"{file} is {_UNREADABLE[kind]}; unpack it first.")
    try:
        yield from _KINDS.get(kind, _sniffed)(file)
    except UnicodeDecodeError as error:
        raise MinitronError(f"{file} is not UTF-8 text ({error}); convert it first.") from None
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        # gzip and bz2 tell of broken data by an OSError, too: one without the system's number.
        if getattr(error, "errno", None) is not None:
            raise
        raise MinitronError(f"{file} cannot be unpacked ({error}); copy it again.") from None


def is_data(file: Path) -> bool:
    """Whether a file of a folder is read: one of a known kind that is not a description of the data."""
    return file.is_file() and _kind(file) in _KINDS and file.name not in _DESCRIPTIONS


def _kind(file: Path) -> str:
    """The ending that says what is in a file, in small letters."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(file: Path, *, newline: str | None = None) -> IO[str]:
    opener = _OPENERS.get(file.suffix.lower(), open)
    found: IO[str] = opener(file, "rt", encoding=_ENCODING, newline=newline)
    return found


def _text(file: Path) -> Iterator[Row]:
    with _open(file) as stream:
        yield Row(str(file), stream.read())


def _lines(file: Path) -> Iterator[Row]:
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file} line {number}"
            try:
                yield Row(where, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Row(where, None, f"is not JSON ({error})")


def _json(file: Path) -> Iterator[Row]:
    """An array of records, a record a line, or one record over several lines."""
    if _first_line_is_a_record(file):
        yield from _lines(file)
        return
    with _open(file) as stream:
        try:
            whole = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise MinitronError(
                f"{file} is neither one JSON document nor JSON lines ({error}); correct it, or name it .txt where it "
                "is plain text."
            ) from None
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield Row(f"{file} record {number}", value)


def _first_line_is_a_record(file: Path) -> bool:
    with _open(file) as lines:
        for line in lines:
            if line.strip():
                try:
                    return isinstance(json.loads(line), dict)
                except (ValueError, RecursionError):
                    return False
    return False


def _sniffed(file: Path) -> Iterator[Row]:
    """Of a file whose name says nothing, or says text: records where it begins as JSON does, else one text."""
    with _open(file) as stream:
        start = stream.read(2**12).lstrip()
    # A text may begin with a bracket; an array of records begins with two.
    array = start[:1] == "[" and start[1:].lstrip()[:1] == "{"
    return _json(file) if array or _first_line_is_a_record(file) else _text(file)


def _table(file: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with _open(file, newline="") as stream:
        try:
            for number, row in enumerate(csv.DictReader(stream, delimiter=delimiter), 1):
                yield Row(f"{file} row {number}", row)
        except csv.Error as error:
            raise MinitronError(f"{file} is no table of values ({error}); write it again.") from None


def _parquet(file: Path) -> Iterator[Row]:
    import datasets
    import pyarrow

    try:
        found = datasets.load_dataset(
            "parquet", data_files=str(file), split="train", streaming=True, trust_remote_code=False
        )
        for number, row in enumerate(found, 1):
            yield Row(f"{file} row {number}", row)
    except pyarrow.ArrowInvalid as error:
        raise MinitronError(f"{file} is not a readable Parquet file ({error}); write it again.") from None


_DATASET: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def rows_from_hub(name: str) -> Iterator[Row]:
    """The rows of a dataset on the hub, one after the other; raises MinitronError where it cannot be had, or the name
    is not one of the hub's: datasets would take a path, too, and a name of its own formats for the folder it is in."""
    if _DATASET.fullmatch(name) is None or ".." in name:
        raise MinitronError(f"hf:{name} is no dataset on the hub; write it like hf:owner/name, or a path without hf:.")
    if Path(name).exists():
        raise MinitronError(f"hf:{name} is also a path here; give {name} for that, or run elsewhere.")
    import datasets

    try:
        found = datasets.load_dataset(name, split="train", streaming=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MinitronError(
            f"the dataset {name} cannot be loaded from the hub ({error}); check the name and the network, or give a "
            "file."
        ) from None
    for number, row in enumerate(found, 1):
        yield Row(f"hf:{name} row {number}", row)


_OPENERS: Final[dict[str, Callable[..., Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Ending of a compressed file -> what opens it."""

_UNREADABLE: Final = {
    ".zst": "compressed with Zstandard",
    ".zip": "a ZIP archive",
    ".tar": "a tar archive",
    ".tgz": "a tar archive",
    ".7z": "a 7-Zip archive",
}

_KINDS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    ".txt": _sniffed,
    ".md": _text,
    ".text": _sniffed,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": lambda file: _table(file, ","),
    ".tsv": lambda file: _table(file, "\t"),
    ".parquet": _parquet,
}
"""Ending -> reader; a file with another ending is read by what is in it, where it is named outright."""

KINDS: Final = tuple(_KINDS)
"""What is read of a folder."""

_DESCRIPTIONS: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that datasets writes beside the data."""
