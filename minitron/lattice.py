"""The lattice: every architecture that a search looks at, as depths times a list of sizes for each width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, lcm, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.depth import Kept
from minitron.errors import MinitronError
from minitron.families import Rule
from minitron.spec import ModelSpec

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """How an axis is searched by default."""

    multiple: int
    """Sizes are multiples of this; halved for models so small that fewer than 16 such steps would be left."""

    smallest: int
    """What the multiple is not halved below."""

    most: float
    """The largest share of the axis to prune; 0 leaves it alone unless it is named by hand."""

    reason: str
    """Why these numbers."""


STEPS: Final[dict[str, Step]] = {
    "layer": Step(1, 1, 1 / 6, "62 -> 52 layers ended 6.6 points below 62 -> 56 in Nemotron Nano 2's ablation"),
    "hidden": Step(128, 8, 0.25, "a dimension of every matmul: full tensor-core tiles, and all layers lose at once"),
    "ffn": Step(256, 8, 0.5, "full tensor-core tiles, also when split over 2 GPUs; the widest and most redundant axis"),
    "mamba_head": Step(8, 1, 0.25, "whole warps of the scan; too few heads x width hurt most in published cuts"),
    "expert": Step(8, 1, 0.5, "equal shares on up to 8 GPUs; routed experts overlap in what they know"),
    "expert_ffn": Step(64, 8, 0.5, "full tiles of the grouped matmul"),
    "shared_ffn": Step(128, 8, 0.5, "full tensor-core tiles"),
    "query_head": Step(1, 1, 0.0, "attention is a small part of these models and recall hangs on it"),
    "kv_head": Step(1, 1, 0.0, "recall over a long context hangs on it"),
    "qk_head_dim": Step(16, 8, 0.0, "attention kernels are built for 64, 128 and 256"),
    "v_head_dim": Step(16, 8, 0.0, "attention kernels are built for 64, 128 and 256"),
    "mamba_head_dim": Step(16, 8, 0.0, "at or below 0.8 of the width published candidates fell behind most"),
    "ssm_state": Step(16, 8, 0.0, "calibration does not score it"),
    "latent_in": Step(64, 8, 0.0, "calibration does not score it"),
    "latent_out": Step(64, 8, 0.0, "calibration does not score it"),
}
"""axis -> how it is searched where nobody says otherwise."""

_MOST_STEPS: Final = 16
"""A multiple is halved until the size holds at least so many of it."""


@dataclass(frozen=True, order=True)
class Times:
    """A size given as a multiple of hidden_size: `3.5x`."""

    factor: float


Choice = int | Times


def default_sizes(spec: ModelSpec, axis: str) -> tuple[int, ...]:
    """The sizes of an axis that STEPS allows, the model's own first, then descending."""
    size, step = spec.sizes[axis], STEPS.get(axis)
    if step is None or step.most == 0 or axis in spec.family.fixed:
        return (size,)
    unit = spec.family.multiples.get(axis)
    whole = lcm(_group_count(spec, axis), spec.sizes[unit] if unit else 1)
    multiple = step.multiple
    while multiple > step.smallest and size // lcm(multiple, whole) < _MOST_STEPS:
        multiple //= 2
    multiple = lcm(multiple, whole)
    least = max(size * (1 - step.most), spec.experts_per_token if axis == "expert" else 1)
    return size, *(n for n in range(size // multiple * multiple, 0, -multiple) if least <= n < size)


def fewest_layers(spec: ModelSpec) -> int:
    """The least depth that STEPS allows."""
    return max(1, ceil(len(spec.layers) * (1 - STEPS["layer"].most)))


def default_widths(spec: ModelSpec) -> dict[str, tuple[Choice, ...]]:
    """config key -> sizes to try, for every width that STEPS lets shrink."""
    found = {spec.key(axis): default_sizes(spec, axis) for axis in spec.sizes}
    return {key: sizes for key, sizes in found.items() if len(sizes) > 1}


def parse_widths(spec: ModelSpec, texts: Mapping[str, str]) -> dict[str, tuple[Choice, ...]]:
    """`{"hidden_size": "4480,4800", "intermediate_size": "3x,3.5x"}` as sizes to try, descending without repetition.

    Raises MinitronError for a key that is no size of this model or may not be cut, and for what is no size."""
    return {key: _parse_choices(spec, key, text) for key, text in texts.items()}


def _parse_choices(spec: ModelSpec, key: str, text: str) -> tuple[Choice, ...]:
    if key not in spec.keys:
        raise MinitronError(f"{key} is no width of this model; its widths are {', '.join(sorted(spec.keys))}.")
    if any(axis in spec.family.fixed for axis in spec.keys[key]):
        raise MinitronError(f"{key} cannot be cut in a {spec.family.name} model; leave it out of the lattice.")
    choices: set[Choice] = set()
    for word in text.split(","):
        times = re.fullmatch(r"(\d+(?:\.\d+)?)x", word.strip())
        if times and key != "hidden_size":
            choices.add(Times(float(times[1])))
        elif word.strip().isdigit():
            choices.add(_checked(spec, key, int(word)))
        else:
            raise MinitronError(
                f"{key}: {word.strip()!r} is no size; write whole numbers such as 4480, or 3.5x for 3.5 times "
                "hidden_size."
            )
    return tuple(sorted(choices, key=lambda choice: (isinstance(choice, Times), choice), reverse=True))


def _checked(spec: ModelSpec, key: str, size: int) -> int:
    """`size`, which a person gave; raises MinitronError where no cut leads to it."""
    parent = spec.named_sizes[key]
    if not 1 <= size <= parent:
        raise MinitronError(f"{key} = {size} cannot be reached by pruning from {parent}; choose 1 to {parent}.")
    for axis in spec.keys[key]:
        if axis == "expert" and size < spec.experts_per_token:
            raise MinitronError(
                f"{key} = {size} is fewer than the {spec.experts_per_token} experts that a token is sent to; keep more."
            )
        if size % _router_groups(spec, axis):
            raise MinitronError(f"{key} = {size} is no multiple of the router's {_router_groups(spec, axis)} groups.")
    return size


def _router_groups(spec: ModelSpec, axis: str) -> int:
    """In how many groups a router picks experts: each must stay of one size."""
    return int(spec.config.get("n_group") or 1) if axis == "expert" else 1


def _axes(rule: Rule) -> frozenset[str]:
    """The axes in a tensor's shape and in its name."""
    return rule.axes | frozenset(rule.pattern.axes)


def _group_count(spec: ModelSpec, axis: str) -> int:
    """A number of which the axis must keep a multiple while its group axis stays whole."""
    group = spec.family.grouped.get(axis)
    return spec.sizes[group] if group else _router_groups(spec, axis)


@dataclass(frozen=True)
class Lattice:
    """Depths times widths."""

    spec: ModelSpec

    depths: tuple[Kept, ...]
    """Kept layers of every depth to try."""

    widths: Mapping[str, tuple[Choice, ...]]
    """config key -> the sizes to try; a key that is not here stays at the model's size."""

    def __post_init__(self) -> None:
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise MinitronError("the lattice needs depths that differ; give each of them once.")
        for axis, group in self.spec.family.grouped.items():
            key = self.spec.key(axis) if axis in self.spec.sizes else ""
            if self.spec.key(group) not in self.widths:
                for choice in self.widths.get(key, ()):
                    if isinstance(choice, int) and choice % self.spec.sizes[group]:
                        raise MinitronError(
                            f"{key} = {choice} is no multiple of {self.spec.key(group)} = {self.spec.sizes[group]}; "
                            "choose one, so that each group keeps the same number."
                        )

    @property
    def points(self) -> int:
        """How many points the lattice has, those that break a constraint among them."""
        return len(self.depths) * prod(len(choices) for choices in self.widths.values())

    @cached_property
    def _hidden(self) -> Whole:
        """The sizes of the residual stream to try."""
        key = self.spec.key("hidden")
        return np.array(self.widths.get(key, (self.spec.sizes["hidden"],)), dtype=np.int64)

    @cached_property
    def _tables(self) -> dict[str, Whole]:
        """config key -> [hidden sizes, choices] its size; 0 where the choice is out of the question there."""
        hidden_key = self.spec.key("hidden")
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
        if axis == "hidden":
            return tuple(sorted(set(self._hidden.tolist())))
        if key in self._tables:
            return tuple(sorted(set(self._tables[key].ravel().tolist()) - {0}))
        return (self.spec.sizes[axis],)

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
            axis: [kind for kind, rules in self.spec.rules.items() if any(axis in _axes(rule) for rule in rules)]
            for axis in self.spec.sizes
        }
        return {
            key: np.any([self.kinds[kind] > 0 if kind in self.kinds else always for kind in users[axes[0]]], axis=0)
            for key, axes in self.spec.keys.items()
        }

    def chunks(self, length: int = 2**18) -> Iterator[tuple[Points, NDArray[np.bool_]]]:
        """All points in blocks of at most `length`, larger sizes first, each with a mask of those that keep the
        constraints.  The arrays of a block are as small as they can be and broadcast against each other."""
        shape = (len(self.depths), len(self._hidden), *(table.shape[1] for table in self._tables.values()))
        for block in _blocks(shape, length):
            depth, hidden, *others = (
                np.arange(part.start, part.stop).reshape([-1 if i == place else 1 for i in range(len(shape))])
                for place, part in enumerate(block)
            )
            sizes: dict[str, Whole] = {}
            if self.spec.key("hidden") in self.widths:
                sizes["hidden"] = self._hidden[hidden]
            for (key, table), choice in zip(self._tables.items(), others, strict=True):
                # Only a size given as a multiple differs from one hidden size to the next.
                along = hidden if (table != table[0]).any() else np.zeros_like(hidden[:, :1])
                size = table[along, choice]
                if not self.has[key].all():
                    # Without a layer that has the axis its sizes are all the same model: the first stands for it.
                    only = np.where(choice == 0, self.spec.named_sizes[key], 0)
                    size = np.where(self.has[key][depth], size, only)
                sizes |= dict.fromkeys(self.spec.keys[key], size)
            points = Points(depth, sizes, tuple(part.stop - part.start for part in block))
            yield points, np.broadcast_to(self._allowed(points), points.shape)

    def _allowed(self, points: Points) -> NDArray[np.bool_]:
        """[points] whether each keeps whole groups, enough experts, and nothing that the model does not have."""
        allowed = np.ones((1,) * len(points.shape), dtype=bool)
        whole: dict[str, Any] = {**self.spec.sizes, **points.sizes}
        for axis, size in points.sizes.items():
            least = self.spec.experts_per_token if axis == "expert" else 1
            allowed = allowed & (size >= least) & (size % _router_groups(self.spec, axis) == 0)
        for axis, group in self.spec.family.grouped.items():
            if axis in points.sizes or group in points.sizes:
                inside = self.spec.sizes[axis] // self.spec.sizes[group]
                groups = np.maximum(whole[group], 1)
                allowed = allowed & (whole[axis] % groups == 0) & (whole[axis] // groups <= inside)
        for axis, unit in self.spec.family.multiples.items():
            if axis in points.sizes or unit in points.sizes:
                allowed = allowed & (whole[axis] % np.maximum(whole[unit], 1) == 0)
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

    def spread(self, values: Any) -> NDArray[Any]:
        """One value a point, from values that may be the same for many."""
        return np.broadcast_to(np.asarray(values), self.shape)

    def select(self, which: NDArray[np.int64]) -> Points:
        """The points at the given places in row-major order, as flat arrays."""
        place = np.unravel_index(which, self.shape)
        sizes = {axis: self.spread(size)[place] for axis, size in self.sizes.items()}
        return Points(self.spread(self.depth)[place], sizes, which.shape)


def joined(parts: Sequence[Points]) -> Points:
    """Several flat selections of one lattice's points as one."""
    depth = np.concatenate([part.depth for part in parts])
    sizes = {axis: np.concatenate([part.sizes[axis] for part in parts]) for axis in parts[0].sizes}
    return Points(depth, sizes, depth.shape)
