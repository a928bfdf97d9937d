"""Data files are told apart by what is in them, or refused by name, alone and in a folder; none fills the memory."""

import bz2
import gzip
import json
import lzma
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyarrow
import pytest
from pyarrow import parquet

from minitron.errors import MinitronError
from minitron.measure import parquet as bounded
from minitron.measure import unpacked
from minitron.measure.records import Broken, Source, records

TEXTS: Final = ["Anna sees three birds.", 'Ben eats "bread", and salt.']
ROWS: Final = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def _csv(delimiter: str) -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return "\n".join(["id" + delimiter + "text", *(f"{n}{delimiter}{text}" for n, text in enumerate(quoted))]).encode()


def _parquet(folder: Path) -> bytes:
    parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "whole")
    data = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    return data


LINES: Final = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONTENTS: Final[dict[str, Callable[[Path], bytes]]] = {
    "lines": lambda folder: LINES,
    "lines with a mark": lambda folder: b"\xef\xbb\xbf\n\n" + LINES,
    "array": lambda folder: json.dumps(ROWS).encode(),
    "array over lines": lambda folder: json.dumps(ROWS, indent=2).encode(),
    "parquet": _parquet,
    "gzip": lambda folder: gzip.compress(LINES),
    "bzip2": lambda folder: bz2.compress(json.dumps(ROWS).encode()),
    "xz": lambda folder: lzma.compress(_csv(",")),
    "table": lambda folder: _csv(","),
    "tabs": lambda folder: _csv("\t"),
    "semicolons": lambda folder: _csv(";"),
}
ENDINGS: Final = (
    "",
    ".jsonl",
    ".JSONL",
    ".ndjson",
    ".json",
    ".txt",
    ".md",
    ".csv",
    ".tsv",
    ".parquet",
    ".dat",
    ".0001",
)


def told(path: Path) -> list[str | None] | str:
    """The texts of a file or folder, or how it is refused."""
    try:
        return [record.text for record in records(Source(str(path)), Broken())]
    except MinitronError as error:
        return str(error)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", CONTENTS)
def test_the_same_records_or_a_refusal_by_name(content: str, ending: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / f"train{ending}"
    file.write_bytes(CONTENTS[content](tmp_path))
    alone, inside = told(file), told(folder)
    assert alone == inside
    if isinstance(alone, str):
        # What is called JSON or Parquet and is a table is refused: nothing is read as one running text.
        assert ending.lower() in (".json", ".jsonl", ".ndjson", ".parquet") and str(file) in alone
    else:
        assert alone == TEXTS


@pytest.mark.parametrize("ending", ["", ".txt", ".md", ".text", ".0002"])
@pytest.mark.parametrize(
    "text", ["Anna, text and all.\nBen\n", "text\nfirst\n", "[a] {b}", "a|b\nc|d", "id,words\n1,x\n"]
)
def test_a_text_stays_a_text(text: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"corpus{ending}").write_text(text)
    assert told(tmp_path / f"corpus{ending}") == told(tmp_path) == [text]


REFUSED: Final = {
    "zstd": (b"\x28\xb5\x2f\xfd rest", "compressed with Zstandard; unpack it first"),
    "zip": (b"PK\x03\x04 rest", "a ZIP archive; unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c rest", "a 7-Zip archive; unpack it first"),
    "tar": (b"\0" * 257 + b"ustar", "a tar archive; unpack it first"),
    "tar.gz": (gzip.compress(b"\0" * 257 + b"ustar"), "a tar archive; unpack it first"),
    "arrow": (b"ARROW1\0\0", "an Arrow file; write it as Parquet first"),
    "pdf": (b"%PDF-1.7", "a PDF; give its text"),
}


@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.txt", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_in_a_folder_too(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("A text beside it.")
    (tmp_path / name).write_bytes(REFUSED[kind][0])
    assert told(tmp_path / name) == told(tmp_path) == f"{tmp_path / name} is {REFUSED[kind][1]}."


def test_what_stands_beside_data_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for name in ("LICENSE", "README", ".gitattributes", "notes.log", "load.py", "picture.png", "weights"):
        (tmp_path / name).write_bytes(b"\x89\0 not text" if name in ("picture.png", "weights") else b"Some words.\n")
    assert told(tmp_path) == TEXTS


def test_an_empty_record_and_a_broken_line_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{half\n[{"text": "an array"}]\n')
    broken = Broken(5, "--most-broken")
    assert [record.where for record in records(Source(str(tmp_path / "a.jsonl")), broken)] == [
        f"{tmp_path}/a.jsonl line 1"
    ]
    assert [name.split(" is ")[0].split(" has ")[0] for name in broken.named] == [
        f"{tmp_path}/a.jsonl line 3",
        f"{tmp_path}/a.jsonl line 4",
    ]


# --- bombs --------------------------------------------------------------------------------------------------------


def write_shared_text(path: Path, *, megabytes: int, rows: int, nested: bool) -> None:
    """A Parquet file in which every row has the same long text, which is stored once."""
    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), ["x" * megabytes * 2**20])
    column = shared
    if nested:
        message = pyarrow.StructArray.from_arrays(
            [pyarrow.array(["user"] * rows), shared.cast("string")], ["role", "content"]
        )
        column = pyarrow.ListArray.from_arrays(pyarrow.array(range(rows + 1), pyarrow.int32()), message)
    parquet.write_table(pyarrow.table({"messages" if nested else "text": column}), path, compression="zstd")


