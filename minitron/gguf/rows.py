"""Rows of numbers in the types of ggml, and what is read back of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.gguf.extra import quantise_rows, writer
from minitron.memory.ggml import TYPES


def quantised(kind: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """[R, C] in a type, row after row; `importance` [C] is how much the squared error of each column counts.

    Raises ValueError where ggml writes another number of bytes than the type takes."""
    if kind == "f16":
        return rows.astype(np.float16).view(np.uint8)
    if kind == "f32":
        return rows.view(np.uint8)
    count, columns = rows.shape
    data = np.empty(int(TYPES[kind].layout.matrix(count, columns)), dtype=np.uint8)
    weight = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        weight = importance.ctypes.data_as(ctypes.c_void_p)
    written = quantise_rows()(
        TYPES[kind].number,
        rows.ctypes.data_as(ctypes.c_void_p),
        data.ctypes.data_as(ctypes.c_void_p),
        *(0, count, columns),
        weight,
    )
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
