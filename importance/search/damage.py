"""The damage model: predicts the loss of any point of a lattice from a few dozen measured ones.

Each axis cut alone gives a curve d_a.  A loss such as KL is a quadratic form in what a cut perturbs (to second order,
KL = 1/2 e^T F e with F the Fisher information), and the perturbations e_a of several cuts add up:

    KL = sum_a d_a + 2 sum_{a<b} r_ab sqrt(d_a d_b),      r_ab = how much the two perturbations point the same way

whose coefficients are fitted to random combinations, none below zero, so that the model is monotone: to cut more never
looks better.  Larger cuts leave the second order behind, which one exponent takes up (`Form.power`).

Shapes: N measured combinations, A axes, K = A + A (A - 1) / 2 terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from importance.search.least_squares import Array, nonnegative, spearman
from minitron.cut.scores import Scores
from minitron.errors import MinitronError
from minitron.model.spec import DEPTH
from minitron.search.depth import Kept, layer_scores
from minitron.search.format_choices import EXPONENT, KV, Formats, errors, share_lost
from minitron.search.lattice import Lattice, Points
from minitron.search.offered_formats import form_of

EXPONENTS: Final = (0.5, 4.0)
"""What a slope measured between two sizes is held to when it is carried on below the smaller cut."""

LEAST: Final = 1e-9
"""Nats: what a curve counts as no loss at all, so that it has a logarithm."""

FOLDS: Final = 8

Cut = TypeVar("Cut")


@dataclass(frozen=True)
class Curve:
    """What cutting one axis alone costs, through a few measured sizes."""

    cuts: tuple[float, ...]
    """EffectiveParameters of the axis that were cut, ascending, above 0."""

    losses: tuple[float, ...]
    """What was measured there."""

    def __post_init__(self) -> None:
        if not self.cuts or len(self.cuts) != len(self.losses) or min(self.cuts) <= 0:
            raise ValueError("a curve needs one loss above 0 for each of its cuts")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError("the cuts of a curve must ascend")

    def at(self, cut: NDArray[Any]) -> Array:
        """The loss at every share of `cut`, 0 where nothing is cut: straight between the measured points where both
        axes are logarithms (a power law), made monotone by taking the most that a smaller cut has cost."""
        x = np.log(self.cuts)
        y = np.log(np.maximum(np.maximum.accumulate(self.losses), LEAST))
        slopes = np.clip(np.diff(y) / np.diff(x), *EXPONENTS) if len(x) > 1 else np.array([EXPONENT])
        where = np.log(np.maximum(cut, 1e-12))
        inside = np.interp(where, x, y)
        below = y[0] + slopes[0] * (where - x[0])
        above = y[-1] + slopes[-1] * (where - x[-1])
        found = np.exp(np.where(where < x[0], below, np.where(where > x[-1], above, inside)))
        return np.where(cut > 0, found, 0.0)


@dataclass(frozen=True)
class Setting:
    """One axis cut to one size, everything else whole."""

    cut: float
    """Share cut, above 0."""

    sizes: Mapping[str, int]
    """config key -> size; empty for a depth."""

    kept: Kept

    formats: Formats | None = None
    """Those of a cut of none of the sizes; None for the workload's."""


