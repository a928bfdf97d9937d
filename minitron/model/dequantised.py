"""A quantised checkpoint as if it were in bf16: its tensors under the model's own names, one decoded at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron.errors import MinitronError
from minitron.model.checkpoint import Checkpoint
from minitron.model.decoding import BESIDE, decode
from minitron.model.finite import require_finite
from minitron.model.headers import Header
from minitron.model.slabs import Slab, read_rows
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.stored import owners, plain, quantisation_in, require_plain, require_readable
from minitron.model.tensors import Expected

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN: Final = ("BF16", "F16", "F32", "F64", "I64", "I32", "BOOL")
"""The dtypes of tensors that are no part of a quantised matrix."""

_HALF: Final = "F16"

_BARE: Final = {
    "": ".weight",
    "_scale": ".weight_scale",
    "_scale_inv": ".weight_scale_inv",
    "_weight_scale": ".weight_scale",
    "_weight_scale_inv": ".weight_scale_inv",
    "_input_scale": ".input_scale",
}
"""What stands behind the name of a tensor of all experts, which is no module's -> the same behind a module's."""


class Dequantised(Checkpoint):
    """The weights of a quantised folder in bf16; `headers` are those that it would have."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """`spec` is that of the model in plain numbers.  Raises MinitronError where tensors are missing or unknown."""
        super().__init__(folder)
        self._stored = self.headers
        self._pieces: dict[str, dict[str, str]] = {}
        expected = {one.name: one for one in spec.expected()}
        self.headers = {}
        grouped: dict[str, list[str]] = {}
        for name, owner in owners(spec, self._stored):
            if owner:
                grouped.setdefault(owner, []).append(name)
            elif spec.extra(name) is not None:
                self.headers[name] = _plain_header(self._stored[name])
            elif not name.endswith(BESIDE):
                spec.find(name)  # raises
        for owner, names in grouped.items():
            self._add(expected[owner], names)

    def _add(self, one: Expected, names: list[str]) -> None:
        """Put down what stands for a tensor of the model, under the name by which transformers knows it."""
        stem = next(
            (
                stem
                for name in one.rule.pattern.dialects(one.index)
                if all(other.startswith(stem := name.removesuffix(".weight")) for other in names)
            ),
            "",
        )
        # A module's bias is a tensor of its own; what begins like a tensor of another name is no part of this one.
        pieces = {_BARE.get(name[len(stem) :], name[len(stem) :]): name for name in names}
        name = next((name for name in names if name == stem or name.endswith(".weight")), "")
        first = self._stored[name or names[0]]
        alone = len([piece for piece in pieces if piece not in BESIDE]) == 1
        if name and alone and first.dtype in _PLAIN:
            self.headers[name] = _plain_header(first)
            return
        name = name or (stem if one.name.removesuffix(".weight") == one.name else f"{stem}.weight")
        count = 2
        for size in one.shape:
            count *= size
        self.headers[name] = Header(first.file, "BF16", one.shape, count)
        self._pieces[name] = pieces

    @property
    def stored_bytes(self) -> int:
        """The bytes of all tensors as they are stored."""
        return sum(header.num_bytes for header in self._stored.values())

    def in_order(self) -> list[str]:
        """The names, file by file."""
        return sorted(self.headers, key=lambda name: str(self.headers[name].file))

    def slabs(self, name: str, *, whole: bool = False) -> Iterator[Slab]:
        """A tensor whole: its scales may be of any shape."""
        yield Slab(name, 0, self.headers[name].num_bytes, partial(self.tensor, name))

    def tensor(self, name: str) -> Tensor:
        """One tensor, decoded.  Raises MinitronError where what stands for it is in no layout that is known."""
        import torch

        pieces = self._pieces.get(name)
        if pieces is None:
            found = require_finite(self.folder, name, self._read(name))
            return found.to(torch.bfloat16) if found.dtype == torch.float16 else found
        decoded = decode({suffix: self._read(stored) for suffix, stored in pieces.items()}, self.headers[name].shape)
        if decoded is None:
            told = ", ".join(
                f"{suffix.strip('._')} ({self._stored[stored].dtype})" for suffix, stored in pieces.items()
            )
            raise MinitronError(
                f"{self.folder}: {name} is stored as {told}, which Minitron cannot turn into bf16; give the checkpoint "
                "it was quantised from."
            )
        return require_finite(self.folder, name, decoded)

    def read(self, name: str) -> Tensor:
        """The same."""
        return self.tensor(name)

    def _read(self, name: str) -> Tensor:
        return read_rows(self._stored[name])


def _plain_header(header: Header) -> Header:
    """That of a tensor which is no part of a quantised matrix: its numbers in F16 are told in BF16."""
    dtype = "BF16" if header.dtype == _HALF else header.dtype
    return Header(header.file, dtype, header.shape, header.num_bytes)


def open_as_plain(folder: Path, spec: ModelSpec) -> tuple[ModelSpec, Checkpoint]:
    """(spec, weights) of a folder whose config gives `spec`: of a quantised one as if it were in bf16.

    Raises MinitronError where it is quantised in a way that cannot be undone."""
    if quantisation_in(folder) is None:
        return spec, Checkpoint(folder)
    require_readable(folder)
    spec = plain(spec)
    return spec, Dequantised(folder, spec)


def open_plain(folder: Path, *, dequantise: bool = False) -> tuple[ModelSpec, Checkpoint, dict[str, str]]:
    """(spec, weights, what is to be told of them) of a folder in plain numbers, or with `dequantise` of a quantised one
    as if it were in bf16.

    Raises MinitronError where the folder is of the other kind, or quantised in a way that cannot be undone."""
    from minitron.model.configs import require_head

    if not dequantise:
        require_plain(folder)
        spec = read_spec(folder)
        require_head(spec, folder)
        return spec, Checkpoint(folder), {}
    found = quantisation_in(folder)
    if found is None:
        raise MinitronError(f"{folder} is not quantised; drop --dequantise.")
    if not found.can_be_undone:
        raise MinitronError(
            f"{folder} is quantised ({found.told}), which Minitron cannot turn into bf16; give the checkpoint it was "
            "quantised from."
        )
    spec = plain(read_spec(folder))
    require_head(spec, folder)
    return spec, Dequantised(folder, spec), {"dequantised": f"from {found.told} to bf16"}
