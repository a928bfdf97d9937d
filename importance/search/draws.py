"""Draws: for which budgets random combinations are drawn, and how; and candidates as points of a lattice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from minitron.memory.budget import Budget
from minitron.search.candidate import Candidate
from minitron.search.lattice import Lattice, Points


def draws_of(
    family: Sequence[Budget], combinations: int, seed: int
) -> Iterator[tuple[Budget, np.random.Generator, int]]:
    """(budget, generator, how many) of the random combinations: as many for each budget of the family."""
    count = len(family)
    for number, budget in enumerate(family):
        rng = np.random.default_rng(seed if count == 1 else [seed, number])
        yield budget, rng, combinations * (number + 1) // count - combinations * number // count


def by_chance(rng: np.random.Generator, points: Points) -> NDArray[np.float64]:
    """A number for each point, whatever it is."""
    return rng.random(points.shape)


def points_of(lattice: Lattice, candidates: Sequence[Candidate]) -> Points:
    """Candidates as points of the lattice."""
    spec, depths = lattice.spec, {kept: number for number, kept in enumerate(lattice.depths)}
    sizes = {
        axis: np.array(
            [candidate.sizes.get(spec.key(axis), spec.sizes[axis]) for candidate in candidates], dtype=np.int64
        )
        for axis in sorted(lattice.varied)
    }
    depth = np.array([depths[candidate.kept] for candidate in candidates], dtype=np.int64)
    forms = {formats: number for number, formats in enumerate(lattice.formats)}
    form = np.array([forms[one.formats] for one in candidates if one.formats is not None], dtype=np.int64)
    return Points(depth, sizes, depth.shape, form if lattice.formats else None)