class Coordinates:
    """How much of each axis the points of a lattice cut, as shares from 0 to 1."""

    def __init__(self, lattice: Lattice, scores: Scores | None = None) -> None:
        """`lattice` has one depth a layout; the scores say what a layer that is left out weighs."""
        self.lattice, self.spec = lattice, lattice.spec
        weights = layer_scores(self.spec, scores)
        weights = np.ones(len(self.spec.layers)) if weights is None else np.maximum(weights, LEAST)
        # [depths]: the weight of the layers left out, of the whole.
        self._left_out = np.array([1.0 - weights[list(kept)].sum() / weights.sum() for kept in lattice.depths])
        self._left_out[[len(kept) == len(self.spec.layers) for kept in lattice.depths]] = 0.0
        self._users = {key: self._share_of_users(axes[0]) for key, axes in self.spec.keys.items()}
        self._lost = {part: share_lost(error) for part, error in errors(lattice.formats).items()}
        names = (DEPTH, *lattice.widths, *map(format_name, self._lost))
        self.names = tuple(name for name in names if self.settings(name))
        """DEPTH and the config keys that some point of the lattice cuts, and the formats that some point rounds to."""

    def _share_of_users(self, axis: str) -> Array:
        """[depths] the share of the layers with this axis that stay; 1 for an axis outside layers."""
        kinds = [kind for kind, rules in self.spec.rules.items() if any(axis in rule.all_axes for rule in rules)]
        if "model" in kinds:
            return np.ones(len(self.lattice.depths))
        stay = [self.lattice.kinds[kind] for kind in kinds if kind in self.lattice.kinds]
        whole = sum(self.spec.layers.count(kind) for kind in kinds)
        return np.asarray(np.sum(stay, axis=0) / whole) if stay and whole else np.ones(len(self.lattice.depths))

    def cut(self, name: str, points: Points) -> Array:
        """The share of an axis that each point cuts; of one in groups, the share of each group that stays; of a format
        the share that the prior says it loses."""
        if name == DEPTH:
            return np.asarray(self._left_out[points.depth])
        if (part := format_part(name)) is not None:
            assert points.form is not None
            return np.asarray(self._lost[part][points.form])
        axis = self.spec.keys[name][0]
        share: Any = points.sizes[axis] / self.spec.sizes[axis]
        group = self.spec.family.grouped.get(axis)
        if group in points.sizes and group is not None:
            share = share / (points.sizes[group] / self.spec.sizes[group])
        return np.asarray(np.maximum(1.0 - share, 0.0))

    def users(self, name: str, points: Points) -> Array:
        """The share of the layers with an axis that each point keeps: the others lose nothing by its cut."""
        if name == DEPTH or format_part(name) is not None:
            return np.ones(())
        return np.asarray(self._users[name][points.depth])

    def settings(self, name: str) -> list[Setting]:
        """Every cut of one axis alone, the smallest first; what stands in its groups goes with them."""
        whole = tuple(range(len(self.spec.layers)))
        if name == DEPTH:
            depths = zip(self._left_out.tolist(), self.lattice.depths, strict=True)
            found = [Setting(cut, {}, kept) for cut, kept in depths if cut > 0]
        elif (part := format_part(name)) is not None:
            found = [Setting(cut, {}, whole, self._only(part, form)) for form, cut in self._forms(part) if cut > 0]
        else:
            axis = self.spec.keys[name][0]
            size = self.spec.sizes[axis]
            found = [
                Setting(1.0 - n / size, sizes, whole)
                for n in self.lattice.values(axis)
                if n < size and (sizes := self._alone(axis, n)) is not None
            ]
        return sorted({setting.cut: setting for setting in found}.values(), key=lambda setting: setting.cut)

    def _forms(self, part: str) -> list[tuple[str, float]]:
        """(format, what the prior says it loses) of all formats that some point keeps a part in."""
        forms = dict.fromkeys(one.of[part] for one in self.lattice.formats if part in one.of)
        return [(form, float(share_lost(form_of(form).relative_error))) for form in forms]

    def _only(self, part: str, form: str) -> Formats:
        """Formats in which one part alone is in fewer bits."""
        plain = {name: min(self._forms(name), key=lambda pair: pair[1])[0] for name in self._lost}
        plain = {name: own if not form_of(own).quantised else "bf16" for name, own in plain.items()}
        chosen = plain | {part: form}
        parts = tuple((name, own) for name, own in chosen.items() if name != KV)
        main = form if part != KV else "bf16"
        return Formats(main, parts, chosen.get(KV, ""), self.lattice.formats[0].fixed)

    def _alone(self, axis: str, size: int) -> dict[str, int] | None:
        """config key -> size for an axis cut alone or, where no architecture is like that, with as little of the axis
        beside it as makes one; None where there is none."""
        sizes = {self.spec.key(axis): size}
        for member, group in self.spec.family.grouped.items():
            if group == axis and member in self.spec.sizes:
                sizes[self.spec.key(member)] = self.spec.sizes[member] // self.spec.sizes[group] * size
        beside = [
            other for pair in self.spec.family.multiples.items() if axis in pair for other in pair if other != axis
        ]
        tries = [{self.spec.key(other): n} for other in beside for n in reversed(self.lattice.values(other))]
        return next((sizes | more for more in [{}, *tries] if self._is_reached(sizes | more)), None)

    def _is_reached(self, sizes: Mapping[str, int]) -> bool:
        try:
            self.spec.resized(sizes)
        except MinitronError:
            return False
        return True


