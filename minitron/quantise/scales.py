"""Scales: what the numbers of a matrix are divided by before they go to the grid.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix, G groups of a row.

Sources: modelopt's export (a scale a matrix for FP8; for NVFP4 a scale a group in E4M3 and one for the matrix) and
compressed-tensors (a scale a row or a group in bf16).  Four over six: Cook et al. 2025, arXiv 2512.02010: the largest
number of a group in NVFP4 may go to 4 instead of 6, whose neighbours lie closer; here it is one of the clippings that
are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minitron.memory.formats import Format
from minitron.quantise.grids import E2M1_LARGEST, E4M3_LARGEST, GRIDS, Grid

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMALLEST_GROUP_SCALE: Final = 2.0**-9
"""The smallest number of E4M3 above zero."""

SEARCHED_LARGEST: Final = 256.0
"""What the largest scale of a group in NVFP4 is where groups may go to 4: half as much again still is in E4M3."""

CLIPPINGS: Final[Mapping[str, tuple[float, ...]]] = {
    "e4m3": (1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875),
    "e2m1": (1.5, 1.35, 1.2, 1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75),
    "int8": (1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.85, 0.825, 0.8),
    "int4": tuple(sign * percent / 100 for percent in range(110, 45, -5) for sign in (1, -1)),
}
"""Numbers of a grid -> the shares of the largest number that are tried as the end of the grid.  A float's precision is
relative: clipping it gains nothing, but another place between two powers of two may.  Integers of four bits go from -8
to 7: a scale below zero turns the longer side to where it is needed."""

_AT_ONCE: Final = 2**18
"""Numbers that one thread tries at a time: they stay in a processor's cache."""