@pytest.mark.parametrize("nested", [False, True], ids=["texts", "conversations"])
def test_a_parquet_file_that_stands_for_gigabytes(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "ALLOWED", 2**24)
    file = tmp_path / "a.parquet"
    write_shared_text(file, megabytes=1, rows=40, nested=nested)
    assert file.stat().st_size < 60_000
    assert "stands for more than 16.000 MiB, as no text does" in str(told(file))


def test_rows_that_share_a_text_are_read_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_AT_ONCE", 2**20)
    for nested in (False, True):
        file = tmp_path / f"{nested}.parquet"
        write_shared_text(file, megabytes=1, rows=5, nested=nested)
        found = list(records(Source(str(file)), Broken()))
        assert [one.messages[0]["content"] if nested else one.text for one in found] == ["x" * 2**20] * 5


def test_numbers_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "ALLOWED", 2**20)
    zeros = pyarrow.array([0] * 10**6)
    parquet.write_table(pyarrow.table({"text": pyarrow.nulls(10**6, "string"), "a": zeros}), tmp_path / "a.parquet")
    with pytest.raises(MinitronError, match="stands for more than"):
        list(records(Source(str(tmp_path / "a.parquet")), Broken(10**9, "--most-broken")))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a"])
def test_a_packed_file_that_grows_without_end(
    ending: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked, "ALLOWED", 2**20)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    file = tmp_path / f"{name}{ending}"
    file.write_bytes(pack(b"x" * 2**23))
    assert re.search(r"grows beyond 1\.\d+ MiB as it is unpacked, as no text does", str(told(file)))
    (tmp_path / "small").mkdir()
    small = tmp_path / "small" / f"b.txt{ending}"
    small.write_bytes(pack(b"x" * 2**19))
    assert told(small) == ["x" * 2**19]


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    """Kilobytes that stand for 300 MB and 54 GB, in a process that may have 3 GiB."""
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=1) as stream:
        for _ in range(300):
            stream.write(b" " * 2**20)
    write_shared_text(tmp_path / "b.parquet", megabytes=54, rows=1000, nested=False)
    code = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
        from minitron.errors import MinitronError
        from minitron.measure.records import Broken, Source, records
        for place in sys.argv[1:]:
            try:
                sum(1 for _ in records(Source(place), Broken()))
            except MinitronError as error:
                print(error)
    """
    places = [str(tmp_path / "a.txt.gz"), str(tmp_path / "b.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *places], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "a.txt.gz has" in first and "grows beyond" in first
    assert "b.parquet has" in second and "stands for more than" in second
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20