_FORMAT: Final = "format of "


def format_name(part: str) -> str:
    """What the curve of a part's formats is called."""
    return _FORMAT + part


def format_part(name: str) -> str | None:
    """The part whose formats a curve is of; None for a size."""
    return name.removeprefix(_FORMAT) if name.startswith(_FORMAT) else None


def cuts_to_measure(cuts: Sequence[Cut], wanted: int) -> list[Cut]:
    """At most `wanted` of the cuts, which ascend: the largest, and the others evenly between it and none."""
    places = np.linspace(0, len(cuts), min(wanted, len(cuts)) + 1)[1:].round().astype(int) - 1
    return [cuts[place] for place in places.tolist()]


@dataclass(frozen=True)
class Form:
    """A shape that the damage of a combination may have: (sum_k w_k t_k ^ power) ^ (1 / power), w >= 0."""

    power: float
    """1 for a quadratic form of the perturbations; less where cuts together cost more than a sum."""

    pairs: bool
    """Whether each pair of axes has a term sqrt(d_a d_b) beside every axis's d_a."""

    ridge: float
    """How strongly coefficients are held to what is expected: 1 for an axis, little for a pair."""

    def terms(self, damages: Sequence[Array]) -> Iterator[Array]:
        """The K terms, from the A damages of the axes."""
        powered = [np.power(damage, self.power) for damage in damages]
        yield from powered
        if self.pairs:
            roots = [np.sqrt(one) for one in powered]
            yield from (roots[a] * roots[b] for a, b in combinations(range(len(roots)), 2))

    def fit(self, damages: Array, losses: Array, weights: Array) -> Array:
        """[K] coefficients from N combinations: damages [N, A], losses [N], by the least weighted relative errors."""
        columns = list(self.terms(list(damages.T)))
        matrix, wanted = np.stack(columns, 1), np.power(losses, self.power)
        scale = (np.sqrt(weights) / wanted)[:, None]
        axes = damages.shape[1]
        expected = np.r_[np.ones(axes), np.full(len(columns) - axes, EXPECTED_PAIR)]
        rows = [matrix * scale, np.sqrt(self.ridge) * np.eye(len(columns))]
        return nonnegative(np.concatenate(rows), np.r_[np.sqrt(weights), np.sqrt(self.ridge) * expected])

    def predict(self, weights: Array, damages: Sequence[Array]) -> Array:
        """The damage of combinations from the damages of their axes, arrays that broadcast against each other."""
        total: Any = 0.0
        for weight, term in zip(weights.tolist(), self.terms(damages), strict=True):
            if weight > 0:
                total = total + weight * term
        return np.asarray(np.power(total, 1.0 / self.power))


EXPECTED_PAIR: Final = 0.1
"""A pair's coefficient before anything is measured: perturbations of different axes are nearly orthogonal."""

FORMS: Final = tuple(
    Form(power, pairs, ridge) for power, pairs, ridge in product((0.7, 0.85, 1.0), (True, False), (0.01, 0.1, 1.0))
)
"""What is tried; the best on combinations that it was not fitted to is kept."""


PRIOR: Final = Form(0.85, True, 1.0)
"""The form before any combination is measured."""


@dataclass(frozen=True)
class Heldout:
    """How well combinations are predicted that the fit did not see."""

    rank_correlation: float
    """Spearman's, of predicted and measured."""

    relative_error: float
    """Standard deviation of ln(predicted / measured)."""


