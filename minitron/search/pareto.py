"""The best points of a stream, and its Pareto front.

A point is on the Pareto front of (memory, worth) where none takes as little memory and is worth more, nor takes less
and is worth as much.  Where parameters are all that a point is worth nearly every point is on it, so a fine grid of
cells is laid over memory and the best of each cell remembered: what comes out are points of the front itself, at most
one a cell, and memory stays bounded however many points go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.search.lattice import Points, joined

CELLS: Final = 4096
"""Into how many cells the memory of the whole model is divided."""

MOST: Final = 60
"""How many points of a front are shown: more than a chart can tell apart would only slow it down."""


class Best:
    """The best points seen so far, best first; of equal ones the first seen."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.worth = np.zeros(0)
        self.parts: list[Points] = []

    @property
    def points(self) -> Points:
        """What has been kept."""
        return self.parts[0]

    def add(self, points: Points, fits: NDArray[np.bool_], worth: NDArray[Any]) -> None:
        """Let the better ones among the points that fit in."""
        if len(self.worth) == self.top:
            fits = fits & (worth > self.worth[-1])
        places = np.flatnonzero(fits)
        if not len(places):
            return
        worth = worth.reshape(-1)[places].astype(np.float64)
        if len(worth) > self.top:
            likely = worth >= np.partition(worth, -self.top)[-self.top]
            places, worth = places[likely], worth[likely]
        pool = joined([*self.parts, points.select(places)])
        merged = np.concatenate([self.worth, worth])
        order = np.argsort(-merged, kind="stable")
        order = order[pool.firsts(order)][: self.top]
        self.worth, self.parts = merged[order], [pool.select(order)]


class Front:
    """The Pareto front of (memory, worth) of the points seen so far, as far as the cells tell them apart.

    Cells have one width, but that one ends at `available`: so the best point that fits is not hidden by a better one
    just above the budget."""

    def __init__(self, highest: int, available: int) -> None:
        """`highest`: bytes above which no point is of interest; `available`: the budget."""
        self.highest, self.available = highest, available
        self.worth = np.full(CELLS + 2, -np.inf)
        self.memory = np.full(CELLS + 2, np.iinfo(np.int64).max)
        self.depth = np.zeros(CELLS + 2, dtype=np.int64)
        self.sizes: dict[str, NDArray[np.int64]] = {}
        self.form: NDArray[np.int64] | None = None
        # The most that any cell up to this one holds: what is worth less is beaten.  The last cell takes all above
        # `highest` and lets nothing in.
        self._beaten = np.full(CELLS + 3, -np.inf)
        self._beaten[-1] = np.inf

    def add(self, points: Points, allowed: NDArray[np.bool_], memory: NDArray[Any], worth: NDArray[Any]) -> None:
        """Let in what no point so far beats; all arrays have the points' shape."""
        cells = self._cells(memory)
        places = np.flatnonzero(allowed & (worth >= self._beaten[cells]))
        if not len(places):
            return
        cells, memory, worth = (array.reshape(-1)[places] for array in (cells, memory, worth))
        worth = worth.astype(np.float64)
        most = self.worth.copy()
        np.maximum.at(most, cells, worth)
        few = worth >= np.maximum.accumulate(most)[cells]
        places, cells, memory, worth = (array[few] for array in (places, cells, memory, worth))
        # Of the points of one cell the best, of equal ones the smallest, of equal ones the first seen.
        order = np.lexsort((memory, -worth, cells))
        order = order[np.concatenate([[True], np.diff(cells[order]) != 0])]
        at = cells[order]
        better = (worth[order] > self.worth[at]) | (
            (worth[order] == self.worth[at]) & (memory[order] < self.memory[at])
        )
        order, at = order[better], at[better]
        self._put(at, points.select(places[order]), memory[order], worth[order])

    def _cells(self, memory: NDArray[Any]) -> NDArray[np.intp]:
        """The cell of each point, CELLS + 2 for those above `highest`."""
        cells = (memory * (CELLS / (self.highest + 1))).astype(np.intp)
        if self.available < self.highest:
            cells += memory > self.available
        cells[memory > self.highest] = CELLS + 2
        return cells

    def _put(self, at: NDArray[np.intp], points: Points, memory: NDArray[Any], worth: NDArray[Any]) -> None:
        self.memory[at], self.worth[at], self.depth[at] = memory, worth, points.depth
        for axis, size in points.sizes.items():
            self.sizes.setdefault(axis, np.zeros(CELLS + 2, dtype=np.int64))[at] = size
        if points.form is not None:
            self.form = np.zeros(CELLS + 2, dtype=np.int64) if self.form is None else self.form
            self.form[at] = points.form
        self._beaten[:-1] = np.maximum.accumulate(self.worth)

    def points(self, most: int = MOST) -> Points:
        """The front, the least memory first, thinned to at most `most` points that are spread over memory."""
        before = np.concatenate([[-np.inf], np.maximum.accumulate(self.worth)[:-1]])
        cells = np.flatnonzero(self.worth > before)
        cells = cells[_spread(self.memory[cells], self.available, most)]
        sizes: Mapping[str, NDArray[np.int64]] = {axis: size[cells] for axis, size in self.sizes.items()}
        return Points(self.depth[cells], sizes, cells.shape, None if self.form is None else self.form[cells])


def _spread(memory: NDArray[np.int64], available: int, most: int) -> NDArray[np.int64]:
    """Places of at most `most` of the ascending numbers: the last of each of equally wide parts, and the last of all
    that are `available` or less."""
    if len(memory) <= most:
        return np.arange(len(memory))
    parts = (memory - memory[0]) * (most - 1) // (memory[-1] - memory[0] + 1) + (memory > available)
    return np.flatnonzero(np.append(np.diff(parts) != 0, True))
