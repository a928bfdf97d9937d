"""Where a pruned model's residual stream lies in its parent's: which layers stay, and which directions of the stream.

The stream after a kept layer was, before the cut, that of the parent; after it, it should still be what the cut keeps
of it: its kept channels, or its products with the columns of the basis in which the stream was cut.  So the parent says
of every layer what the student should compute there, with nothing to learn in between.

Shape letters: B sequences, T tokens, H the parent's hidden size, K the student's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from minitron.cut.basis import Basis, Cut
from minitron.cut.companions import RECORD, copy_own
from minitron.cut.plan import Plan, read_ranges, write_ranges
from minitron.cut.selection import STREAM
from minitron.errors import MinitronError
from minitron.files import read_json, write_tensors
from minitron.model.headers import open_tensors
from minitron.run_folder import part
from minitron.typed import misfit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY: Final = "stream"
"""What a record says of the stream stands under this key."""

FOLDER: Final = "stream"
"""The folder, in the student's, of the basis: engines take every weight file beside the weights for weights."""

_FILE: Final = "basis.safetensors"
_TENSOR: Final = "basis"


@dataclass(frozen=True)
class _Told:
    """What stands in the record."""

    parent: str
    """Fingerprint of the parent's config (ModelSpec.fingerprint)."""

    weights: str | None
    """SHA-256 of the parent's weights (minitron.model.identity.weights_of); None where the plan did not know them."""

    layers: str
    """The parent's layers that stay, as ranges."""

    channels: str | None = None
    """The channels of the stream that stay, as ranges; None where all do or there is a basis."""

    basis: str | None = None
    """SHA-256 of the basis; None where there is none."""


@dataclass(frozen=True, eq=False)
class StreamMap:
    """The way from a parent's residual stream to its student's."""

    parent: str
    """Fingerprint of the parent's config."""

    weights: str | None
    """SHA-256 of the parent's weights, where known."""

    layers: tuple[int, ...]
    """The parent's layer that each of the student's was."""

    cut: Cut | None
    """What stays of the stream; None is all of it."""

    @classmethod
    def of(cls, plan: Plan) -> StreamMap:
        """That of what a plan leaves."""
        return cls(plan.model, plan.weights.get("sha256"), plan.layers, plan.keep.get(STREAM))

    @classmethod
    def read(cls, folder: Path) -> StreamMap | None:
        """What `write` left in a student's folder; None where its record tells of none.

        Raises MinitronError where what is told is damaged."""
        path = folder / RECORD
        if not path.is_file() or (told := part(read_json(path), KEY)) is None:
            return None
        if wrong := misfit(told, _Told):
            raise _damaged(path, wrong)
        found = _Told(**told)
        try:
            layers = tuple(read_ranges(found.layers).tolist())
            cut = None if found.channels is None else read_ranges(found.channels)
        except ValueError as error:
            raise _damaged(path, str(error)) from None
        return cls(found.parent, found.weights, layers, cut if found.basis is None else _read(folder, found.basis))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the basis, where there is one, into a student's folder; returns what the record says under KEY."""
        found = _Told(self.parent, self.weights, write_ranges(np.array(self.layers)))
        told = {key: value for key, value in vars(found).items() if value is not None}
        if isinstance(self.cut, Basis):
            matrix = np.ascontiguousarray(self.cut.matrix, np.float32)
            (folder / FOLDER).mkdir()
            _write(folder / FOLDER / _FILE, matrix)
            return told | {"basis": _hash(matrix)}
        return told if self.cut is None else told | {"channels": write_ranges(self.cut)}

    def of_student(self, states: Tensor) -> Tensor:
        """[B, T, K] of the parent's stream [B, T, H]: what the student's should be."""
        import torch

        if self.cut is None:
            return states
        if isinstance(self.cut, Basis):
            return states.float() @ self._matrix(states.device)
        return states.index_select(-1, torch.from_numpy(self.cut).to(states.device))

    def _matrix(self, device: torch.device) -> Tensor:
        import torch

        found: dict[torch.device, Tensor] = self.__dict__.setdefault("_matrices", {})
        if device not in found:
            assert isinstance(self.cut, Basis)
            found[device] = torch.from_numpy(self.cut.matrix).to(device, torch.float32)
        return found[device]


def copy_stream_map(student: Path, folder: Path) -> None:
    """What a pruned folder holds beside its record goes with it."""
    source = student / FOLDER / _FILE
    if source.is_file():
        (folder / FOLDER).mkdir()
        copy_own(source, folder / FOLDER)


def _write(path: Path, matrix: Any) -> None:
    import torch

    write_tensors(path, {_TENSOR: torch.from_numpy(matrix)})


def _read(folder: Path, wanted: str) -> Basis:
    path = folder / FOLDER / _FILE
    if not path.is_file():
        raise MinitronError(f"{path} is missing, of which {RECORD} tells; copy the pruned folder whole.")
    with open_tensors(path, "np") as file:
        names = list(file.keys())
        matrix = file.get_tensor(_TENSOR) if names == [_TENSOR] else None
    if matrix is None or _hash(matrix) != wanted:
        raise MinitronError(f"{path} is damaged (its checksum differs); copy the pruned folder again.")
    return Basis(matrix.astype(np.float64))


def _hash(matrix: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(matrix).data).hexdigest()


def _damaged(path: Path, why: str) -> MinitronError:
    return MinitronError(f"{path}: `{KEY}`: {why}; copy the pruned folder again, or remove the entry.")
