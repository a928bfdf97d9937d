"""Headers of safetensors files: what tensors they hold, and where, without reading one."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.files import read_json, refuse_pointer, require_file
from minitron.model.weight_files import explicit_file, first_file, names_in, shards, weight_files

LONGEST: Final = 100 * 10**6
"""The bytes of the longest header that safetensors reads."""

_LONGEST_NAME: Final = 500
"""Characters of a tensor's name."""

_LARGEST: Final = 2**48
"""What no dimension and no offset reaches."""

_CHUNK: Final = 2**24

_DTYPES: Final = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("F16", "BF16", "I16", "U16"),
    32: ("F32", "I32", "U32"),
    64: ("F64", "I64", "U64", "C64"),
}

BITS: Final = {dtype: bits for bits, dtypes in _DTYPES.items() for dtype in dtypes}
"""The bits of a number of each dtype that safetensors knows."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor."""

    file: Path
    dtype: str
    """As safetensors spells it: BF16, F32."""

    shape: tuple[int, ...]
    num_bytes: int

    start: int = 0
    """Where in the file its bytes begin."""

    stored: str = ""
    """What the file calls it, where that is another name than it goes by."""

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_headers(file: Path) -> dict[str, Header]:
    """name -> header of every tensor in one safetensors file; raises MinitronError where it is missing, truncated, a
    git-lfs pointer or no such file."""
    if not file.exists() and not file.is_symlink():
        raise MinitronError(f"{file} is missing; download or copy the checkpoint again.")
    if file.is_dir():
        raise MinitronError(f"{file} is a folder, not a file of weights; copy the checkpoint again.")
    require_file(file)
    refuse_pointer(file)
    with file.open("rb") as stream:
        size = file.stat().st_size
        length = header_length(stream.read(8), file)
        if length > size - 8:
            raise MinitronError(f"{file} is truncated: its header is cut off; download or copy it again.")
        headers = parse_header(stream.read(length), file)
    wanted = 8 + length + sum(header.num_bytes for header in headers.values())
    if size < wanted:
        raise MinitronError(f"{file} is truncated: {size} bytes of {wanted} are there; download or copy it again.")
    if size > wanted:
        raise MinitronError(f"{file} has {size - wanted} bytes after its tensors; download or copy it again.")
    return headers


def stored_headers(folder: Path) -> dict[str, Header]:
    """name -> header of every tensor of a checkpoint folder, under the names that its files have.

    Raises MinitronError for files missing, truncated or named outside the folder, and a name that two files have."""
    found: dict[str, Header] = {}
    for file in weight_files(folder):
        for name, header in read_headers(file).items():
            if name in found:
                raise MinitronError(f"{folder}: {name} is stored in two files; remove one of them from the index.")
            found[name] = header
    return found


def tensor_files(folder: Path) -> dict[str, Path]:
    """name -> file of every tensor of a checkpoint folder, unchecked; none where its weights cannot be read, for which
    reading the checkpoint has the message.  Of shards their index alone is read."""
    try:
        first = folder / (first_file(names_in(folder), explicit_file(folder)) or "")
        if first.suffix != ".json":
            return dict.fromkeys(read_headers(first), first) if first != folder else {}
        index = read_json(first)
        shards(index, first)
        return {name: folder / file for name, file in index["weight_map"].items()}
    except MinitronError:
        return {}


def header_length(start: bytes, file: Path | str) -> int:
    """The bytes of the header of which the file's first eight bytes tell; raises MinitronError where they do not."""
    if len(start) < 8:
        raise MinitronError(f"{file} is truncated: its header is cut off; download or copy it again.")
    length: int = struct.unpack("<Q", start[:8])[0]
    if length > LONGEST:
        raise MinitronError(
            f"{file} is no safetensors file: by its first bytes its header has {length:,} bytes, and safetensors reads "
            f"{LONGEST:,} at most; download or copy it again."
        )
    return length


def parse_header(text: bytes, file: Path) -> dict[str, Header]:
    """name -> header, of the JSON after a file's first eight bytes; raises MinitronError where it is no such JSON, or
    describes tensors that safetensors does not read."""
    try:
        if text[:1] != b"{":
            raise ValueError  # the library reads no header that begins with a space
        entries: Mapping[str, Any] = json.loads(text)
        found = {
            name: Header(
                file,
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
                8 + len(text) + entry["data_offsets"][0],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        metadata = entries.get("__metadata__")
        if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError
        ends = 8 + len(text)
        for name, header in sorted(found.items(), key=lambda one: (one[1].start, one[1].num_bytes)):
            if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
                raise MinitronError(f"{file}: {name!r:.60} is no name of a tensor; download or copy it again.")
            if not _is_sound(header) or header.start != ends:
                raise MinitronError(
                    f"{file}: what its header says of {name} does not fit its bytes; download or copy it again."
                )
            ends += header.num_bytes
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MinitronError(f"{file} is no safetensors file: its header does not parse; copy it again.") from None
    return found


def _is_sound(header: Header) -> bool:
    """Whether a shape is one, and a dtype is known and gives as many bytes as there are."""
    return (
        all(type(size) is int and 0 <= size < _LARGEST for size in (*header.shape, header.start, header.num_bytes))
        and header.numel * BITS[header.dtype] == 8 * header.num_bytes
    )


def same_numbers(one: Header, other: Header) -> bool:
    """Whether two stored tensors hold the same numbers; those of different dtypes are compared in the shorter one."""
    if one.shape != other.shape:
        return False
    when = tuple(header.file.stat().st_mtime_ns for header in (one, other))
    return _same_numbers(one, other, when)


@cache
def _same_numbers(one: Header, other: Header, when: tuple[int, ...]) -> bool:
    """`when` the files were written: an answer holds until then."""
    if one.dtype != other.dtype:
        return _same_values(one, other)
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.num_bytes
        while left > 0:
            size = min(left, _CHUNK)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


@contextmanager
def open_tensors(file: Path, library: Literal["pt", "np"] = "pt") -> Iterator[Any]:
    """A safetensors file whose headers were read, open to read tensors from: all that read weights or scores do so
    here.  They are not mapped: a file that became shorter then would end the process.  Raises MinitronError where the
    library does not read it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, library, backend="pread") as stream:
            yield stream
    except SafetensorError as error:
        raise MinitronError(f"{file} is no readable safetensors file ({error}); download or copy it again.") from None


def _same_values(one: Header, other: Header) -> bool:
    import torch

    def tensor(header: Header, name: str) -> torch.Tensor:
        with open_tensors(header.file) as stream:
            found: torch.Tensor = stream.get_tensor(name)
        return found

    names = [_name_in(header) for header in (one, other)]
    first, second = (tensor(header, name) for header, name in zip((one, other), names, strict=True))
    dtype = min((first.dtype, second.dtype), key=lambda dtype: dtype.itemsize)
    return bool(torch.equal(first.to(dtype), second.to(dtype)))


def _name_in(header: Header) -> str:
    return next(name for name, found in read_headers(header.file).items() if found.start == header.start)
