"""Data files as streams of text: unpacked as they are read, by what they begin with rather than by their names.

A packed file may say ten thousand times as much as it holds, and a text never does: one that grows beyond that is
refused before it fills the memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from minitron.errors import MinitronError
from minitron.units import format_bytes

# UTF-8, with or without the byte order mark that some editors put in front of a file.
_ENCODING: Final = "utf-8-sig"

ALLOWED: Final = 2**28
"""Bytes to which any packed file may grow."""

RATIO: Final = 200
"""How many times its size a larger one may: texts come to 3 to 30."""

PACKINGS: Final[dict[str, tuple[bytes, Callable[..., Any]]]] = {
    ".gz": (b"\x1f\x8b\x08", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
}
"""Ending of a packed file -> how it begins, and what opens it."""

_UNREADABLE: Final = {
    (0, b"\x28\xb5\x2f\xfd"): ("compressed with Zstandard", "unpack it first"),
    (0, b"\x04\x22\x4d\x18"): ("compressed with LZ4", "unpack it first"),
    (0, b"PK\x03\x04"): ("a ZIP archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c"): ("a 7-Zip archive", "unpack it first"),
    (0, b"Rar!"): ("a RAR archive", "unpack it first"),
    (257, b"ustar"): ("a tar archive", "unpack it first"),
    (0, b"ARROW1"): ("an Arrow file", "write it as Parquet first"),
    (0, b"\xff\xff\xff\xff"): ("an Arrow file", "write it as Parquet first"),
    (0, b"%PDF-"): ("a PDF", "give its text"),
    (0, b"SQLite format 3"): ("a database", "give its text"),
    (0, b"\x89HDF"): ("an HDF5 file", "give its text"),
}
"""(place, what stands there) in files that are not read -> what they are, and what to do."""

_ENDINGS: Final = {
    ".zst": (0, b"\x28\xb5\x2f\xfd"),
    ".lz4": (0, b"\x04\x22\x4d\x18"),
    ".zip": (0, b"PK\x03\x04"),
    ".7z": (0, b"7z\xbc\xaf\x27\x1c"),
    ".rar": (0, b"Rar!"),
    ".tar": (257, b"ustar"),
    ".tgz": (257, b"ustar"),
    ".arrow": (0, b"ARROW1"),
}
"""Endings of such files, which may be empty or cut off."""


def unreadable(file: Path) -> tuple[str, str] | None:
    """What a file is that is not read, and what to do; None for all others."""
    last = file.suffix.lower()
    if last in _ENDINGS:
        return _UNREADABLE[_ENDINGS[last]]
    start = beginning(file)
    found = (told for (place, sign), told in _UNREADABLE.items() if start[place : place + len(sign)] == sign)
    return next(found, None)


def beginning(file: Path, size: int = 512) -> bytes:
    """The first bytes of a file, unpacked; none where it cannot be unpacked."""
    try:
        with _open_bytes(file) as stream:
            return stream.read(size)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        return b""


def open_text(file: Path, *, newline: str | None = None) -> IO[str]:
    """A file as text, unpacked; raises MinitronError, as it is read, where it grows beyond what a text can."""
    return io.TextIOWrapper(io.BufferedReader(_open_bytes(file)), encoding=_ENCODING, newline=newline)


def _open_bytes(file: Path) -> io.RawIOBase:
    with file.open("rb") as stream:
        start = stream.read(16)
    for ending, (sign, opener) in PACKINGS.items():
        if file.suffix.lower() == ending or start.startswith(sign):
            return _Unpacked(file, opener(file, "rb"))
    return file.open("rb", buffering=0)


class _Unpacked(io.RawIOBase):
    """What is in a packed file, counted."""

    def __init__(self, file: Path, stream: IO[bytes]) -> None:
        self._file, self._stream, self._read = file, stream, 0
        self._most = max(ALLOWED, RATIO * file.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        found = self._stream.read(len(view))
        view[: len(found)] = found
        self._read += len(found)
        if self._read > self._most:
            packed, most = format_bytes(self._file.stat().st_size), format_bytes(self._most)
            raise MinitronError(
                f"{self._file} has {packed} and grows beyond {most} as it is unpacked, as no text does; unpack it "
                "yourself if it is one."
            )
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()
