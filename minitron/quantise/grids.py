"""Grids: the numbers that a format has, and the nearest of them to any other; ties go to the even one.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

E4M3_LARGEST: Final = 448.0
E2M1_LARGEST: Final = 6.0


@dataclass(frozen=True)
class Grid:
    """The numbers of a format, before scales."""

    limit: float
    """What the largest number of a matrix is scaled to where nothing is searched."""

    nearest: Callable[[Tensor], Tensor]
    """fp32 of any shape -> the nearest numbers of the grid, as fp32; what is beyond its ends goes there."""


def _e4m3(numbers: Tensor) -> Tensor:
    import torch

    # torch makes NaN of what is beyond the largest.
    return numbers.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).float()


def _e2m1(numbers: Tensor) -> Tensor:
    """0, 0.5, 1, 1.5, 2, 3, 4, 6: steps of a half, of one from 2, of two from 4; zero keeps its sign."""
    import torch

    size = numbers.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(((size / step).round() * step).clamp(max=E2M1_LARGEST), numbers)


def _whole(bits: int) -> Callable[[Tensor], Tensor]:
    end = 2 ** (bits - 1)
    return lambda numbers: numbers.round().clamp(-end, end - 1)


GRIDS: Final[Mapping[str, Grid]] = {
    "e4m3": Grid(E4M3_LARGEST, _e4m3),
    "e2m1": Grid(E2M1_LARGEST, _e2m1),
    # Half of the distance between the ends, as compressed-tensors scales symmetric integers.
    "int8": Grid(127.5, _whole(8)),
    "int4": Grid(7.5, _whole(4)),
}
"""A word in minitron.memory.formats.Numbers -> the grid."""
