"""Checkpoints: folders of safetensors, read a tensor at a time and written a shard at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.model.dims import Name
from minitron.model.families import Extra, Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensor_names import INDEX, SINGLE

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES: Final = 5 * 10**9
"""The size at which Hugging Face starts a new shard, too."""

TIED_BUT_DIFFERENT: Final = (
    "{}: config.json ties the output layer with the embedding, but both are stored and differ; set tie_word_embeddings "
    "to false in config.json to keep both, or remove one of them."
)

DTYPE_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor."""

    file: Path
    dtype: str
    """As safetensors spells it: BF16, F32."""

    shape: tuple[int, ...]
    num_bytes: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_headers(file: Path) -> dict[str, Header]:
    """name -> header of every tensor in one safetensors file; raises MinitronError where it is missing or truncated."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > size - 8:
                raise MinitronError(f"{file} is truncated: its header is cut off; download or copy it again.")
            entries = json.loads(stream.read(length))
    except FileNotFoundError:
        raise MinitronError(f"{file} is missing; download or copy the checkpoint again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise MinitronError(f"{file} is no safetensors file: its header does not parse; copy it again.") from None
    headers = {
        name: Header(file, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    wanted = 8 + length + sum(header.num_bytes for header in headers.values())
    if size < wanted:
        raise MinitronError(f"{file} is truncated: {size} bytes of {wanted} are there; download or copy it again.")
    return headers


class Checkpoint:
    """The weights of a folder; headers at once, tensors when asked."""

    def __init__(self, folder: Path) -> None:
        """Read all headers.  Raises MinitronError for files missing, truncated or named outside the folder."""
        self.folder = folder
        self.headers: dict[str, Header] = {}
        for file in _weight_files(folder):
            for name, header in read_headers(file).items():
                if name in self.headers:
                    raise MinitronError(f"{folder}: {name} is stored in two files; remove one of them from the index.")
                self.headers[name] = header

    @property
    def num_parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(header.numel for header in self.headers.values())

    @property
    def weight_bytes(self) -> int:
        """The bytes of all tensors, file headers left out."""
        return sum(header.num_bytes for header in self.headers.values())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every tensor's name, dtype and shape."""
        lines = sorted(f"{name} {header.dtype} {header.shape}" for name, header in self.headers.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, spec: ModelSpec) -> None:
        """Raise MinitronError unless every tensor is named by a rule, has its shape, and none is missing.

        A multi-token-prediction block may be absent as a whole: transformers drops it when it saves."""
        expected = {tensor.name: tensor for tensor in spec.expected()}
        for name, rule, index in self.named_tensors(spec):
            header = self.headers[name]
            wanted = expected.pop(rule.pattern.format(index), None)
            if wanted is None:
                raise MinitronError(f"{self.folder}: {name} is stored twice under two names; remove one.")
            if header.shape != wanted.shape:
                raise MinitronError(
                    f"{self.folder}: {name} has the shape {list(header.shape)}, but config.json gives "
                    f"{list(wanted.shape)}; config.json and weights belong to different models; copy both from one."
                )
        missing = list(expected.values())
        if sum(tensor.is_mtp for tensor in missing) == sum(tensor.is_mtp for tensor in spec.expected()):
            missing = [tensor for tensor in missing if not tensor.is_mtp]
        if missing:
            raise MinitronError(
                f"{self.folder}: {len(missing)} tensors are missing, the first {missing[0].name}; "
                "copy the checkpoint again."
            )

    def require_tied(self, spec: ModelSpec) -> None:
        """Raise MinitronError where a layer that config.json ties with the embedding is stored too, with other numbers.

        transformers then keeps both, so that neither may be left out; reads both tensors where both are stored."""
        if not spec.is_tied:
            return
        stored = {rule.pattern.format(index): name for name, rule, index in self.named_tensors(spec)}
        for rule in spec.family.rules["model"]:
            copy, source = rule.pattern.format({}), stored.get(Name(rule.tied_to).format({}) if rule.tied_to else "")
            if source is not None and copy in self.headers and not self._equal(copy, source):
                raise MinitronError(TIED_BUT_DIFFERENT.format(self.folder))

    def _equal(self, one: str, other: str) -> bool:
        first, second = self.tensor(one), self.tensor(other)
        return first.shape == second.shape and bool((first == second).all())

    def named_tensors(self, spec: ModelSpec) -> Iterator[tuple[str, Rule, dict[str, int]]]:
        """(name, rule, indices in the name) of every tensor but those beside the model's own (`extras`).

        Raises MinitronError for a tensor that no rule names."""
        for name in self.headers:
            if spec.extra(name) is None:
                yield name, *spec.find(name)

    def extras(self, spec: ModelSpec) -> dict[str, Extra]:
        """name -> what it is, of the tensors that stand beside those that the rules of `spec` name."""
        found = {name: spec.extra(name) for name in self.headers}
        return {name: row for name, row in found.items() if row is not None}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, one at a time, file by file."""
        from safetensors import safe_open

        files = dict.fromkeys(header.file for header in self.headers.values())
        for file in files:
            with safe_open(file, "pt") as stream:
                for name in stream.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, stream.get_tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        from safetensors import safe_open

        with safe_open(self.headers[name].file, "pt") as stream:
            tensor: Tensor = stream.get_tensor(name)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise MinitronError(f"{folder} holds neither {SINGLE} nor {INDEX}; give a folder with safetensors weights.")
        return [folder / SINGLE]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MinitronError(f"{index} has no weight_map; copy the checkpoint again.")
    files = sorted(set(weight_map.values()))
    for file in files:
        # An index comes from elsewhere: it must not make us read, and later write, beyond its folder.
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise MinitronError(f"{index} names {file!r}, a file outside the folder; do not use this checkpoint.")
    return [folder / file for file in files]


class ShardWriter:
    """Writes tensors into shards of at most `shard_bytes` and, when closed, an index; holds one shard in memory."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self.num_parameters = 0
        self.weight_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        # A view would be written with all of its storage kept alive.
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += size
        self.num_parameters += tensor.numel()
        self.weight_bytes += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._pending, self.folder / f"shard-{len(self._shards)}", metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def close(self) -> None:
        """Write what is pending, give the shards their names, write the index."""
        if self._pending:
            self._flush()
        if len(self._shards) == 1:
            (self.folder / "shard-0").rename(self.folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            (self.folder / f"shard-{number}").rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        write_json(self.folder / INDEX, {"metadata": {"total_size": self.weight_bytes}, "weight_map": weight_map})
