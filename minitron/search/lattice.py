"""The lattice: all architectures of a search, as depths times a list of sizes for each width, in some formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.errors import MinitronError
from minitron.model.axes import ACTIVE, EXPERT, HIDDEN
from minitron.model.spec import ModelSpec
from minitron.search.depth import Kept
from minitron.search.format_choices import Formats, errors
from minitron.search.search_steps import (
    Choice,
    LatticeOptions,
    Times,
    default_sizes,
    default_widths,
    fewest_layers,
    parse_widths,
)
from minitron.search.thinning import thinned

__all__ = [
    "Choice",
    "Lattice",
    "LatticeOptions",
    "Points",
    "Times",
    "default_sizes",
    "default_widths",
    "fewest_layers",
    "joined",
    "parse_widths",
]

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Lattice:
    """Depths times widths."""

    spec: ModelSpec

    depths: tuple[Kept, ...]
    """Kept layers of every depth to try."""

    widths: Mapping[str, tuple[Choice, ...]]
    """config key -> the sizes to try; a key that is not here stays at the model's size, but for axes whose groups are
    cut: they follow, so that each group that stays is whole."""

    formats: tuple[Formats, ...] = ()
    """The assignments of formats to parts to try; empty for what the workload says."""

    def __post_init__(self) -> None:
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise MinitronError("the lattice has repeated depths; give each depth once.")
        for axis, group in self.spec.family.grouped.items():
            key = self.spec.key(axis) if axis in self.spec.sizes else ""
            if self.spec.key(group) not in self.widths:
                for choice in self.widths.get(key, ()):
                    if isinstance(choice, int) and choice % self.spec.sizes[group]:
                        raise MinitronError(
                            f"{key} = {choice} is not a multiple of {self.spec.key(group)} = "
                            f"{self.spec.sizes[group]}; choose a multiple, so that each group keeps "
                            "the same number."
                        )

    @property
    def points(self) -> int:
        """How many points the lattice has, those that break a constraint among them."""
        widths = prod(len(choices) for choices in self.widths.values())
        return len(self.depths) * widths * max(1, len(self.formats))

    def thinned(self, most: int, bytes_of: Callable[[Points], Any]) -> Lattice:
        """The lattice with so few sizes of each width that there are about `most` architectures; itself where it has
        no more, or its formats are not searched.

        `bytes_of` counts flat points.  Sizes that take no fewer bytes than a larger one, as they are no whole number of
        a format's blocks, go first."""
        if not self.formats or len(self.depths) * prod(map(len, self.widths.values())) <= most:
            return self
        worth = {key: self._worthwhile(key, bytes_of) for key in self.widths}
        return replace(self, widths=thinned(worth, len(self.depths), most=most))

    def _worthwhile(self, key: str, bytes_of: Callable[[Points], Any]) -> tuple[Choice, ...]:
        """The sizes of a width that take fewer bytes than any larger one, and the largest; all of what takes none."""
        choices = self.widths[key]
        named = [choice if isinstance(choice, int) else 0 for choice in choices]
        if not all(named) or ACTIVE in self.spec.keys[key]:
            return choices
        sizes = {axis: np.full(len(named), self.spec.sizes[axis]) for axis in self.varied}
        sizes |= dict.fromkeys(self.spec.keys[key], np.array(named))
        for axis, group in self.followers.items():
            sizes[axis] = sizes[group] * (self.spec.sizes[axis] // self.spec.sizes[group])
        deepest = max(range(len(self.depths)), key=lambda depth: len(self.depths[depth]))
        points = Points(np.full(len(named), deepest), sizes, (len(named),))
        counted = np.broadcast_to(bytes_of(points), points.shape)
        order = np.argsort(-np.array(named), kind="stable")
        least = np.minimum.accumulate(counted[order])
        fewer = {int(order[0]), *order[1:][counted[order][1:] < least[:-1]].tolist()}
        return tuple(choice for place, choice in enumerate(choices) if place in fewer)

    @property
    def whole(self) -> Points | None:
        """The model as it is, as one flat point; None where the lattice lacks it."""
        depth = next((place for place, kept in enumerate(self.depths) if len(kept) == len(self.spec.layers)), None)
        point = Points(np.array([depth or 0]), {axis: np.array([self.spec.sizes[axis]]) for axis in self.varied}, (1,))
        return None if depth is None or not self.holds(point).all() else point

    def holds(self, points: Points) -> NDArray[np.bool_]:
        """Whether the sizes of points of a lattice with the same depths are among those of this one."""
        found: NDArray[np.bool_] = np.ones((1,) * len(points.shape), dtype=np.bool_)
        for key in self.widths:
            axis = self.spec.keys[key][0]
            found = found & np.isin(points.sizes[axis], self.values(axis))
        return points.spread(found)

    def around(self, thinned: Lattice, points: Points) -> Lattice:
        """The lattice with the sizes near those of some flat points of a `thinned` one: as far as the next sizes that
        are in it."""
        widths: dict[str, tuple[Choice, ...]] = {}
        for key, choices in self.widths.items():
            near, known = set(), [place for place, one in enumerate(choices) if one in thinned.widths[key]]
            for size in set(points.sizes[self.spec.keys[key][0]].tolist()):
                at = next((n for n, place in enumerate(known) if choices[place] == size), None)
                low, high = (0, len(known) - 1) if at is None else (max(at - 1, 0), min(at + 1, len(known) - 1))
                near |= set(range(known[low], known[high] + 1))
            widths[key] = tuple(one for place, one in enumerate(choices) if place in near)
        return replace(self, widths=widths)

    @cached_property
    def followers(self) -> dict[str, str]:
        """axis that nobody names -> the axis whose searched sizes it follows: query heads those of KV heads, in which
        they are grouped; a shared expert those of the routed ones, of which it is a multiple."""
        found: dict[str, str] = {}
        for pairs in (self.spec.family.grouped, self.spec.family.followers):
            for axis, other in pairs.items():
                leads = self.spec.key(other) in self.widths or other in found
                if axis in self.spec.sizes and leads and self.spec.key(axis) not in self.widths:
                    found[axis] = other
        return found

    @cached_property
    def varied(self) -> frozenset[str]:
        """The axes that have more than the model's own size."""
        return frozenset(axis for key in self.widths for axis in self.spec.keys[key]) | frozenset(self.followers)

    @cached_property
    def _hidden(self) -> Whole:
        """The sizes of the residual stream to try."""
        key = self.spec.key(HIDDEN)
        return np.array(self.widths.get(key, (self.spec.sizes[HIDDEN],)), dtype=np.int64)

    @cached_property
    def _tables(self) -> dict[str, Whole]:
        """config key -> [hidden sizes, choices] its size; 0 where the choice is out of the question there."""
        hidden_key = self.spec.key(HIDDEN)
        tables: dict[str, Whole] = {}
        for key, choices in self.widths.items():
            if key == hidden_key:
                continue
            rows = []
            for hidden in self._hidden.tolist():
                row = [choice if isinstance(choice, int) else round(choice.factor * hidden) for choice in choices]
                # A ratio may ask for more than there is, or for a size that another choice has named.
                rows.append(
                    [n if n <= self.spec.named_sizes[key] and n not in row[:i] else 0 for i, n in enumerate(row)]
                )
            tables[key] = np.array(rows, dtype=np.int64)
        return tables

    def values(self, axis: str) -> tuple[int, ...]:
        """Every size that some point gives to an axis, ascending."""
        key = self.spec.key(axis)
        if key == self.spec.key(HIDDEN):
            return tuple(sorted(set(self._hidden.tolist())))
        if key in self._tables:
            return tuple(sorted(set(self._tables[key].ravel().tolist()) - {0}))
        if group := self.followers.get(axis):
            return tuple(self.spec.sizes[axis] // self.spec.sizes[group] * size for size in self.values(group))
        return (self.spec.sizes[axis],)

    @cached_property
    def errors(self) -> dict[str, NDArray[np.float64]]:
        """What is kept in formats that vary -> [formats] its relative error."""
        return errors(self.formats)

    @cached_property
    def kinds(self) -> dict[str, Whole]:
        """layer kind -> [depths] how many of it each depth keeps."""
        return {
            kind: np.array([sum(self.spec.layers[layer] == kind for layer in kept) for kept in self.depths])
            for kind in dict.fromkeys(self.spec.layers)
        }

    @cached_property
    def has(self) -> dict[str, NDArray[np.bool_]]:
        """config key -> [depths] whether a layer that has its axes, or the model outside layers, stays."""
        always = np.ones(len(self.depths), dtype=bool)
        users = {
            axis: [kind for kind, rules in self.spec.rules.items() if any(axis in rule.all_axes for rule in rules)]
            for axis in self.spec.sizes
        }
        return {
            key: np.any([self.kinds[kind] > 0 if kind in self.kinds else always for kind in users[axes[0]]], axis=0)
            for key, axes in self.spec.keys.items()
        }

    def chunks(self, length: int = 2**18) -> Iterator[tuple[Points, NDArray[np.bool_]]]:
        """All points of one format in blocks of at most `length`, larger sizes first, each with a mask of those that
        keep the constraints.  The arrays of a block are as small as they can be and broadcast against each other."""
        shape = (len(self.depths), len(self._hidden), *(table.shape[1] for table in self._tables.values()))
        for block in _blocks(shape, length):
            depth, hidden, *others = (
                np.arange(part.start, part.stop).reshape([-1 if i == place else 1 for i in range(len(shape))])
                for place, part in enumerate(block)
            )
            sizes: dict[str, Whole] = {}
            if (key := self.spec.key(HIDDEN)) in self.widths:
                sizes |= dict.fromkeys(self.spec.keys[key], self._hidden[hidden])
            for (key, table), choice in zip(self._tables.items(), others, strict=True):
                # Only a size given as a multiple differs from one hidden size to the next.
                along = hidden if (table != table[0]).any() else np.zeros_like(hidden[:, :1])
                size = table[along, choice]
                if not self.has[key].all():
                    # Without a layer that has the axis its sizes are all the same model: the first stands for it.
                    only = np.where(choice == 0, self.spec.named_sizes[key], 0)
                    size = np.where(self.has[key][depth], size, only)
                sizes |= dict.fromkeys(self.spec.keys[key], size)
            for axis, group in self.followers.items():
                sizes[axis] = sizes[group] * (self.spec.sizes[axis] // self.spec.sizes[group])
            points = Points(depth, sizes, tuple(part.stop - part.start for part in block))
            yield points, np.broadcast_to(self._allowed(points), points.shape)

    def _allowed(self, points: Points) -> NDArray[np.bool_]:
        """[points] whether each keeps whole groups, enough experts, and nothing that the model does not have."""
        allowed = np.ones((1,) * len(points.shape), dtype=bool)
        whole: dict[str, Any] = {**self.spec.sizes, **points.sizes}
        for axis, size in points.sizes.items():
            choice = self.spec.choice(axis)
            least = choice.least_for(whole[ACTIVE]) if axis == EXPERT else choice.least
            allowed = allowed & (size >= least) & (size % choice.groups == 0)
        for axis, group in self.spec.family.grouped.items():
            if axis in points.sizes or group in points.sizes:
                inside = self.spec.sizes[axis] // self.spec.sizes[group]
                groups = np.maximum(whole[group], 1)
                allowed = allowed & (whole[axis] % groups == 0) & (whole[axis] // groups <= inside)
        for axis, unit in self.spec.family.multiples.items():
            if axis in points.sizes or unit in points.sizes:
                allowed = allowed & (whole[axis] % np.maximum(whole[unit], 1) == 0)
        for left, right in self.spec.equal:
            allowed = allowed & (self.spec.amount(left, points.sizes) == self.spec.amount(right, points.sizes))
        return allowed


def _blocks(shape: tuple[int, ...], length: int) -> Iterator[tuple[slice, ...]]:
    """A grid in blocks of at most `length` points, in row-major order."""
    inner = prod(shape[1:])
    if inner <= length or len(shape) == 1:
        rows = max(1, length // inner)
        for start in range(0, shape[0], rows):
            yield slice(start, min(start + rows, shape[0])), *(slice(0, size) for size in shape[1:])
    else:
        for row in range(shape[0]):
            for rest in _blocks(shape[1:], length):
                yield slice(row, row + 1), *rest


@dataclass(frozen=True)
class Points:
    """Some points of a lattice, as arrays that broadcast against each other."""

    depth: Whole
    """Index into Lattice.depths."""

    sizes: Mapping[str, Whole]
    """axis -> its size, for the axes that the lattice varies."""

    shape: tuple[int, ...]
    """What the arrays broadcast to."""

    form: Whole | None = None
    """Index into Lattice.formats; None where that is empty."""

    def in_format(self, number: int) -> Points:
        """The same in one of the lattice's formats."""
        return replace(self, form=np.full((1,) * len(self.shape), number, dtype=np.int64))

    def firsts(self, order: NDArray[np.intp]) -> NDArray[np.bool_]:
        """[order] whether each of these flat points, in that order, equals none before it."""
        key = np.stack([self.depth, *self.sizes.values(), *(() if self.form is None else (self.form,))])[:, order]
        found = np.zeros(len(order), dtype=bool)
        found[np.unique(key, axis=1, return_index=True)[1]] = True
        return found

    def spread(self, values: Any) -> NDArray[Any]:
        """One value a point, from values that may be the same for many."""
        return np.broadcast_to(np.asarray(values), self.shape)

    def select(self, which: NDArray[np.int64]) -> Points:
        """The points at the given places in row-major order, as flat arrays."""
        place = np.unravel_index(which, self.shape)
        sizes = {axis: self.spread(size)[place] for axis, size in self.sizes.items()}
        form = None if self.form is None else self.spread(self.form)[place]
        return Points(self.spread(self.depth)[place], sizes, which.shape, form)


def joined(parts: Sequence[Points]) -> Points:
    """Several flat selections of one lattice's points as one."""
    depth = np.concatenate([part.depth for part in parts])
    sizes = {axis: np.concatenate([part.sizes[axis] for part in parts]) for axis in parts[0].sizes}
    forms = [part.form for part in parts if part.form is not None]
    return Points(depth, sizes, depth.shape, np.concatenate(forms) if forms else None)


def in_every_format(points: Points, formats: int) -> Points:
    """The architectures of flat points, each in every format."""
    key = np.stack([points.depth, *points.sizes.values()])
    first = np.sort(np.unique(key, axis=1, return_index=True)[1])
    alone = points.select(first)
    place = np.repeat(np.arange(len(first)), formats)
    return replace(alone.select(place), form=np.tile(np.arange(formats), len(first)))
