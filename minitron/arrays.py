"""Arrays: those larger than memory, on disk and written without a second copy, and indices spread over one."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError

_DTYPES: Final = {"float64": "F64", "float32": "F32"}
"""numpy's name of a dtype -> safetensors'."""


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` of `count` indices, spread evenly from the first to the last."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


class StoredArray:
    """Numbers in a file, in a row: read when a slice of them is asked for.

    The file is not mapped, because one that becomes shorter while it is would end the process."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._size = path.stat().st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> NDArray[Any]:
        """[N] numbers, in memory of their own.  Raises MinitronError where the file has become shorter."""
        start, stop, _ = place.indices(self._size)
        count = max(0, stop - start)
        with self.path.open("rb") as file:
            found: NDArray[Any] = np.fromfile(file, self.dtype, count, offset=start * self.dtype.itemsize)
        if len(found) < count:
            raise MinitronError(f"{self.path} became shorter while it was read; remove its folder and run again.")
        return found


def store(array: NDArray[Any], folder: Path | None, name: str) -> NDArray[Any]:
    """`array` itself, or, given a folder, the same numbers mapped from the file `name`.npy in it."""
    if folder is None:
        return array
    path = folder / f"{name}.npy"
    np.save(path, array)
    mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def release(array: NDArray[Any]) -> None:
    """Give back the memory in which a mapped array's pages lie: they are read again when they are needed."""
    pages = getattr(array, "_mmap", None)
    if isinstance(pages, mmap.mmap):
        pages.madvise(mmap.MADV_DONTNEED)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, array by array: the library's own writer first makes a copy of them all."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header).encode()
    # The format asks for data that begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            np.ascontiguousarray(array).tofile(file)
            release(array)
