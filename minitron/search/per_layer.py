"""Sizes by layer: which layer gives up how much, so that what is lost is least for the bytes.

A layer may be cut in several sizes, each of which loses something and saves bytes.  With losses that add up, the least
loss at a number of bytes is found by a price for a byte: each layer takes the size that is cheapest at the price, and
the price rises until all fit (Lagrangian relaxation; Everett 1963).  So every layer stops where one more byte costs the
same damage.  What the steps leave free is spent on what gains most a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron.arrays import spread
from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.workload import Workload
from minitron.model.by_layer import ByLayer, axes_by_layer, own_size
from minitron.model.spec import DEPTH, ModelSpec
from minitron.search.candidate import Candidate
from minitron.search.depth import Kept
from minitron.search.search_steps import LatticeOptions, config_key, default_sizes

DEEPEST: Final = 0.875
"""The largest share of a layer's size that goes: a layer that hardly matters may lose more than all of them could."""

_OPTIONS: Final = 512
"""How many options a layer may have: sizes that are cut together are tried in every combination."""

_ROUNDS: Final = 60
"""Halvings of the price's interval."""


@dataclass(frozen=True)
class Option:
    """Sizes that one layer may have."""

    sizes: Mapping[str, int]
    """config key -> size."""

    saved: int
    """Bytes that it takes less than the whole layer."""

    damage: float
    """What they are expected to lose, 0 for the whole layer."""


def keys_by_layer(spec: ModelSpec) -> tuple[str, ...]:
    """The config keys by which each layer may be made smaller in bytes; empty where layers cannot differ."""
    return tuple(key for key, axis in axes_by_layer(spec).items() if axis in spec.family.by_layer)


def require_by_layer(spec: ModelSpec) -> None:
    """Raise MinitronError for a model whose layers cannot differ in size."""
    if not keys_by_layer(spec):
        raise MinitronError(
            f"--sizes per-layer needs a model whose layers may differ in size, and no engine reads such a "
            f"{spec.family.name} model; use --sizes uniform."
        )


def sizes_to_try(spec: ModelSpec, key: str, options: LatticeOptions | None = None) -> tuple[int, ...]:
    """The sizes that a layer may have under a key, its own first, then descending; the whole alone for what the options
    leave."""
    options, axis = options or LatticeOptions(), axes_by_layer(spec)[key]
    most = options.step(spec, axis).most
    if most == 0:
        return (spec.sizes[axis],)
    asked = any(config_key(spec, name, cut=False) == key for name in options.most)
    return default_sizes(spec, axis, LatticeOptions(options.multiples, {axis: most if asked else DEEPEST}))


class Layers:
    """The layers of one candidate that may differ, and what their sizes save."""

    def __init__(
        self,
        spec: ModelSpec,
        sizes: Mapping[str, int],
        kept: Kept,
        workload: Workload,
        options: LatticeOptions | None = None,
        workspace: int | None = 0,
    ) -> None:
        """`sizes` are those of the candidate, of which only what no layer can have by itself is taken; bytes are those
        that it takes under `workload` (minitron.memory.footprint)."""
        self.spec, self.kept = spec, kept
        self.keys = keys_by_layer(spec)
        self.others = _others(spec, sizes)
        self._workload, self._workspace = workload, workspace
        self._steps = {key: sizes_to_try(spec, key, options) for key in self.keys}
        for layer in range(len(spec.layers)):
            keys = self._of(layer)
            for key in keys:
                self._steps[key] = _thinned(self._steps[key], int(_OPTIONS ** (1 / len(keys))))
        self._saved: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        self.whole = self.bytes({})
        """The bytes with every such layer whole."""

    def bytes(self, by_layer: ByLayer) -> int:
        """What the candidate takes with these sizes by layer, all others whole."""
        target = self.spec.resized(self.others, self.kept, by_layer)
        return int(footprint(target, self._workload, self._workspace).total)

    def by_layer(self, chosen: Mapping[int, Option]) -> ByLayer:
        """layer -> option, as config key -> layer -> size, without the sizes that are whole."""
        found: dict[str, dict[int, int]] = {}
        for layer, option in chosen.items():
            for key, size in option.sizes.items():
                if size != self.steps(key)[0]:
                    found.setdefault(key, {})[layer] = size
        return found

    def parts(self) -> list[tuple[str, int]]:
        """(config key, layer) of every size that may be cut in one layer."""
        return [(key, layer) for layer in self.kept for key in self._of(layer)]

    def _of(self, layer: int) -> list[str]:
        keys = (key for key in self.keys if own_size(self.spec, key, layer) is not None)
        return [key for key in keys if len(self._steps[key]) > 1]

    def steps(self, key: str) -> tuple[int, ...]:
        """The sizes to try under a key, the whole first."""
        return self._steps[key]

    def menus(self, damage: Callable[[str, int, int], float]) -> dict[int, tuple[Option, ...]]:
        """layer -> all of its options, the whole first; `damage` is what a size of a key costs in a layer."""
        found = {}
        for layer in self.kept:
            if keys := self._of(layer):
                combinations = [dict(zip(keys, chosen, strict=True)) for chosen in product(*map(self.steps, keys))]
                found[layer] = tuple(
                    Option(sizes, self._saves(layer, sizes), sum(damage(key, layer, n) for key, n in sizes.items()))
                    for sizes in combinations
                )
        return found

    def _saves(self, layer: int, sizes: Mapping[str, int]) -> int:
        # Layers of one kind save the same.
        name = self.spec.layers[layer], tuple(sizes.items())
        if name not in self._saved:
            self._saved[name] = self.whole - self.bytes({key: {layer: size} for key, size in sizes.items()})
        return self._saved[name]


