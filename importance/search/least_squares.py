"""Least squares with coefficients that may not be negative, in a few lines of numpy."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nonnegative(matrix: Array, wanted: Array) -> Array:
    """[K]: the x >= 0 of the least |matrix x - wanted|, for a matrix [N, K] of full column rank.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23) on the normal
    equations, which is exact enough where a ridge keeps them well conditioned."""
    gram, target = matrix.T @ matrix, matrix.T @ wanted
    found = np.zeros(len(target))
    free = np.zeros(len(target), dtype=bool)
    tolerance = 1e-10 * max(float(np.abs(target).max(initial=0.0)), 1e-300)
    # Each round frees one coefficient, and some may go back: three rounds each are more than ever needed.
    for _ in range(3 * len(target)):
        slope = target - gram @ found
        slope[free] = -np.inf
        best = int(slope.argmax())
        if slope[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros_like(found)
            trial[free] = np.linalg.solve(gram[np.ix_(free, free)], target[free])
            below = free & (trial <= 0)
            if not below.any():
                found = trial
                break
            # As far towards the trial as all stay at or above zero; what got there is held there.
            steps = found[below] / (found[below] - trial[below])
            found = found + float(steps.min()) * (trial - found)
            free &= found > 1e-14
            found[~free] = 0.0
    return found


def ranks(values: Array) -> Array:
    """[N]: 0 for the least; equal values share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    places = np.empty(len(values))
    places[order] = np.arange(len(values))
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.bincount(group, places) / count)[group])


def spearman(one: Array, other: Array) -> float:
    """Spearman's rank correlation of two series [N]; 0 where one of them does not vary."""
    x, y = (found - found.mean() for found in (ranks(one), ranks(other)))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
