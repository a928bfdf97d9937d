"""Sizes by layer, chosen by what each layer loses alone and judged as a whole.

Every part, one size of one layer, is cut alone at a size or two and measured.  Between and beyond them its loss follows
the share of the scores' importance that goes: a power law of it through what was measured (importance.search.damage).
From these curves follow the sizes that lose least for the bytes (minitron.search.per_layer); they are measured like any
other candidate, and then exchanges: one layer gives a step and another takes it, where that is predicted to cost least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from importance.search.damage import Curve, cuts_to_measure
from importance.search.trial import Trial, Trials
from minitron.cut.plan import Plan
from minitron.cut.scores import Scores
from minitron.errors import MinitronError
from minitron.model.by_layer import ByLayer, write_sizes
from minitron.progress import Progress, silent
from minitron.search.depth import Kept
from minitron.search.kept_importance import kept_importance
from minitron.search.per_layer import Layers, Option, least_damage

Planner = Callable[[Mapping[str, int], Kept, ByLayer], Plan]
"""(config key -> size, kept layers, sizes by layer) -> the plan that a candidate is cut by."""

_TIE: Final = 1e-6
"""By so much of the share of the size that goes two sizes differ that lose the same importance."""

_GIVEN: Final = 4
"""Of so many smaller options of each layer exchanges are tried."""


@dataclass(frozen=True)
class PerLayerOptions:
    """How much is measured."""

    sizes: int = 2
    """Measured cuts of each part alone."""

    exchanges: int = 8
    """Candidates measured around the one that the curves choose."""

    def __post_init__(self) -> None:
        for name, least in {"sizes": 1, "exchanges": 0}.items():
            if getattr(self, name) < least:
                raise MinitronError(f"{name} is {getattr(self, name)}; give {least} or more.")


@dataclass(frozen=True)
class Tried:
    """One choice of sizes by layer, measured."""

    sizes: Mapping[str, int]
    """config key -> size of what no layer can have by itself."""

    kept: Kept

    by_layer: ByLayer
    """config key -> layer -> size."""

    predicted: float
    """The sum of what its parts lose alone."""

    bytes: int
    measured: Trial


@dataclass(frozen=True)
class PerLayer:
    """What came of it."""

    uniform: Trial
    """The candidate with the same sizes in all layers, whose bytes this may take."""

    tried: tuple[Tried, ...]
    """Start by start in the order of measurement; empty where nothing fits."""

    damages: Damages
    """What each part lost alone."""

    @property
    def best(self) -> Tried | None:
        """The one that lost least; None unless it lost less than the uniform candidate."""
        found = min(self.tried, key=lambda one: one.measured.loss, default=None)
        return found if found is not None and found.measured.loss < self.uniform.loss else None

    def to_json(self) -> dict[str, Any]:
        """For the report and the record of a search."""
        best = self.best
        return {
            "uniform_loss": self.uniform.loss,
            "loss": None if best is None else best.measured.loss,
            "chosen": None if best is None else write_sizes(best.by_layer),
            "tried": [
                {
                    "sizes": dict(one.sizes),
                    "kept_layers": list(one.kept),
                    "by_layer": write_sizes(one.by_layer),
                    "predicted": one.predicted,
                    "bytes": one.bytes,
                    "measured": one.measured.to_json(),
                }
                for one in self.tried
            ],
            "curves": {
                f"{key}/{layer}": list(map(list, curve)) for (key, layer), curve in self.damages.measured.items()
            },
        }


def refine(
    trials: Trials,
    starts: Sequence[Layers],
    uniform: Plan,
    scores: Scores,
    plan: Planner,
    available: int,
    *,
    options: PerLayerOptions | None = None,
    progress: Progress = silent,
) -> PerLayer:
    """Sizes by layer for one of the candidates of `starts`, of one model, that take at most `available` bytes, to lose
    less than the plan `uniform` does.  With a store in the trials what was measured before a stop is not again."""
    options, layers = options or PerLayerOptions(), starts[0]
    parts = list(dict.fromkeys(part for start in starts for part in start.parts()))
    expected = 1 + len(parts) * options.sizes + len(starts) + options.exchanges
    with progress("Measuring layers", expected, "candidates") as advance:
        found = trials.run(uniform)
        advance(1, f"uniform: {found.loss:.4g}")
        damages = Damages(layers, scores, parts)
        every = tuple(range(len(layers.spec.layers)))
        for key, layer in parts:
            for size in cuts_to_measure(layers.steps(key)[1:], options.sizes):
                loss = trials.run(plan({}, every, {key: {layer: size}})).loss
                damages.add(key, layer, size, loss)
                advance(1, f"{key} in layer {layer}: {loss:.4g}")
        searches = [_Search(trials, start, plan, available, damages) for start in starts]
        for search in searches:
            search.step()
            advance(1, f"least {search.least:.4g}")
        best = min(searches, key=lambda search: search.least)
        for _ in range(options.exchanges if best.tried else 0):
            if not best.step():
                break
            advance(1, f"least {best.least:.4g}")
    return PerLayer(found, tuple(one for search in searches for one in search.tried), damages)


class Damages:
    """What every part loses alone, by curves through what was measured of it."""

    def __init__(self, layers: Layers, scores: Scores, parts: Sequence[tuple[str, int]]) -> None:
        spec = layers.spec
        self.measured: dict[tuple[str, int], tuple[tuple[int, float], ...]] = {}
        """(config key, layer) -> (size, what was lost with it alone)."""
        self._layers, self._curves = layers, dict[tuple[str, int], Curve]()
        self._lost: dict[tuple[str, int, int], float] = {}
        every = tuple(range(len(spec.layers)))
        for key in dict.fromkeys(key for key, _ in parts):
            (axis, *_) = spec.keys[key]
            for size in layers.steps(key)[1:]:
                shares = kept_importance(spec, scores, {key: size}, every)
                gone = 1 - size / layers.steps(key)[0]
                for layer in every:
                    lost = 1 - shares.get((axis, layer), 1 - gone)
                    self._lost[key, layer, size] = max(lost, 0.0) + _TIE * gone

    def add(self, key: str, layer: int, size: int, loss: float) -> None:
        """What was measured of one part alone."""
        own = {**dict(self.measured.get((key, layer), ())), size: max(loss, 0.0)}
        self.measured[key, layer] = tuple(sorted(own.items(), reverse=True))
        cuts = [self._lost[key, layer, one] for one in sorted(own, reverse=True)]
        self._curves[key, layer] = Curve(tuple(cuts), tuple(own[one] for one in sorted(own, reverse=True)))

    def of(self, key: str, layer: int, size: int) -> float:
        """What a part loses with a size, 0 where it is whole."""
        if size == self._layers.steps(key)[0]:
            return 0.0
        return float(self._curves[key, layer].at(np.array(self._lost[key, layer, size])))


class _Search:
    """The choice by the curves, then exchanges around the best that was measured."""

    def __init__(self, trials: Trials, layers: Layers, plan: Planner, available: int, damages: Damages) -> None:
        self.trials, self.layers, self.plan, self.available = trials, layers, plan, available
        self.menus = layers.menus(damages.of)
        self.tried: list[Tried] = []
        self._seen: set[Any] = set()
        self._best: dict[int, Option] | None = None

    def step(self) -> bool:
        """Measure one more choice; False where there is none left."""
        chosen = self._first() if not self.tried else self._next()
        if chosen is None:
            return False
        self._seen.add(_name(chosen))
        by_layer = self.layers.by_layer(chosen)
        measured = self.trials.run(self.plan(self.layers.others, self.layers.kept, by_layer))
        predicted = sum(option.damage for option in chosen.values())
        before, others = self.least, self.layers.others
        self.tried.append(Tried(others, self.layers.kept, by_layer, predicted, self.layers.bytes(by_layer), measured))
        if measured.loss < before:
            self._best = chosen
        return True

    @property
    def least(self) -> float:
        """The least loss measured so far."""
        return min((one.measured.loss for one in self.tried), default=float("inf"))

    def _first(self) -> dict[int, Option] | None:
        return least_damage(self.menus, self.layers.whole - self.available)

    def _next(self) -> dict[int, Option] | None:
        """The exchange between two layers of the best so far that is predicted to cost least, of those not tried."""
        assert self._best is not None
        best, needed = self._best, self.layers.whole - self.available
        free = sum(option.saved for option in best.values()) - needed
        found: tuple[float, dict[int, Option]] | None = None
        for giving, one in best.items():
            for less in self._lesser(giving, one):
                for taking, other in best.items():
                    more = None if taking == giving else self._largest(taking, other, free + less.saved - one.saved)
                    if more is None:
                        continue
                    cost = less.damage - one.damage + more.damage - other.damage
                    chosen = {**best, giving: less, taking: more}
                    if (found is None or cost < found[0]) and _name(chosen) not in self._seen:
                        found = cost, chosen
        return None if found is None else found[1]

    def _lesser(self, layer: int, now: Option) -> list[Option]:
        """The few options of a layer that save more than the one it has and lose least more a byte."""
        smaller = [one for one in self.menus[layer] if one.saved > now.saved]
        return sorted(smaller, key=lambda one: (one.damage - now.damage) / (one.saved - now.saved))[:_GIVEN]

    def _largest(self, layer: int, now: Option, free: int) -> Option | None:
        """Of a layer's options that lose less than the one it has and take at most `free` bytes more the one that loses
        least."""
        fitting = (one for one in self.menus[layer] if one.damage < now.damage and now.saved - one.saved <= free)
        return min(fitting, key=lambda one: one.damage, default=None)


def _name(chosen: Mapping[int, Option]) -> Any:
    return tuple((layer, tuple(option.sizes.items())) for layer, option in chosen.items())
