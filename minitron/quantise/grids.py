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


def _floating(fraction: int, least: float, end: float) -> Callable[[Tensor], Tensor]:
    """Floats with so many bits of fraction, whose steps stay what they are at `least` below it."""

    def nearest(numbers: Tensor) -> Tensor:
        import torch

        size = numbers.clamp(-end, end)
        # The power of two below each number: its exponent bits alone.
        power = size.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32).clamp_(min=least)
        # fp32 has 23 bits of fraction: next to 1.5 x 2^23 steps it keeps whole steps, and rounds to them.
        anchor = power.mul_(1.5 * 2.0 ** (23 - fraction))
        # Zero keeps its sign.
        return torch.copysign((size + anchor).sub_(anchor), numbers)

    return nearest


def _whole(bits: int) -> Callable[[Tensor], Tensor]:
    end = 2 ** (bits - 1)
    return lambda numbers: numbers.round().clamp_(-end, end - 1)


GRIDS: Final[Mapping[str, Grid]] = {
    "e4m3": Grid(E4M3_LARGEST, _floating(3, 2.0**-6, E4M3_LARGEST)),
    "e2m1": Grid(E2M1_LARGEST, _floating(1, 1.0, E2M1_LARGEST)),
    # Half of the distance between the ends, as compressed-tensors scales symmetric integers.
    "int8": Grid(127.5, _whole(8)),
    "int4": Grid(7.5, _whole(4)),
}
"""A word in minitron.memory.formats.Numbers -> the grid."""
