"""Slabs: runs of a tensor's rows, read from a safetensors file into memory of their own while the one before is used.

Nothing is mapped: a file that becomes shorter meanwhile is an error that can be told, and what was read is given back
as soon as it is let go."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from minitron.errors import MinitronError
from minitron.model.filling import is_passing
from minitron.model.headers import Header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLAB_BYTES: Final = 2**23
"""The bytes of a slab: of this size the C library gives the memory of the last one to the next, which a processor's
caches may hold, and a matrix multiplies as fast as a whole tensor."""

AHEAD_BYTES: Final = 4 * SLAB_BYTES
"""How much is read ahead, and how much may wait to be written."""


FETCHED_BYTES: Final = 2**31
"""How much is asked for before it is read."""


@contextmanager
def fetching(headers: Iterable[Header]) -> Iterator[None]:
    """While the block runs the system reads the first FETCHED_BYTES of these tensors, where it can be asked to: the
    disk works while libraries are loaded."""
    left, wanted = FETCHED_BYTES, []
    for header in headers:
        if left > 0:
            wanted.append((header.file, header.start, min(left, header.num_bytes)))
            left -= header.num_bytes

    def fetch() -> None:
        for file, start, size in wanted:
            with suppress(OSError), file.open("rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), start, size, os.POSIX_FADV_WILLNEED)

    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        if sys.platform == "linux":
            pool.submit(fetch)
        yield


@cache
def dtypes() -> dict[str, torch.dtype]:
    """As safetensors spells it -> torch's dtype, in the order in which safetensors lays tensors in a file."""
    import torch

    return {
        "U64": torch.uint64,
        "I64": torch.int64,
        "F64": torch.float64,
        "C64": torch.complex64,
        "F32": torch.float32,
        "U32": torch.uint32,
        "I32": torch.int32,
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "U16": torch.uint16,
        "I16": torch.int16,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I8": torch.int8,
        "U8": torch.uint8,
        "F4": torch.float4_e2m1fn_x2,
        "BOOL": torch.bool,
    }


def shape_in_torch(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch gives a tensor: a number of its F4 is two."""
    return (*shape[:-1], shape[-1] // 2) if dtype == "F4" and shape else shape


def runs(length: int, num_bytes: int) -> list[tuple[int, int]]:
    """[start, stop) of the runs, of SLAB_BYTES or one entry each, of a dimension of this length of a tensor of these
    bytes."""
    step = max(1, SLAB_BYTES * length // num_bytes) if num_bytes > SLAB_BYTES else max(1, length)
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def row_runs(shape: tuple[int, ...], num_bytes: int) -> list[tuple[int, int]]:
    """The runs of rows in which a tensor is read and cut; numbers in a row are one run."""
    if len(shape) < 2 or not shape[0]:
        return [(0, shape[0] if shape else 1)]
    return runs(shape[0], num_bytes)


def read_rows(header: Header, start: int = 0, stop: int | None = None) -> Tensor:
    """The rows `start` to `stop` of a tensor, all of it unless they are given.

    Raises MinitronError where the file has become shorter, or torch has no such numbers."""
    import torch

    dtype = dtypes().get(header.dtype)
    if dtype is None:
        raise MinitronError(
            f"{header.file} holds numbers in {header.dtype}, which torch cannot read; convert it first."
        )
    shape = shape_in_torch(header.dtype, header.shape)
    skipped = 0
    size = header.num_bytes
    if stop is not None and shape:
        row = header.num_bytes // shape[0] if shape[0] else 0
        skipped, size, shape = start * row, (stop - start) * row, (stop - start, *shape[1:])
    buffer = torch.empty(size, dtype=torch.uint8)
    view, done = buffer.numpy().data, 0
    with header.file.open("rb", buffering=0) as stream:
        stream.seek(header.start + skipped)
        while done < size:
            count = stream.readinto(view[done:])
            if not count:
                raise MinitronError(f"{header.file} became shorter while it was read; copy it again.")
            done += count
        if is_passing(header.file.stat().st_size):
            os.posix_fadvise(stream.fileno(), header.start + skipped, size, os.POSIX_FADV_DONTNEED)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    return buffer.view(dtype).reshape(shape)


@dataclass(frozen=True)
class Slab:
    """Rows of a tensor that are to be read."""

    name: str
    start: int
    """The first row."""

    num_bytes: int
    read: Callable[[], Tensor]


def read_ahead(slabs: Iterable[Slab]) -> Generator[tuple[Slab, Tensor]]:
    """Every slab with its rows, in order; a thread reads up to AHEAD_BYTES, or one slab, ahead."""
    ahead: deque[tuple[Slab, Future[Tensor]]] = deque()
    waiting = 0
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        try:
            for slab in slabs:
                while ahead and waiting + slab.num_bytes > AHEAD_BYTES:
                    first, rows = ahead.popleft()
                    waiting -= first.num_bytes
                    yield first, rows.result()
                ahead.append((slab, pool.submit(slab.read)))
                waiting += slab.num_bytes
            while ahead:
                first, rows = ahead.popleft()
                yield first, rows.result()
        finally:
            pool.shutdown(cancel_futures=True)
