"""Rows of numbers in the types of ggml, and what is read back of them."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.gguf.extra import quantise_rows, writer
from minitron.memory.ggml import TYPES


def quantised(kind: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """[R, C] in a type, row after row; `importance` [C] is how much the squared error of each column counts: of types
    that ggml makes with one alone all columns count the same where none is given, as those of an embedding do.

    Raises ValueError where ggml writes another number of bytes than the type takes."""
    if kind == "f16":
        return rows.astype(np.float16).view(np.uint8)
    if kind == "f32":
        return rows.view(np.uint8)
    count, columns = rows.shape
    row_bytes = int(TYPES[kind].layout.matrix(1, columns))
    data = np.empty(count * row_bytes, dtype=np.uint8)
    weight = None
    if importance is None and TYPES[kind].calibrated:
        importance = np.ones(columns, dtype=np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        weight = importance.ctypes.data_as(ctypes.c_void_p)
    quantise = quantise_rows()

    def part(start: int, stop: int) -> int:
        own, place = rows[start:stop], data[start * row_bytes : stop * row_bytes]
        pointers = own.ctypes.data_as(ctypes.c_void_p), place.ctypes.data_as(ctypes.c_void_p)
        return int(quantise(TYPES[kind].number, *pointers, 0, stop - start, columns, weight))

    # Rows do not know of each other, and ggml works on one thread.
    bounds = np.linspace(0, count, min(count, cpu_count() or 1) + 1).round().astype(int).tolist()
    with ThreadPoolExecutor(len(bounds) - 1) as threads:
        written = sum(threads.map(part, bounds[:-1], bounds[1:]))
    if written != data.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {kind}, not {data.nbytes}")
    return data


def read_back(kind: str, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """[R, C] from what `quantised` gave, or a file holds, of rows of so many numbers."""
    gguf: Any = writer()
    found = gguf.quants.dequantize(
        data.reshape(-1, int(TYPES[kind].layout.matrix(1, columns))), gguf.GGMLQuantizationType(TYPES[kind].number)
    )
    return np.asarray(found, dtype=np.float32).reshape(-1, columns)
