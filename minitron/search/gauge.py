"""Gauge: what the points of a lattice come to of everything that limits hold down, and which limit binds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.limits import MEMORY, SORTS, Held, breach, excess
from minitron.memory.loads import load_of
from minitron.memory.precision import Tally, precision_of, tally
from minitron.memory.roofline import answer_seconds
from minitron.memory.workload import Workload
from minitron.search.lattice import Lattice, Points

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Gauge:
    """Of one lattice.  Raises MinitronError where speed is limited and no GPU is named whose speed is known."""

    lattice: Lattice
    workloads: Sequence[Workload]
    """The workload in each format of the lattice; one where it has none."""

    budget: Budget
    _tallies: dict[int, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = self.budget.limits
        if limits.timed and self.budget.gpu is None:
            flags = " and ".join(SORTS[name].flag for name in limits.given if SORTS[name].timed)
            raise MinitronError(f"{flags} limit the speed on a GPU, and none is named; give --gpu, such as --gpu A10G.")

    @property
    def limits(self) -> dict[str, float]:
        """name -> the limit, memory among them."""
        return {MEMORY: self.budget.available, **self.budget.limits.given}

    def values(self, points: Points, totals: Any) -> dict[str, Any]:
        """name -> what each point comes to, as an array that broadcasts to their shape; `totals` are their bytes."""
        given, spec = self.budget.limits.given, self.lattice.spec
        found: dict[str, Any] = {MEMORY: totals}
        if {"parameters", "active_parameters"} & given.keys():
            counts = {kind: count[points.depth] for kind, count in self.lattice.kinds.items()}
            parameters = spec.parameters(points.sizes, counts)
            found |= {"parameters": parameters.total, "active_parameters": parameters.active}
        if self.budget.limits.timed:
            seconds = self._seconds(points)
            workload = self.workloads[0]
            written = workload.batch * (workload.context - self.budget.limits.prompt)
            found |= {"latency": seconds, "throughput": written / seconds}
        return {name: value for name, value in found.items() if name in self.limits}

    def _seconds(self, points: Points) -> Any:
        """Until all sequences of the workload are answered."""
        if points.form is None or len(forms := np.unique(points.form)) == 1:
            return self._seconds_in(points, 0 if points.form is None else int(forms[0]))
        found = np.zeros(points.shape)
        for form in forms.tolist():
            here = np.flatnonzero(points.form == form)
            found[here] = self._seconds_in(points.select(here), form)
        return found

    def _seconds_in(self, points: Points, form: int) -> Any:
        spec, workload, limits = self.lattice.spec, self.workloads[form], self.budget.limits
        if form not in self._tallies:
            precision = precision_of(spec, workload.weights, workload.keep)
            self._tallies[form] = tally(spec, precision, self.lattice.depths)
        load = load_of(spec, workload, points.sizes, self._tallies[form].at(points.depth))
        assert self.budget.gpu is not None
        output = workload.context - limits.prompt
        return answer_seconds(load, self.budget.gpu, prompt=limits.prompt, output=output, concurrency=workload.batch)


@dataclass
class Bindings:
    """Which limits let points in and keep them out, as points go by."""

    gauge: Gauge
    excluded: dict[str, int] = field(default_factory=dict)
    """name -> points that only this limit keeps out."""

    missed: dict[str, float] = field(default_factory=dict)
    """name -> the most that one of those is worth."""

    nearest: tuple[float, Points] | None = None
    """(by what factor it breaks the limit that it breaks most, point), of those that broke some limit the least."""

    def see(self, points: Points, allowed: Mask, totals: Any, worth: Any) -> tuple[Mask, Mask]:
        """(points that keep every limit, those that keep all but memory), of those that no constraint keeps out."""
        limits = self.gauge.limits
        factors = {
            name: points.spread(excess(name, value, limits[name]))
            for name, value in self.gauge.values(points, totals).items()
        }
        kept = {name: factor <= 1 for name, factor in factors.items()}
        for name in kept:
            alone = allowed & ~kept[name]
            for other, mask in kept.items():
                alone = alone if other == name else alone & mask
            if count := int(np.count_nonzero(alone)):
                self.excluded[name] = self.excluded.get(name, 0) + count
                self.missed[name] = max(self.missed.get(name, -np.inf), float(worth[alone].max()))
        if allowed.any() and (self.nearest is None or self.nearest[0] > 1):
            worst = np.where(allowed, np.maximum.reduce(list(factors.values())), np.inf)
            least = int(worst.argmin())
            if self.nearest is None or worst.flat[least] < self.nearest[0]:
                self.nearest = float(worst.flat[least]), points.select(np.array([least]))
        others = np.logical_and.reduce([allowed, *(mask for name, mask in kept.items() if name != MEMORY)])
        return others & kept[MEMORY], others

    def held(self, parent: Mapping[str, float], best: float) -> tuple[Held, ...]:
        """Every limit; `parent` is what the model comes to, `best` what the best that keeps all is worth."""
        return tuple(
            Held(name, limit, parent[name], self.excluded.get(name, 0), self.missed.get(name, -np.inf) > best)
            for name, limit in self.gauge.limits.items()
        )


def broken(limits: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    """By how much a candidate breaks each limit that it breaks, as clauses."""
    return [
        breach(name, values[name], limit) for name, limit in limits.items() if excess(name, values[name], limit) > 1
    ]
