"""Rows of data files: texts, JSON lines and arrays, tables; read by what is in a file where its name does not say."""

from __future__ import annotations

import csv
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.measure.parquet import SIGN, parquet_rows
from minitron.measure.unpacked import PACKINGS, beginning, open_text, unreadable

_LONGEST_CELL: Final = 2**31 - 1
"""Characters in a cell of a .csv file; the module's own limit of 131,072 is less than a long document."""

_LONGEST_LINE: Final = 2**28
"""Characters of a record that is one line."""


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
    if (told := unreadable(file)) is not None:
        raise MinitronError(f"{file} is {told[0]}; {told[1]}.")
    try:
        yield from _reader(file)(file)
    except UnicodeDecodeError as error:
        raise MinitronError(f"{file} is not UTF-8 text ({error}); convert it first.") from None
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        # gzip and bz2 tell of broken data by an OSError, too: one without the system's number.
        if getattr(error, "errno", None) is not None:
            raise
        raise MinitronError(f"{file} cannot be unpacked ({error}); copy it again.") from None


def _reader(file: Path) -> Callable[[Path], Iterator[Row]]:
    """What reads a file: its name says what it should be, and its first bytes what it is."""
    if beginning(file, len(SIGN)) == SIGN:
        return _parquet
    return _KINDS.get(_kind(file), _sniffed)


def is_data(file: Path) -> bool:
    """Whether a file of a folder is read, or refused as one that should be: not a description of the data, and not what
    stands beside data.  A file whose ending says nothing is read if it holds records, one without an ending always."""
    name = file.name
    if not file.is_file() or name.startswith(".") or name in _DESCRIPTIONS:
        return False
    kind = _kind(file)
    if kind in _KINDS or unreadable(file) is not None or beginning(file, len(SIGN)) == SIGN:
        return True
    try:
        if _holds_records(file) or _delimiter(file) is not None:
            return True
        without_ending = kind == "" or kind[1:].isdigit()
        return without_ending and file.stem.upper() not in _BESIDE and b"\0" not in beginning(file)
    except UnicodeDecodeError:
        return False


def _kind(file: Path) -> str:
    """The ending that says what is in a file, in small letters."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _text(file: Path) -> Iterator[Row]:
    with open_text(file) as stream:
        yield Row(str(file), stream.read())


def _lines(file: Path) -> Iterator[Row]:
    with open_text(file) as lines:
        number = 0
        while line := lines.readline(_LONGEST_LINE):
            number += 1
            where = f"{file} line {number}"
            if len(line) == _LONGEST_LINE:
                raise MinitronError(f"{where} has more than {_LONGEST_LINE:,} characters; split it.")
            if not line.strip():
                continue
            try:
                yield Row(where, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Row(where, None, f"is not JSON ({error})")


def _json(file: Path) -> Iterator[Row]:
    """An array of records, a record a line, or one record over several lines."""
    if _first_line_is_a_record(file):
        yield from _lines(file)
        return
    with open_text(file) as stream:
        try:
            whole = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise MinitronError(
                f"{file} is neither one JSON document nor JSON lines ({error}); correct it, or name it .txt where it "
                "is plain text."
            ) from None
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield Row(f"{file} record {number}", value)


def _json_lines(file: Path) -> Iterator[Row]:
    """A record a line, which may be broken; or an array, whatever the name says."""
    return _json(file) if _starts_an_array(file) and not _first_line_is_json(file) else _lines(file)


def _first_line_is_a_record(file: Path) -> bool:
    return isinstance(_first_line(file), dict)


def _first_line_is_json(file: Path) -> bool:
    return _first_line(file) is not None


def _first_line(file: Path) -> Any:
    """What the first line that is not empty says as JSON; None where it is none."""
    with open_text(file) as stream:
        start = stream.read(2**12).lstrip()
    if start and start[0] not in "{[":
        return None  # a text may be one line of gigabytes
    with open_text(file) as lines:
        while line := lines.readline(_LONGEST_LINE):
            if line.strip():
                try:
                    return json.loads(line)
                except (ValueError, RecursionError):
                    return None
    return None


def _starts_an_array(file: Path) -> bool:
    """A text may begin with a bracket; an array of records begins with two."""
    with open_text(file) as stream:
        start = stream.read(2**12).lstrip()
    return start[:1] == "[" and start[1:].lstrip()[:1] == "{"


def _holds_records(file: Path) -> bool:
    return _starts_an_array(file) or _first_line_is_a_record(file)


def _sniffed(file: Path) -> Iterator[Row]:
    """Of a file whose name says nothing, or says text: records where it begins as JSON or as a table of them does, else
    one text."""
    if _holds_records(file):
        return _json(file)
    return _text(file) if _delimiter(file) is None else _table(file)


def _delimiter(file: Path) -> str | None:
    """What stands between the cells of a table whose head names what records hold; None of what is no such table."""
    with open_text(file, newline="") as stream:
        head = stream.readline(2**16).strip()
    for delimiter in _DELIMITERS:
        cells = head.split(delimiter)
        names = {cell.strip().strip('"') for cell in cells}
        if len(cells) > 1 and len(names) == len(cells) and "" not in names and names & _COLUMNS:
            return delimiter
    return None


_DELIMITERS: Final = (",", "\t", ";", "|")

_COLUMNS: Final = frozenset({"text", "messages", "conversations", "prompt", "completion", "instruction", "output"})
"""Names of columns of which a record is made."""


def _separated(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    """A reader of tables whose cells should be separated by that."""
    return lambda file: _json(file) if _holds_records(file) else _table(file, delimiter)


def _table(file: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with open_text(file, newline="") as stream:
        try:
            for number, row in enumerate(csv.DictReader(stream, delimiter=_delimiter(file) or delimiter), 1):
                yield Row(f"{file} row {number}", row)
        except csv.Error as error:
            raise MinitronError(f"{file} is no table of values ({error}); write it again.") from None


def _parquet(file: Path) -> Iterator[Row]:
    for number, row in enumerate(parquet_rows(file), 1):
        yield Row(f"{file} row {number}", row)


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


_KINDS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    ".txt": _sniffed,
    ".md": _sniffed,
    ".text": _sniffed,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""Ending -> reader; a file with another ending is read by what is in it."""

KINDS: Final = tuple(_KINDS)
"""What is read of a folder whatever is in it."""

_DESCRIPTIONS: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that datasets writes beside the data."""

_BESIDE: Final = frozenset(
    {"README", "LICENSE", "LICENCE", "NOTICE", "COPYING", "AUTHORS", "CHANGELOG", "VERSION", "MAKEFILE"}
)
"""Texts without an ending that stand beside data."""
