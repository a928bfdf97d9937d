"""Arrays larger than memory: on disk, memory-mapped for reading, and written without a second copy."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_DTYPES: Final = {"float64": "F64", "float32": "F32"}
"""numpy's name of a dtype -> safetensors'."""


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
