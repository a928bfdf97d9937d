"""Filling: files whose bytes come in any order, and go to the disk past the system's memory where that is better."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

_LARGE: Final = 1 / 16
"""The share of the machine's memory from which bytes are not worth the memory in which the system would keep them."""

_BLOCK: Final = 2**12
"""Addresses, places and lengths of what goes past the system's memory are multiples of this: no disk has larger
logical blocks, and no smaller pages stand in front of it."""

_BUFFER_BYTES: Final = 2**23


def is_passing(num_bytes: int) -> bool:
    """Whether files of these bytes go through memory and do not stay there: keeping them costs the system more than
    reading them again, and what it would push out."""
    if sys.platform != "linux":
        return False
    return num_bytes > _LARGE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Filling:
    """A file that is being filled.

    Where it is `passing`, whole blocks go to the disk past the system's memory, if the file system can do that; what is
    left at both ends of a piece goes through it.  No block is written both ways: two pieces that share one hold parts
    of it."""

    def __init__(self, path: Path, *, passing: bool) -> None:
        self.path = path
        self.stream: BinaryIO = path.open("wb", buffering=0)
        self._direct = _open_direct(path) if passing else None
        # Of mapped memory because its address is a multiple of a page.
        self._buffer = None if self._direct is None else mmap.mmap(-1, _BUFFER_BYTES)

    @property
    def is_direct(self) -> bool:
        """Whether whole blocks go past the system's memory."""
        return self._direct is not None

    def put(self, place: int, data: memoryview) -> None:
        """Write all of `data` at `place`; raises OSError, with the file's name, where the disk does not take it."""
        with _naming(self.path):
            first = min(-place % _BLOCK, len(data))
            last = first + (len(data) - first) // _BLOCK * _BLOCK
            if self._direct is None or last == first:
                self._put_through(place, data)
                return
            self._put_through(place, data[:first])
            self._put_past(place + first, data[first:last])
            self._put_through(place + last, data[last:])

    def _put_through(self, place: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            # A disk that is nearly full takes less, and tells of it at the next call.
            done += os.pwrite(self.stream.fileno(), data[done:], place + done)
        if sys.platform == "linux" and self._direct is None:
            # Asks the kernel to begin writing to the disk, instead of at some gigabytes or at the end.
            os.posix_fadvise(self.stream.fileno(), place, len(data), os.POSIX_FADV_DONTNEED)

    def _put_past(self, place: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            if self._direct is None or self._buffer is None:
                self._put_through(place + done, data[done:])
                return
            size = min(_BUFFER_BYTES, len(data) - done)
            self._buffer[:size] = data[done : done + size]
            try:
                with memoryview(self._buffer)[:size] as whole:
                    written = os.pwrite(self._direct, whole, place + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                written = 0  # a file system that opens what it cannot write
            # Where a disk is nearly full, what it took last may end within a block; the other way tells why.
            done += written // _BLOCK * _BLOCK
            if written < size:
                self._abandon_direct()

    def close(self) -> None:
        """The bytes reach the disk before the folder gets its name."""
        if not self.stream.closed:
            with _naming(self.path):
                os.fsync(self.stream.fileno())
                self.abandon()

    def abandon(self) -> None:
        """Let the file go as it is."""
        self._abandon_direct()
        self.stream.close()

    def _abandon_direct(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None


def _open_direct(path: Path) -> int | None:
    """None where the system or the file system has no such way."""
    if sys.platform != "linux":
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The system's errors name no file of one that is open."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
