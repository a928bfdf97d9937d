"""Shards: the safetensors files of a checkpoint, laid out before a tensor is there and filled as tensors come."""

from __future__ import annotations

import json
import math
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from minitron.files import write_json
from minitron.model.filling import Filling, is_passing
from minitron.model.headers import BITS, Header
from minitron.model.slabs import AHEAD_BYTES, dtypes, shape_in_torch
from minitron.model.weight_files import INDEX, SINGLE

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES: Final = 5 * 10**9
"""The size at which Hugging Face starts a new shard, too."""

_ALIGNMENT: Final = 8
"""A header is as many bytes as a multiple of this."""


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written."""

    name: str
    dtype: str
    """As safetensors spells it: BF16, F32."""

    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of those."""
        return self.numel * BITS[self.dtype] // 8

    @classmethod
    def of(cls, name: str, header: Header) -> Entry:
        """A tensor as it is stored elsewhere."""
        return cls(name, header.dtype, header.shape)


@dataclass(frozen=True)
class Shard:
    """One file."""

    name: str
    entries: tuple[Entry, ...]

    @cached_property
    def placed(self) -> tuple[Entry, ...]:
        """The tensors in the order in which safetensors would write them: by dtype, then by name."""
        order = list(dtypes())
        return tuple(sorted(self.entries, key=lambda entry: (order.index(entry.dtype), entry.name)))

    @cached_property
    def header(self) -> bytes:
        """What stands before the tensors, byte for byte as safetensors writes it."""
        told: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in self.placed:
            start, end = end, end + entry.num_bytes
            told[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(entry.num_bytes for entry in self.entries)


def lay_out(entries: Iterable[Entry], shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """The shards that hold these tensors, in their order: a new one begins where the next tensor would make one larger
    than `shard_bytes`.  One alone is called SINGLE."""
    runs: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if runs[-1] and size + entry.num_bytes > shard_bytes:
            runs.append([])
            size = 0
        runs[-1].append(entry)
        size += entry.num_bytes
    count = len(runs)
    return tuple(
        Shard(SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors", tuple(run))
        for number, run in enumerate(runs, 1)
    )


class ShardWriter:
    """Writes the tensors that were promised to their places, and their index; a thread writes beside what makes them.

    Holds at most AHEAD_BYTES, or one piece of a tensor, that are not written yet."""

    def __init__(self, folder: Path, entries: Sequence[Entry], *, shard_bytes: int = SHARD_BYTES) -> None:
        """Nothing is written yet.  `entries` are in the order in which tensors are best added: a shard is closed when
        it is full."""
        self.folder = folder
        self.shards = lay_out(entries, shard_bytes)
        self.num_parameters = sum(entry.numel for entry in entries)
        self.weight_bytes = sum(entry.num_bytes for entry in entries)
        self._places = {entry.name: _Place(entry, number) for number, entry in self._numbered()}
        if len(self._places) < len(entries):
            raise ValueError("two tensors of one name are to be written")
        self._files: dict[int, _File] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._waiting_bytes = 0

    def _numbered(self) -> Iterable[tuple[int, Entry]]:
        return ((number, entry) for number, shard in enumerate(self.shards) for entry in shard.entries)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for file in self._files.values():
                file.abandon()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor, or the next rows of one; raises RuntimeError where it is not what was promised, OSError
        where the disk does not take what was added before."""
        place = self._places.get(name)
        if place is None or not place.takes(tensor):
            promised = "nothing of that name" if place is None else str(place.entry)
            raise RuntimeError(f"{name} is {tensor.dtype} {list(tensor.shape)}, promised was {promised}")
        size = tensor.numel() * tensor.element_size()
        if not size:
            return  # a run of rows of which none stay
        while self._waiting and self._waiting_bytes + size > AHEAD_BYTES:
            self._wait()
        self._waiting.append((size, self._pool.submit(self._write, place, place.done, tensor)))
        self._waiting_bytes += size
        place.done += size

    def _wait(self) -> None:
        size, written = self._waiting.popleft()
        self._waiting_bytes -= size
        written.result()

    def _write(self, place: _Place, done: int, tensor: Tensor) -> None:
        """What the thread does."""
        import torch

        file = self._file(place.shard)
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        file.write(file.starts[place.entry.name] + done, data)

    def _file(self, number: int) -> _File:
        if number not in self._files:
            shard = self.shards[number]
            self._files[number] = _File(self.folder / shard.name, shard, passing=is_passing(self.weight_bytes))
        return self._files[number]

    def close(self) -> None:
        """Write what waits, and the index; raises RuntimeError where a tensor that was promised did not come whole."""
        while self._waiting:
            self._wait()
        for place in self._places.values():
            if place.done < place.entry.num_bytes:
                raise RuntimeError(f"{place.entry.name}: {place.done} bytes came of {place.entry.num_bytes} promised")
        for number in range(len(self.shards)):
            self._file(number).close()  # made here where its tensors hold no numbers
        if len(self.shards) > 1:
            weight_map = {entry.name: shard.name for shard in self.shards for entry in shard.entries}
            write_json(self.folder / INDEX, {"metadata": {"total_size": self.weight_bytes}, "weight_map": weight_map})


@dataclass
class _Place:
    """Where a tensor goes, and how much of it came."""

    entry: Entry
    shard: int
    done: int = 0

    def takes(self, tensor: Tensor) -> bool:
        """Whether these may be its next rows."""
        size = tensor.numel() * tensor.element_size()
        shape = shape_in_torch(self.entry.dtype, self.entry.shape)
        return (
            tensor.dtype == dtypes()[self.entry.dtype]
            and tensor.ndim == len(shape)
            and tuple(tensor.shape[1:]) == shape[1:]
            and self.done + size <= self.entry.num_bytes
        )


class _File(Filling):
    """A shard on the disk: its header at once, tensors as they come."""

    def __init__(self, path: Path, shard: Shard, *, passing: bool) -> None:
        super().__init__(path, passing=passing)
        self.left = shard.num_bytes
        self.starts: dict[str, int] = {}
        end = len(shard.header)
        for entry in shard.placed:
            self.starts[entry.name] = end
            end += entry.num_bytes
        self.put(0, memoryview(shard.header))

    def write(self, place: int, data: memoryview) -> None:
        """Write all of `data`; the file is closed when the last tensor is there."""
        self.put(place, data)
        self.left -= len(data)
        if not self.left:
            self.close()