def distinct_starts(
    spec: ModelSpec,
    candidates: Sequence[Candidate],
    workload: Workload,
    options: LatticeOptions | None = None,
    workspace: int | None = 0,
    most: int = 3,
) -> list[Layers]:
    """The layers of candidates that differ in more than what layers may have by themselves, the first ones of such, and
    those of the model with nothing else cut: what layers save by themselves need not be cut in all of them."""
    found: dict[tuple[frozenset[tuple[str, int]], Kept], Layers] = {}
    whole = tuple(range(len(spec.layers)))
    for sizes, kept in [*((one.sizes, one.kept) for one in candidates), ({}, whole)]:
        others = _others(spec, sizes)
        name = frozenset(others.items()), kept
        if name not in found and (len(found) < most or not others):
            found[name] = Layers(spec, others, kept, workload, options, workspace)
    return list(found.values())


def _others(spec: ModelSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that change and that no layer can have by itself."""
    alone = {*keys_by_layer(spec), DEPTH}
    return {key: size for key, size in sizes.items() if key not in alone and size != spec.named_sizes[key]}


def _thinned(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """At most so many of the sizes, the first and the last among them."""
    return tuple(sizes[place] for place in spread(len(sizes), most).tolist())


def least_damage(menus: Mapping[int, Sequence[Option]], saving: int) -> dict[int, Option] | None:
    """layer -> the option that it takes, so that all together save at least `saving` bytes and the sum of damages is as
    small as prices find it; None where they cannot save so much."""
    options = list(menus.values())
    damages = [np.array([option.damage for option in menu]) for menu in options]
    saved = [np.array([option.saved for option in menu], dtype=np.float64) for menu in options]

    def at(price: float) -> list[int]:
        # Of options that cost the same the one that saves most.
        return [
            int(np.lexsort((-bytes_, damage - price * bytes_))[0])
            for damage, bytes_ in zip(damages, saved, strict=True)
        ]

    def total(places: list[int]) -> float:
        return sum(float(bytes_[place]) for bytes_, place in zip(saved, places, strict=True))

    low, high = 0.0, 1.0 + max((float(damage.max(initial=0.0)) for damage in damages), default=0.0)
    if total(at(high)) < saving:
        return None
    for _ in range(_ROUNDS):
        middle = (low + high) / 2 if low else high / 4
        low, high = (low, middle) if total(at(middle)) >= saving else (middle, high)
        if low == 0.0 and high < 1e-30:
            break
    places = at(high)
    _spend(damages, saved, places, total(places) - saving)
    return {layer: menu[place] for (layer, menu), place in zip(menus.items(), places, strict=True)}


def _spend(
    damages: Sequence[NDArray[np.float64]], saved: Sequence[NDArray[np.float64]], places: list[int], free: float
) -> None:
    """Change `places` to options that lose less, of those that fit into the `free` bytes the one that gains most a
    byte, as long as there is one."""
    while True:
        best: tuple[float, int, int] | None = None
        for number, (damage, bytes_) in enumerate(zip(damages, saved, strict=True)):
            gains = damage[places[number]] - damage
            costs = bytes_[places[number]] - bytes_
            for place in np.flatnonzero((gains > 0) & (costs <= free)).tolist():
                worth = float(gains[place] / max(costs[place], 1.0))
                if best is None or worth > best[0]:
                    best = worth, number, place
        if best is None:
            return
        _, number, place = best
        free -= float(saved[number][places[number]] - saved[number][place])
        places[number] = place
