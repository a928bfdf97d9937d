"""One sweep over a lattice: every point is looked at once, and the best ones, the front and the rivals remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.memory.budget import Budget
from minitron.search.counting import Counter, Worth, first_forms
from minitron.search.format_choices import FIRST
from minitron.search.gauge import Bindings
from minitron.search.lattice import Lattice, Points, in_every_format, joined
from minitron.search.pareto import Best, Front

CUT_ALONE: Final = "a cut alone"
FORMATS_ALONE: Final = "a change of formats alone"

Kind = Callable[[Points], NDArray[np.bool_]]


def _in_plain_formats(lattice: Lattice) -> Kind:
    plain = np.array([not one.quantised for one in lattice.formats], dtype=np.bool_)
    return lambda points: np.asarray(points.spread(plain[points.form]))


def _of_whole_size(lattice: Lattice) -> Kind:
    spec = lattice.spec
    whole = np.array([len(kept) == len(spec.layers) for kept in lattice.depths])

    def uncut(points: Points) -> NDArray[np.bool_]:
        found = points.spread(whole[points.depth])
        for axis, size in points.sizes.items():
            found = found & (size == spec.sizes[axis])
        return np.asarray(found)

    return uncut


RIVALS: Final[Mapping[str, Callable[[Lattice], Kind]]] = {
    CUT_ALONE: _in_plain_formats,
    FORMATS_ALONE: _of_whole_size,
}
"""What a choice of bits and sizes together is held against -> which points are that."""

POINTS: Final = 4_000_000
"""So many points are looked at with some formats each; of a lattice that has more some sizes are left out at first."""

LEADING: Final = 3
"""Around so many of the best architectures all sizes are tried then."""


Block = tuple[Points, NDArray[np.bool_], NDArray[np.int64]]
"""Points, which of them keep the constraints, and their bytes."""


@dataclass
class Sweep:
    """Points seen so far."""

    count: Counter
    budget: Budget
    worth: Worth
    sort: str
    best: Best
    front: Front
    searched: int = 0
    feasible: int = 0

    smallest: tuple[int, Points] | None = None
    """Bytes of the smallest point while none fits."""

    rivals: dict[str, Best] = field(default_factory=dict)
    """The best of each kind in RIVALS, where formats are searched."""

    bindings: Bindings | None = None
    """What is limited beside memory."""

    def over(self, lattice: Lattice) -> None:
        """Look at a lattice; of one that is too large with all formats first at some of its sizes, then at all around
        the best of those."""
        self.rivals = {name: Best(1) for name in RIVALS if lattice.formats}
        self._kinds = {name: of(lattice) for name, of in RIVALS.items()}
        first = first_forms(lattice)
        thinned = lattice.thinned(POINTS // len(first or [0]), self._smallest_format(lattice))
        self._see(self.count.blocks(thinned, first))
        if not self.feasible or first is None:
            return
        seen = [(thinned, first)]
        if thinned is not lattice:
            near = lattice.around(thinned, self._leading())
            forms = sorted(set(self._leading().form.tolist()))  # type: ignore[union-attr]
            self._see(_fresh(self.count.blocks(near, forms), seen))
            seen.append((near, forms))
        if len(lattice.formats) > FIRST:
            # The formats that were not tried yet, for the architectures that came out best and for the whole model.
            points = self._likely(lattice, in_every_format(self._leading_and_whole(lattice), len(lattice.formats)))
            totals = np.array([lines.total for lines in self.count.lines(lattice, points)])
            self._see(_fresh([(points, np.ones(points.shape, dtype=np.bool_), totals)], seen))

    def _smallest_format(self, lattice: Lattice) -> Callable[[Points], Any]:
        """What flat points take in the format of the fewest bytes, whose blocks are the hardest to fill."""
        form = np.array([len(lattice.formats) - 1])
        return lambda points: np.array(
            [
                lines.total
                for lines in self.count.lines(lattice, replace(points, form=np.broadcast_to(form, points.shape)))
            ]
        )

    def _leading_and_whole(self, lattice: Lattice) -> Points:
        best, whole = replace(self.best.points, form=None), lattice.whole
        return best if whole is None else joined([best, whole])

    def _likely(self, lattice: Lattice, points: Points) -> Points:
        """Those of flat points that may fit and come before what is known, or be a rival: counting takes longer."""
        fits = self.count.fewest_bytes(lattice, points) <= self.budget.available
        if self.sort != "memory" and len(self.best.worth) == self.best.top:
            better = points.spread(self.worth.of(points)) > self.best.worth[-1]
            fits = fits & (better | self._kinds[FORMATS_ALONE](points))
        return points.select(np.flatnonzero(fits))

    def _leading(self) -> Points:
        return self.best.points.select(np.arange(min(LEADING, len(self.best.worth))))

    def _see(self, blocks: Iterable[Block]) -> None:
        for points, allowed, totals in blocks:
            values = points.spread(self.worth.of(points))
            fits, listed = allowed & (totals <= self.budget.available), allowed
            order = totals if self.sort == "memory" else values
            if self.bindings is not None:
                fits, listed = self.bindings.see(points, allowed, totals, order)
            self.searched += int(np.count_nonzero(allowed))
            self.feasible += int(np.count_nonzero(fits))
            if not self.feasible and allowed.any():
                least = np.where(allowed, totals, np.iinfo(np.int64).max).argmin()
                if self.smallest is None or totals.flat[least] < self.smallest[0]:
                    self.smallest = int(totals.flat[least]), points.select(np.array([least]))
            self.best.add(points, fits, order)
            self.front.add(points, listed, totals, values)
            for name, best in self.rivals.items():
                best.add(points, fits & self._kinds[name](points), values)


def _fresh(blocks: Iterable[Block], seen: Sequence[tuple[Lattice, Sequence[int]]]) -> Iterator[Block]:
    """The blocks without the points that were looked at: those of lattices in some of their formats."""
    for points, allowed, totals in blocks:
        assert points.form is not None
        for lattice, forms in seen:
            allowed = allowed & ~(lattice.holds(points) & points.spread(np.isin(points.form, forms)))
        yield points, allowed, totals
