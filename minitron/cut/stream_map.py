"""Where a pruned model's residual stream lies in its parent's: which layers stay, and which directions of the stream.

The stream after a kept layer was, before the cut, that of the parent; after it, it should still be what the cut keeps
of it: its kept channels, or its products with the columns of the basis in which the stream was cut.  So the parent says
of every layer what the student should compute there, with nothing to learn in between.

Shape letters: B sequences, T tokens, H the parent's hidden size, K the student's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from minitron.cut.basis import Basis, Cut
from minitron.cut.companions import RECORD, copy_own
from minitron.cut.plan import Plan, read_ranges, write_ranges
from minitron.cut.selection import STREAM
from minitron.errors import MinitronError
from minitron.files import read_json, write_tensors
from minitron.model.axes import HIDDEN
from minitron.model.headers import open_tensors
from minitron.model.spec import ModelSpec
from minitron.typed import misfit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY: Final = "stream"
"""What a record says of the stream stands under this key: a list, the parent first and then the parent's own parents,
where it was pruned too."""

FOLDER: Final = "stream"
"""The folder, in the student's, of the bases: engines take every weight file beside the weights for weights."""

MOST: Final = 16
"""Parents, one of the other, that are kept."""

_TENSOR: Final = "basis"


@dataclass(frozen=True)
class _Told:
    """What stands in the record."""

    parent: str
    """Fingerprint of the parent's config (ModelSpec.fingerprint)."""

    weights: str | None
    """SHA-256 of the parent's weights (minitron.model.identity.weights_of); None where the plan did not know them."""

    size: int
    """The parent's hidden size."""

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

    size: int
    """The parent's hidden size."""

    layers: tuple[int, ...]
    """The parent's layer that each of the student's was."""

    cut: Cut | None
    """What stays of the stream; None is all of it."""

    _matrices: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        cut = self.cut
        if isinstance(cut, Basis) and cut.matrix.shape[0] != self.size:
            raise ValueError(f"a basis of {cut.matrix.shape[0]} channels is none of a stream of {self.size}")
        if isinstance(cut, np.ndarray) and not 0 <= cut.max() < self.size:
            raise ValueError(f"channel {cut.max()} is none of a stream of {self.size}")

    @property
    def kept(self) -> int:
        """The student's hidden size."""
        if self.cut is None:
            return self.size
        return self.cut.kept if isinstance(self.cut, Basis) else len(self.cut)

    def after(self, earlier: StreamMap) -> StreamMap:
        """The way from an earlier parent, of which this one's parent was a student."""
        layers = tuple(earlier.layers[layer] for layer in self.layers)
        cut = _composed(earlier.size, earlier.cut, self.cut)
        return StreamMap(earlier.parent, earlier.weights, earlier.size, layers, cut)

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

        if device not in self._matrices:
            assert isinstance(self.cut, Basis)
            self._matrices[device] = torch.from_numpy(self.cut.matrix).to(device, torch.float32)
        return self._matrices[device]


def stream_maps(plan: Plan, spec: ModelSpec, source: Path) -> tuple[StreamMap, ...]:
    """The ways to what a plan leaves of the checkpoint `source`, which is one of `spec`: from it and from those that it
    was itself pruned from."""
    sha256, size = plan.weights.get("sha256"), spec.sizes[HIDDEN]
    made = StreamMap(spec.fingerprint, sha256, size, plan.layers, plan.keep.get(STREAM))
    return made, *(made.after(earlier) for earlier in read_stream_maps(source, spec)[: MOST - 1])


def read_stream_maps(folder: Path, spec: ModelSpec) -> tuple[StreamMap, ...]:
    """What `write_stream_maps` left in the folder of a student, which is one of `spec`; none where its record tells of
    none.

    Raises MinitronError where what is told is damaged, or does not fit the student."""
    path = folder / RECORD
    record = read_json(path) if path.is_file() else None
    if not isinstance(record, dict) or KEY not in record:
        return ()
    if wrong := misfit(record[KEY], list[_Told]):
        raise _damaged(path, wrong)
    found = []
    for number, values in enumerate(record[KEY]):
        told = _Told(**values)
        basis = None if told.basis is None else _read(folder / FOLDER / _file(number), told.basis)
        try:
            layers = tuple(read_ranges(told.layers).tolist())
            cut = basis if told.channels is None else read_ranges(told.channels)
            one = StreamMap(told.parent, told.weights, told.size, layers, cut)
        except ValueError as error:
            raise _damaged(path, str(error)) from None
        if (len(one.layers), one.kept) != (len(spec.layers), spec.sizes[HIDDEN]):
            raise _damaged(path, f"it is of {len(one.layers)} layers of {one.kept} channels, config.json of others")
        found.append(one)
    return tuple(found)


def write_stream_maps(maps: Sequence[StreamMap], folder: Path) -> list[dict[str, Any]]:
    """Write the bases into a student's folder; returns what its record says under KEY."""
    found = []
    for number, one in enumerate(maps):
        told: dict[str, Any] = {"parent": one.parent, "weights": one.weights, "size": one.size}
        told["layers"] = write_ranges(np.array(one.layers))
        if isinstance(one.cut, Basis):
            matrix = np.ascontiguousarray(one.cut.matrix, np.float32)
            (folder / FOLDER).mkdir(exist_ok=True)
            _write(folder / FOLDER / _file(number), matrix)
            told["basis"] = _hash(matrix)
        elif one.cut is not None:
            told["channels"] = write_ranges(one.cut)
        found.append(told)
    return found


def copy_stream_maps(student: Path, folder: Path) -> None:
    """What a pruned folder holds beside its record goes with it."""
    for number in range(MOST):
        source = student / FOLDER / _file(number)
        if source.is_file():
            (folder / FOLDER).mkdir(exist_ok=True)
            copy_own(source, folder / FOLDER)


def _composed(size: int, first: Cut | None, second: Cut | None) -> Cut | None:
    """One cut of a stream of `size` channels after the other."""
    if first is None or second is None:
        return second if first is None else first
    if not isinstance(first, Basis):
        if not isinstance(second, Basis):
            return first[second]
        matrix = np.zeros((size, second.kept))
        matrix[first] = second.matrix
        return Basis(matrix)
    return Basis(first.matrix @ second.matrix if isinstance(second, Basis) else first.matrix[:, second])


def _file(number: int) -> str:
    return "basis.safetensors" if number == 0 else f"basis-{number}.safetensors"


def _write(path: Path, matrix: Any) -> None:
    import torch

    write_tensors(path, {_TENSOR: torch.from_numpy(matrix)})


def _read(path: Path, wanted: str) -> Basis:
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
