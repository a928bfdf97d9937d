"""Cutting one tensor: by kept indices or by a basis of an axis.

To cut an axis is to keep some of its indices wherever it appears or, where its space is linear on both sides, to
project on a basis; of the two the first is the special case of a basis made of unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minitron.model.dims import Dim, Indices, Product, Stack, Word, axes_of, numel, rows
from minitron.model.slabs import runs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Basis:
    """A cut of one axis by projection.

    What is written to the axis is projected on the columns of one matrix, what is read from it by those of its dual;
    where the columns are orthonormal the two are the same."""

    matrix: NDArray[np.float64]
    """[size, kept]: new coordinate j is the inner product with column j.  Or [groups, size, kept]: the axis stands
    behind another one, equal runs of which have a basis of their own."""

    dual: NDArray[np.float64] | None = None
    """Of the same shape, for those who read; None where the columns of `matrix` are orthonormal."""

    def __post_init__(self) -> None:
        shape = self.matrix.shape
        if len(shape) not in (2, 3) or shape[-1] > shape[-2]:
            raise ValueError(f"a basis is [size, kept] or [groups, size, kept] with kept <= size, not {shape}")
        if self.dual is not None and self.dual.shape != shape:
            raise ValueError(f"the dual of a basis {shape} is of the same shape, not {self.dual.shape}")
        gram = np.swapaxes(self.matrix, -1, -2) @ (self.matrix if self.dual is None else self.dual)
        if not np.allclose(gram, np.eye(shape[-1]), atol=1e-4):
            what = "orthonormal" if self.dual is None else "dual to each other"
            raise ValueError(f"the columns of a basis must be {what}")

    @property
    def kept(self) -> int:
        """How many coordinates stay."""
        return int(self.matrix.shape[-1])

    @cached_property
    def flipped(self) -> Basis:
        """The same cut for those who read."""
        return self if self.dual is None else Basis(self.dual, self.matrix)


Cut = Indices | Basis
Pick = Callable[[str], "Cut | None"]
"""The cut of an axis for the tensor at hand; None where the axis stays whole."""


def cut(tensor: Tensor, shape: Iterable[Dim], sizes: Mapping[str, int], pick: Pick, start: int = 0) -> Tensor:
    """`tensor` with every axis cut as `pick` says, dimension by dimension.

    It may be the rows from `start` on alone, where no basis cuts them and the indices that stay ascend.  Kept indices
    copy entries bit for bit; a basis multiplies in fp32 (float64 for float64) and rounds once.  Of a basis with a dual
    the caller picks the side (Basis.flipped)."""
    for place, dim in enumerate(shape):
        cuts = {axis: chosen for axis in axes_of(dim) if (chosen := pick(axis)) is not None}
        if any(isinstance(chosen, Basis) for chosen in cuts.values()):
            tensor = _project(tensor, place, dim, sizes, cuts)
        elif cuts:
            keep = {axis: chosen for axis, chosen in cuts.items() if not isinstance(chosen, Basis)}
            kept = rows(dim, sizes, keep)
            if place == 0 and len(tensor) < numel(dim, sizes):
                kept = kept[slice(*np.searchsorted(kept, (start, start + len(tensor))))] - start
            if len(kept) < tensor.shape[place]:
                tensor = _select(tensor, place, kept)
    return tensor


def _project(tensor: Tensor, place: int, dim: Dim, sizes: Mapping[str, int], cuts: Mapping[str, Cut]) -> Tensor:
    """`cut` along one dimension in which some axis has a basis: axis by axis instead of row by row."""
    match dim:
        case Word(name) if name in cuts:
            chosen = cuts[name]
            if not isinstance(chosen, Basis):
                return _select(tensor, place, chosen)
            return _multiply(tensor, place, chosen)
        case Product(factors):
            tensor = tensor.reshape(
                *tensor.shape[:place], *(numel(factor, sizes) for factor in factors), *tensor.shape[place + 1 :]
            )
            # From the right: the runs of a grouped basis are those of the factor before it as it was.
            for offset, factor in reversed(list(enumerate(factors))):
                tensor = _project(tensor, place + offset, factor, sizes, cuts)
            return tensor.flatten(place, place + len(factors) - 1)
        case Stack(parts):
            import torch

            projected, start = [], 0
            for part in parts:
                length = numel(part, sizes)
                projected.append(_project(tensor.narrow(place, start, length), place, part, sizes, cuts))
                start += length
            return torch.cat(projected, dim=place)
    return tensor


def _multiply(tensor: Tensor, place: int, basis: Basis) -> Tensor:
    """`tensor` [..., size, ...] times [size, kept], or [..., n, size, ...] times [groups, size, kept] run by run.

    A large one is multiplied in parts along its longest other dimension: no more than a part is held in fp32."""
    factor = _factor(basis, tensor.device, tensor.dtype.itemsize)
    if factor.ndim == 3:
        moved = tensor.to(factor.dtype).movedim((place - 1, place), (-2, -1))
        groups = moved.reshape(*moved.shape[:-2], len(factor), -1, moved.shape[-1]) @ factor
        return groups.flatten(-3, -2).movedim((-2, -1), (place - 1, place)).to(tensor.dtype)

    def product(part: Tensor) -> Tensor:
        return (part.to(factor.dtype).movedim(place, -1) @ factor).movedim(-1, place).to(tensor.dtype)

    along = max((dim for dim in range(tensor.ndim) if dim != place), key=lambda dim: tensor.shape[dim], default=None)
    parts = [] if along is None else runs(tensor.shape[along], tensor.numel() * tensor.element_size())
    if along is None or len(parts) < 2:
        return product(tensor)
    result = tensor.new_empty((*tensor.shape[:place], basis.kept, *tensor.shape[place + 1 :]))
    for start, stop in parts:
        part = tensor.narrow(along, start, stop - start)
        result.narrow(along, start, stop - start).copy_(product(part))
    return result


@lru_cache(maxsize=1)
def _factor(basis: Basis, device: torch.device, itemsize: int) -> Tensor:
    """The matrix in the type to reckon in; that of the residual stream serves one tensor after the other."""
    import torch

    return torch.from_numpy(basis.matrix).to(device, torch.float64 if itemsize == 8 else torch.float32)


def _select(tensor: Tensor, place: int, kept: Indices) -> Tensor:
    """The entries of a dimension that stay."""
    import torch

    indices = torch.from_numpy(kept).to(tensor.device)
    if place == 0 or place < tensor.ndim - 1:
        return tensor.index_select(place, indices)
    # Ten times as fast as index_select, which copies bf16 along the last dimension one number at a time.
    bits = tensor.view((torch.uint8, torch.int16, torch.int32, torch.int64)[tensor.dtype.itemsize.bit_length() - 1])
    return bits.gather(place, indices.expand(*tensor.shape[:-1], -1)).view(tensor.dtype)
