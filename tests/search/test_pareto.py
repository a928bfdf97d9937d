"""The Pareto front against its definition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron.search.lattice import Points
from minitron.search.pareto import CELLS, Front

Pairs = list[tuple[int, int]]


def stream(pairs: Pairs, highest: int, available: int, chunk: int) -> Front:
    """A front that has seen (memory, worth) pairs; a point's only size is its place, from 1."""
    front = Front(highest, available)
    for start in range(0, len(pairs), chunk):
        memory, worth = np.array(pairs[start : start + chunk], dtype=np.int64).T
        places = np.arange(start, start + len(memory))
        points = Points(np.zeros(len(memory), dtype=np.int64), {"hidden": places + 1}, memory.shape)
        front.add(points, np.ones(len(memory), dtype=bool), memory, worth)
    return front


def places(front: Front, most: int = 10**9) -> list[int]:
    points = front.points(most)
    return (points.sizes["hidden"] - 1).tolist() if points.sizes else []


def unbeaten(pairs: Pairs, highest: int) -> list[int]:
    """The front by its definition, the first of equal points."""
    inside = [(memory, -worth, place) for place, (memory, worth) in enumerate(pairs) if memory <= highest]
    return [
        place
        for memory, worth, place in sorted(inside)
        if not any(m <= memory and w <= worth and (m, w, p) < (memory, worth, place) for m, w, p in inside)
    ]


PAIRS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_the_front_is_what_nothing_beats(pairs: Pairs, highest: int, available: int, chunk: int) -> None:
    # As fine as bytes: every number of bytes has a cell of its own.
    assert places(stream(pairs, highest, available, chunk)) == unbeaten(pairs, highest)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.integers(1, 60), st.integers(1, 60))
def test_coarse_cells_keep_the_best_of_each(pairs: Pairs, available: int, chunk: int) -> None:
    unit = 100
    pairs = [(memory * unit // 7, worth) for memory, worth in pairs]
    highest, budget = CELLS * unit - 1, available * unit // 7
    front = places(stream(pairs, highest, budget, chunk))
    exact = unbeaten(pairs, highest)
    cells = [(pairs[place][0] // unit, pairs[place][0] > budget) for place in front]
    assert set(front) <= set(exact)
    assert len(set(cells)) == len(front)
    assert set(cells) == {(pairs[place][0] // unit, pairs[place][0] > budget) for place in exact}
    assert front == places(stream(pairs, highest, budget, 1))


def test_a_long_front_is_thinned_evenly() -> None:
    pairs = [(memory, memory) for memory in range(1, 3001)]
    front = stream(pairs, 3000, 1234, 500)
    thin = places(front, 60)
    assert 55 <= len(thin) <= 60
    assert 1234 - 1 in thin
    assert thin[-1] == 2999
    assert max(np.diff(thin)) <= 60
    assert places(front, 3000) == list(range(3000))


def test_points_that_are_not_allowed_stay_out() -> None:
    front = Front(100, 100)
    memory, worth = np.array([10, 20]), np.array([5, 9])
    points = Points(np.zeros(2, dtype=np.int64), {"hidden": np.array([1, 2])}, (2,))
    front.add(points, np.array([True, False]), memory, worth)
    assert places(front) == [0]
