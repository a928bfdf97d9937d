"""Counting: the memory of points of a lattice, and what they are worth, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minitron.arrays import spread
from minitron.memory.budget import Budget
from minitron.memory.footprint import Footprint, footprint
from minitron.memory.parallel import splits
from minitron.memory.precision import Tally, precision_of, tally
from minitron.memory.workload import Workload
from minitron.model.axes import ACTIVE
from minitron.model.spec import DEPTH, ModelSpec
from minitron.model.tensors import Parameters
from minitron.search.candidate import Candidate
from minitron.search.dead_zones import dead_zones
from minitron.search.effective_parameters import EffectiveParameters
from minitron.search.format_choices import FIRST, numbers_of, weight_of, worth
from minitron.search.gauge import Gauge, broken
from minitron.search.lattice import Lattice, Points
from minitron.search.offered_formats import form_of

if TYPE_CHECKING:
    from minitron.cut.scores import Scores


@dataclass(frozen=True)
class Worth:
    """What to rank by in the place of effective parameters."""

    of: Callable[[Points], Any]
    """Points of the lattice with one depth a layout (`one_a_layout`) -> what each is worth, as an array that broadcasts
    to their shape: larger is better."""

    ranking: str
    """What it is, in words: `ranked by` stands before it."""


def default_worth(lattice: Lattice, scores: Scores | None, shares: EffectiveParameters | None = None) -> Worth:
    """Effective parameters where there are scores, kept parameters where not.  `lattice` has one depth a layout."""
    less = ", less those that a token is no longer sent to" if ACTIVE in lattice.varied else ""
    less += ", less what formats lose" if lattice.formats else ""
    if scores is None:
        return Worth(lambda points: _worth(lattice, None, points), f"kept parameters (no scores given){less}")
    shares = shares or EffectiveParameters(lattice, scores)
    return Worth(lambda points: _worth(lattice, shares, points), f"effective parameters (by the scores given){less}")


def _counts(lattice: Lattice, points: Points) -> dict[str, NDArray[np.int64]]:
    return {kind: count[points.depth] for kind, count in lattice.kinds.items()}


def _kept(lattice: Lattice, shares: EffectiveParameters | None, points: Points) -> Parameters:
    """The parameters, or effective ones, of points.  Of fewer experts a token, what it no longer uses of those that
    stay counts as if it were cut."""

    def count(points: Points) -> Parameters:
        if shares is not None:
            return shares.parameters(points)
        return lattice.spec.parameters(points.sizes, _counts(lattice, points))

    found = count(points)
    if ACTIVE not in points.sizes:
        return found
    whole = count(replace(points, sizes={axis: size for axis, size in points.sizes.items() if axis != ACTIVE}))
    return replace(found, total=found.total - (whole.active - found.active))


def _worth(lattice: Lattice, shares: EffectiveParameters | None, points: Points) -> Any:
    """What candidates are ranked by: effective parameters, or parameters where there are no scores; where formats are
    searched those to which a cut alone would lose as much as cut and formats together do, by the prior."""
    found = _kept(lattice, shares, points)
    if points.form is None:
        return found.total
    whole = lattice.spec.parameters().total
    error: Any = sum(weight_of(found, part) * error[points.form] for part, error in lattice.errors.items())
    return whole * worth(found.total / whole, error / found.active)


def first_forms(lattice: Lattice) -> list[int] | None:
    """The formats of a lattice that are tried with every architecture; None where it has none."""
    return spread(len(lattice.formats), FIRST).tolist() if lattice.formats else None


@dataclass(frozen=True)
class Counter:
    """How points are counted."""

    workload: Workload
    budget: Budget

    def workloads(self, lattice: Lattice) -> list[Workload]:
        """The workload in each format of the lattice; as it is where that has none."""
        return [formats.on(self.workload) for formats in lattice.formats] or [self.workload]

    def footprint(self, spec: ModelSpec, workload: Workload, points: Points, kept: Tally) -> Footprint:
        """Bytes of every point in one format; `kept` is the tally of the lattice's depths."""
        tallied = kept.at(points.depth)
        return footprint(spec, workload, self.budget.workspace, points.sizes, tally=tallied)

    def blocks(
        self, lattice: Lattice, forms: Sequence[int] | None = None
    ) -> Iterator[tuple[Points, NDArray[np.bool_], NDArray[np.int64]]]:
        """All points in blocks, each with a mask of those that keep the constraints and with their bytes: in the
        formats `forms` of the lattice, or in all."""
        spec = lattice.spec
        workloads = self.workloads(lattice)
        for number in range(len(workloads)) if forms is None else forms:
            workload = workloads[number]
            kept = tally(spec, precision_of(spec, workload.weights, workload.keep), lattice.depths)
            for points, allowed in lattice.chunks():
                if lattice.formats:
                    points = points.in_format(number)
                allowed = allowed & splits(spec, {**spec.sizes, **points.sizes}, workload.tensor_parallel)
                yield points, allowed, points.spread(self.footprint(spec, workload, points, kept).total)

    def fewest_bytes(self, lattice: Lattice, points: Points) -> NDArray[np.float64]:
        """What flat points take at least on each GPU, which is quick to count: the bits of the format of each part,
        without what rows that are no whole blocks take, other weights, caches and states."""
        assert points.form is not None
        numbers = lattice.spec.parameters(points.sizes, _counts(lattice, points)).by_component
        found = np.zeros(points.shape)
        for part in dict.fromkeys(part for one in lattice.formats for part, _ in one.parts):
            bits = np.array([float(form_of(dict(one.parts)[part]).bits_with_scales) for one in lattice.formats])
            found = found + numbers_of(numbers, part) * bits[points.form] / 8
        return found / self.workload.tensor_parallel

    def candidates(self, lattice: Lattice, shares: EffectiveParameters | None, points: Points) -> tuple[Candidate, ...]:
        """Flat points in full."""
        parameters = points.spread(lattice.spec.parameters(points.sizes, _counts(lattice, points)).total).tolist()
        scores = points.spread(_worth(lattice, shares, points)).tolist()
        lines = self.lines(lattice, points)
        measures = self._measures(lattice, points, np.array([line.total for line in lines]))
        return tuple(
            self._candidate(
                lattice, points.select(np.array([place])), lines[place], parameters[place], score, measures[place]
            )
            for place, score in enumerate(scores)
        )

    def gauge(self, lattice: Lattice) -> Gauge:
        """What points of the lattice come to of everything that is limited."""
        return Gauge(lattice, self.workloads(lattice), self.budget)

    def _measures(self, lattice: Lattice, points: Points, totals: NDArray[np.int64]) -> list[dict[str, float]]:
        """What each flat point comes to of what is limited; empty where that is memory alone."""
        if not self.budget.limits.given:
            return [{}] * len(totals)
        values = self.gauge(lattice).values(points, totals)
        lists = {name: points.spread(value).tolist() for name, value in values.items()}
        return [{name: numbers[place] for name, numbers in lists.items()} for place in range(len(totals))]

    def lines(self, lattice: Lattice, points: Points) -> list[Footprint]:
        """The footprint of each flat point."""
        found: dict[int, Footprint] = {}
        spec = lattice.spec
        for number, workload in enumerate(self.workloads(lattice)):
            here = np.arange(points.shape[0]) if points.form is None else np.flatnonzero(points.form == number)
            if not len(here):
                continue
            some = points.select(here)
            kept = tally(spec, precision_of(spec, workload.weights, workload.keep), lattice.depths)
            counted = self.footprint(spec, workload, some, kept)
            lines = {name: some.spread(bytes_).tolist() for name, bytes_ in counted.lines.items()}
            for own, place in enumerate(here.tolist()):
                found[place] = Footprint(**{name: line[own] for name, line in lines.items()})
        return [found[place] for place in range(points.shape[0])]

    def _candidate(
        self,
        lattice: Lattice,
        point: Points,
        counted: Footprint,
        parameters: int,
        score: float,
        measures: dict[str, float],
    ) -> Candidate:
        spec, depth = lattice.spec, int(point.depth[0])
        sizes = spec.sizes | {axis: int(size[0]) for axis, size in point.sizes.items()}
        kept = lattice.depths[depth]
        candidate = Candidate(
            sizes={DEPTH: len(kept)}
            | {key: sizes[axes[0]] for key, axes in spec.keys.items() if lattice.has[key][depth]},
            kept=kept,
            letters="".join(spec.letters[layer] for layer in kept),
            parameters=parameters,
            footprint=counted,
            fits=counted.total <= self.budget.available and not broken(self.budget.limits.given, measures),
            score=score,
            formats=None if point.form is None else lattice.formats[int(point.form[0])],
            measures=measures,
        )
        return replace(candidate, warnings=dead_zones(spec, candidate))