class DamageModel:
    """Predicts the loss of every point of a lattice."""

    def __init__(
        self,
        coordinates: Coordinates,
        curves: Mapping[str, Curve],
        points: Points,
        losses: Sequence[float],
        *,
        forms: Sequence[Form] = FORMS,
        focus: float = 0.0,
    ) -> None:
        """`curves` holds one curve for each name of `coordinates`; `points` are N measured combinations and `losses`
        what was measured of them.  With `focus` above 0 a combination weighs (least loss / its loss) ^ focus, so that
        the model is best where the best candidates are."""
        self.coordinates, self.curves = coordinates, dict(curves)
        measured = np.asarray(losses, dtype=np.float64)
        # Far below the others a loss is rounding and noise: no relative error is taken of that.
        floor = max(0.01 * float(np.median(measured)), LEAST) if len(measured) else LEAST
        self._losses = np.maximum(measured, floor)
        damages = [points.spread(damage) for damage in self._damages(points)]
        self._points = np.stack(damages, 1) if damages else np.zeros((len(measured), 0))
        self._weights = (self._losses.min(initial=np.inf) / self._losses) ** focus
        self.form, self.heldout = self._choose(forms)
        self.coefficients = self.form.fit(self._points, self._losses, self._weights)

    def _damages(self, points: Points) -> list[Array]:
        return [
            np.asarray(curve.at(self.coordinates.cut(name, points)) * self.coordinates.users(name, points))
            for name, curve in self.curves.items()
        ]

    def _choose(self, forms: Sequence[Form]) -> tuple[Form, Heldout]:
        """The form of the best rank correlation on combinations left out of the fit, of equal ones the least error."""
        if not len(self._losses):
            return PRIOR, Heldout(0.0, 0.0)
        judged = [(form, self._cross_validate(form)) for form in forms]
        return max(judged, key=lambda pair: (round(pair[1].rank_correlation, 3), -pair[1].relative_error))

    def _cross_validate(self, form: Form) -> Heldout:
        """Every combination predicted by a fit to the other folds'."""
        count = len(self._losses)
        folds = min(FOLDS, count)
        if folds < 2:
            return Heldout(0.0, 0.0)
        predicted = np.zeros(count)
        fold = np.arange(count) % folds
        for one in range(folds):
            rest, here = fold != one, fold == one
            weights = form.fit(self._points[rest], self._losses[rest], self._weights[rest])
            predicted[here] = form.predict(weights, list(self._points[here].T))
        errors = np.log(np.maximum(predicted, LEAST) / self._losses)
        return Heldout(spearman(predicted, self._losses), float(errors.std()))

    def predict(self, points: Points) -> Array:
        """The loss of every point, as an array that broadcasts to their shape."""
        return self.form.predict(self.coefficients, self._damages(points))

    def directions(self, points: Points) -> Array:
        """[points, A] unit vectors: in what proportion each axis perturbs the model, sqrt(d_a) / sqrt(sum d)."""
        damages = np.stack([np.asarray(points.spread(damage)) for damage in self._damages(points)], 1)
        return np.asarray(np.sqrt(damages / np.maximum(damages.sum(1, keepdims=True), LEAST)))

    def to_json(self) -> dict[str, Any]:
        """What was measured and fitted."""
        names = list(self.curves)
        terms = [*names, *(" x ".join(pair) for pair in combinations(names, 2))]
        return {
            "curves": {
                name: {"cuts": list(curve.cuts), "losses": list(curve.losses)} for name, curve in self.curves.items()
            },
            "power": self.form.power,
            "ridge": self.form.ridge,
            "coefficients": dict(zip(terms, self.coefficients.tolist(), strict=False)),
            "combinations": len(self._losses),
            "heldout_rank_correlation": self.heldout.rank_correlation,
            "heldout_relative_error": self.heldout.relative_error,
        }


def measure_curves(coordinates: Coordinates, measure: Callable[[Setting], float], sizes: int = 3) -> dict[str, Curve]:
    """Name of `coordinates` -> its curve, each from at most `sizes` calls of `measure`; of formats all are measured."""
    found = {}
    for name in coordinates.names:
        chosen = coordinates.settings(name)
        chosen = chosen if format_part(name) is not None else cuts_to_measure(chosen, sizes)
        measured = [max(measure(setting), 0.0) for setting in chosen]
        found[name] = Curve(tuple(setting.cut for setting in chosen), tuple(measured))
    return found