@dataclass(frozen=True)
class Scales:
    """The scales of one matrix."""

    step: Tensor
    """[1, 1], [R, 1] or [R, G] fp32: what a decoder multiplies the numbers of the grid by."""

    stored: Mapping[str, Tensor]
    """What comes behind the module's name in a file -> the tensor."""

    def spread(self, columns: int) -> Tensor:
        """[1 or R, C]: the step of every number; a view where all of a row have one."""
        groups = self.step.shape[1]
        return self.step if groups == 1 else self.step.repeat_interleave(columns // groups, 1)

    def nearest(self, step: Tensor, instead: Tensor) -> Tensor:
        """fp32: the steps nearest to `step` that a file holds beside what else it holds of this matrix, `instead` where
        that would be none.  Scales are those of rows or groups."""
        import torch

        kept = self._kept(step).float() * self._second(step)
        return torch.where((kept != 0) & kept.isfinite(), kept, instead)

    def at(self, step: Tensor) -> Scales:
        """The same with these steps [R, 1] or [R, G], which `nearest` gave."""
        return Scales(step, {**self.stored, ".weight_scale": self._kept(step)})

    def times(self, factors: Tensor) -> Scales:
        """The same multiplied by `factors` [R, 1] or [R, G], as a file holds them."""
        step = self.step.to(factors.device)
        return self.at(self.nearest(step * factors, step))

    def of_rows(self, rows: slice) -> Scales:
        """Those of some rows, where rows have their own."""
        if len(self.step) == 1:
            return self
        stored = {**self.stored, ".weight_scale": self.stored[".weight_scale"][rows]}
        return Scales(self.step[rows], stored)

    def cpu(self) -> Scales:
        """The same in the memory of the CPU."""
        return self.to("cpu")

    def to(self, device: torch.device | str) -> Scales:
        """The same on a device."""
        return Scales(self.step.to(device), {name: tensor.to(device) for name, tensor in self.stored.items()})

    def _kept(self, step: Tensor) -> Tensor:
        found = step / self._second(step)
        if ".weight_scale_2" in self.stored:
            found = found.clamp(SMALLEST_GROUP_SCALE, E4M3_LARGEST)
        return found.to(self.stored[".weight_scale"].dtype)

    def _second(self, step: Tensor) -> Tensor:
        return self.stored[".weight_scale_2"] if ".weight_scale_2" in self.stored else step.new_ones(())


def largest(form: Format, weight: Tensor) -> Tensor:
    """[1, 1], [R, 1] or [R, G] fp32: the largest size of a number in what shares a scale in [R, C]."""
    if form.group:
        return weight.reshape(len(weight), -1, form.group).abs().amax(-1).float()
    found = weight.abs().amax(1, keepdim=True).float()
    return found if form.row_bytes else found.amax(0, keepdim=True)


def whole_of(weights: Sequence[Tensor]) -> float:
    """The largest size of a number in matrices that share what is scaled as a whole: engines join linears that read
    the same inputs, and take one such scale for all."""
    return max(float(weight.abs().amax()) for weight in weights)


def scales_for(form: Format, ends: Tensor, whole: float, largest_scale: float = E4M3_LARGEST) -> Scales:
    """The scales by which numbers of the size `ends` ([1, 1], [R, 1] or [R, G]) go to the grid's end; where an end is
    below zero, numbers above it go below.

    `whole` is the largest size of all numbers, of all matrices that share a scale; it counts where the scales of groups
    are scaled themselves, to at most `largest_scale`."""
    import torch

    limit = GRIDS[form.numbers].limit
    if form.numbers == "e2m1":
        # In fp32, as modelopt divides: the bytes are to be the same.
        second = torch.tensor(whole, dtype=torch.float32) / (E2M1_LARGEST * largest_scale)
        second = torch.where(second > 0, second, torch.ones(()))
        found = ends / (E2M1_LARGEST * second)
        found = torch.where(found == 0, torch.ones(()), found).clamp(SMALLEST_GROUP_SCALE, E4M3_LARGEST)
        group = found.to(torch.float8_e4m3fn)
        return Scales(group.float() * second, {".weight_scale": group, ".weight_scale_2": second})
    found = ends / limit
    found = torch.where(found == 0, torch.ones(()), found)
    if form.row_bytes or form.group:
        kept = found.to(torch.bfloat16)
        # What rounds to nothing is no scale.
        kept = torch.where(kept == 0, torch.ones((), dtype=torch.bfloat16), kept)
        return Scales(kept.float(), {".weight_scale": kept})
    return Scales(found, {".weight_scale": found.reshape(())})


def plain_scales(form: Format, weights: Sequence[Tensor]) -> list[Scales]:
    """The scales of matrices [R, C] that read the same inputs, by their largest numbers."""
    whole = whole_of(weights)
    if not form.row_bytes and not form.group:
        import torch

        return [scales_for(form, torch.full((1, 1), whole, device=weight.device), whole) for weight in weights]
    return [scales_for(form, largest(form, weight), whole) for weight in weights]


def searched_scales(form: Format, weights: Sequence[Tensor], importance: Tensor | None = None) -> list[Scales]:
    """The same with the ends of the grid chosen from CLIPPINGS for the least squared error, each column weighted by
    `importance` [C]: the second moment of what is read there."""
    whole = whole_of(weights)
    top = SEARCHED_LARGEST if form.numbers == "e2m1" else E4M3_LARGEST
    if not form.row_bytes and not form.group:
        return _searched_whole(form, weights, whole, importance)
    return [_searched(form, weight, whole, top, importance) for weight in weights]


def _searched(form: Format, weight: Tensor, whole: float, top: float, importance: Tensor | None) -> Scales:
    """Every row's or group's own end; rows do not know of each other, so some go at a time."""
    import torch

    ends, grid = [], GRIDS[form.numbers]
    for part in _some_rows(weight):
        rows = part.float()
        most = largest(form, rows)
        best = torch.full_like(most, torch.inf)
        chosen = most.clone()
        for clipping in CLIPPINGS[form.numbers]:
            scales = scales_for(form, most * clipping, whole, top)
            error = _errors(grid, rows, scales, importance, most.shape[1])
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, most * clipping, chosen)
        ends.append(chosen)
    return scales_for(form, torch.cat(ends), whole, top)


def _searched_whole(form: Format, weights: Sequence[Tensor], whole: float, importance: Tensor | None) -> list[Scales]:
    import torch

    grid, best, chosen = GRIDS[form.numbers], float("inf"), 1.0

    def whole_scales(weight: Tensor, clipping: float) -> Scales:
        # Beside the weight: a matrix on a GPU takes no matrix in the CPU's memory, be it of one number.
        return scales_for(form, torch.full((1, 1), whole * clipping, device=weight.device), whole)

    for clipping in CLIPPINGS[form.numbers]:
        error: float = sum(
            float(_errors(grid, rows.float(), scales, importance, 1).sum())
            for weight in weights
            for scales in [whole_scales(weight, clipping)]
            for rows in _some_rows(weight)
        )
        if error < best:
            best, chosen = error, clipping
    return [whole_scales(weight, chosen) for weight in weights]


def _errors(grid: Grid, rows: Tensor, scales: Scales, importance: Tensor | None, groups: int) -> Tensor:
    """[R, G]: the weighted squares of what rounding changes."""
    parts = rows.view(len(rows), groups, -1)
    step = scales.step[..., None]
    error = grid.nearest(parts / step).mul_(step).sub_(parts).square_()
    if importance is not None:
        error = error.mul_(importance.view(groups, -1))
    return error.sum(-1)


def _some_rows(weight: Tensor) -> Iterator[Tensor]:
    """[R, C] in runs of rows."""
    import torch

    count = max(1, _AT_ONCE * torch.get_num_threads() // weight.shape[1])
    return (weight[start : start + count] for start in range(0, len(weight), count))
