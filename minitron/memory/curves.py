"""Curves: memory against context and batch, and where each model reaches the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from minitron.memory.budget import Budget
from minitron.memory.questions import UNLIMITED, largest_batch, largest_context, total_of
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec

_STEPS: Final = 4
"""Points of an octave: a straight line is bent on a logarithmic axis."""

_FEWEST_TOKENS: Final = 2**10
_FEWEST_BATCH: Final = 8
_MOST_BATCH: Final = 64
"""The longest axis of batches, unless the workload's own asks for a longer one."""


@dataclass(frozen=True)
class Curve:
    """One model's memory against one quantity of the workload."""

    totals: tuple[int, ...]
    """Bytes at every point of the grid."""

    largest: int | None
    """The largest quantity at which the model fits: 0 where it fits at none, None where it fits at any."""

    at_largest: int | None
    """Bytes there; None where `largest` is 0 or None."""


@dataclass(frozen=True)
class Curves:
    """Several models' memory against one quantity, everything else as in the workload."""

    points: tuple[int, ...]
    """The grid, ascending."""

    series: Mapping[str, Curve]
    """label -> the curve of that model."""


def context_curves(
    models: Mapping[str, ModelSpec],
    workload: Workload,
    budget: Budget,
    longest: int | None,
    own: Mapping[str, Workload] | None = None,
) -> Curves:
    """Memory against the context, as far as twice the longer of the workload's and `longest`, the config's; `own` are
    the workloads of the models that have another, in their formats."""
    top = 2 * max(workload.context, longest or 0)
    fewest = _FEWEST_TOKENS if workload.context > _FEWEST_TOKENS else 1

    def grid(limits: Sequence[int]) -> list[int]:
        octaves = range(fewest.bit_length() - 1, top.bit_length())
        powers = [2**octave + 2**octave * step // _STEPS for octave in octaves for step in range(_STEPS)]
        return [point for point in (*powers, workload.context, *limits) if fewest <= point <= top]

    return _curves(
        {label: _Question(spec, (own or {}).get(label, workload), budget, "context") for label, spec in models.items()},
        largest_context,
        grid,
    )


def batch_curves(
    models: Mapping[str, ModelSpec], workload: Workload, budget: Budget, own: Mapping[str, Workload] | None = None
) -> Curves:
    """Memory against the batch, somewhat further than the largest that fits; `own` as in `context_curves`."""
    most = max(_MOST_BATCH, 8 * workload.batch)

    def grid(limits: Sequence[int]) -> list[int]:
        top = min(most, max(_FEWEST_BATCH, 2 * workload.batch, *(limit + limit // 4 + 1 for limit in limits)))
        return [point for point in (*range(1, top, max(1, top // 32)), top, workload.batch, *limits) if point <= top]

    return _curves(
        {label: _Question(spec, (own or {}).get(label, workload), budget, "batch") for label, spec in models.items()},
        largest_batch,
        grid,
    )


@dataclass(frozen=True)
class _Question:
    """How much a model takes when one quantity of the workload is another."""

    spec: ModelSpec
    workload: Workload
    budget: Budget
    quantity: str

    def at(self, value: int) -> Workload:
        return replace(self.workload, **{self.quantity: value})  # type: ignore[arg-type]

    def total(self, value: int) -> int:
        return total_of(self.spec, self.at(value), self.budget)


def _curves(
    questions: Mapping[str, _Question],
    largest: Callable[[ModelSpec, Workload, Budget], int],
    grid: Callable[[Sequence[int]], list[int]],
) -> Curves:
    limits: dict[str, int | None] = {}
    for label, asked in questions.items():
        found = largest(asked.spec, asked.workload, asked.budget)
        limits[label] = None if found >= UNLIMITED else found
    points = tuple(sorted({*grid([limit for limit in limits.values() if limit] or [1])}))
    return Curves(
        points,
        {
            label: Curve(
                tuple(asked.total(point) for point in points),
                limit := limits[label],
                asked.total(limit) if limit else None,
            )
            for label, asked in questions.items()
        },
    )
