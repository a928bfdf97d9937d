"""Effective parameters: the importance that an architecture keeps, as one number for ranking.

The parameter count of a candidate is a polynomial in its sizes.  Its effective parameters are the same polynomial with
each size replaced by (the model's size) x (the share of the axis's importance that the best indices of that number
carry), averaged over layers: cutting what nothing depends on costs nothing, cutting where all matter alike costs as
many effective parameters as parameters.  An index's importance is the square of its score, so that shares are shares
of energy; a layer's is its score, which is a divergence already.

In a mixture of experts every token passes the shared expert, the router and the latent projections, and only some of
the routed experts: there parameters count by the share of tokens that use them, and together as many as they are.  If
all count alike, what effective parameters lose in the shared expert of the built-in model costs 8 to 9 times as much
KL as what they lose in its routed experts, of which a token uses a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.cut.selection import STREAM, members_of, rotates
from minitron.model.axes import HIDDEN
from minitron.model.spec import ModelSpec
from minitron.model.tensors import Parameters
from minitron.search.depth import Kept, layer_scores
from minitron.search.lattice import Lattice, Points

if TYPE_CHECKING:
    from minitron.cut.scores import Scores

Curve = NDArray[np.float64]
"""[members + 1] the share of importance that the best n members of every group carry, n = 0 .. members."""

_MIXTURE: Final = "moe_"
"""With what the names of the components of a mixture of experts begin."""


class EffectiveParameters:
    """Kept shares by axis and size, looked up for many candidates at once.

    Axes that the scores do not cover keep the share of their size."""

    def __init__(self, lattice: Lattice, scores: Scores) -> None:
        """Raises MinitronError where the scores are another model's."""
        scores.require(lattice.spec)
        self.spec = lattice.spec
        varied = lattice.varied
        joint = {axis for axis in varied if self.spec.axis(axis).joint}
        self.curves = {
            axis: curve
            for axis in varied - joint
            if (curve := _curve(_arrays(self.spec, scores, axis), self._groups(axis))) is not None
        }
        for axis in varied:
            # Strengths stand in the place of scores where a space is cut to its strongest directions.
            if strengths := [parts[2] for (name, _), parts in scores.bases.items() if name == axis]:
                self.curves[axis] = np.mean([_share(np.square(each)[None]) for each in strengths], axis=0)
        if HIDDEN in self.curves and rotates(self.spec, scores):
            # Directions take the place of channels.
            self.curves[HIDDEN] = _share(scores.directions.energies(STREAM)[None])
        self.channels: dict[str, NDArray[np.float64]] = {}
        for name in sorted({self.spec.axis(axis).joint for axis in joint}):
            if channels := _layer_arrays(scores, name):
                heads, width = self._pair(name)
                widths = {*lattice.values(width), self.spec.sizes[width]}
                self.channels[name] = _channel_curves(channels, sorted(widths), self._groups(heads))
        self.kinds = _kind_shares(lattice, layer_scores(self.spec, scores))
        self.use = use_of(self.spec)

    def _groups(self, axis: str) -> int:
        group = self.spec.family.grouped.get(axis)
        return self.spec.sizes.get(group, 1) if group else 1

    def parameters(self, points: Points) -> Parameters:
        """Effective parameters of every point, the multi-token-prediction block left out."""
        sizes = {axis: self.effective(axis, points) for axis in points.sizes}
        counts = {kind: share[points.depth] for kind, share in self.kinds.items()}
        found = self.spec.parameters(sizes, counts)
        if not self.use:
            return found
        parts = {part: number * self.use.get(part, 1.0) for part, number in found.by_component.items()}
        return replace(found, by_component=parts, total=sum(parts.values()))

    def effective(self, axis: str, points: Points) -> NDArray[np.float64]:
        """The size of an axis times the kept share of its importance."""
        size = self.spec.sizes[axis]
        if self.spec.axis(axis).joint in self.channels:
            return size * self._joint(axis, points)
        if axis not in self.curves:
            return points.sizes[axis].astype(np.float64)
        group = self.spec.family.grouped.get(axis)
        if group is None:
            return np.asarray(size * self.curves[axis][points.sizes[axis]])
        groups: Any = points.sizes.get(group, self.spec.sizes[group])
        # A group that goes takes its members along.
        kept = self.effective(group, points) / self.spec.sizes[group] if group in points.sizes else 1.0
        return np.asarray(size * self.curves[axis][points.sizes[axis] // groups] * kept)

    def _pair(self, joint: str) -> tuple[str, str]:
        """The axes that share a score: heads are ranked by what they hold in the channels that stay."""
        members = [axis for axis in self.spec.sizes if self.spec.axis(axis).joint == joint]
        heads, width = sorted(members, key=lambda axis: self.spec.axis(axis).joint_place)
        return heads, width

    def _joint(self, axis: str, points: Points) -> NDArray[np.float64]:
        """The share of the heads' width, or share of the heads given that width."""
        joint = self.spec.axis(axis).joint
        heads, width = self._pair(joint)
        channels = self.channels[joint]
        kept_width: Any = points.sizes.get(width, self.spec.sizes[width])
        of_width = channels[kept_width, -1]
        if axis == width:
            return np.asarray(of_width)
        inside = points.sizes.get(heads, np.array(self.spec.sizes[heads])) // self._groups(heads)
        return np.asarray(channels[kept_width, inside] / of_width)


def use_of(spec: ModelSpec) -> dict[str, float]:
    """component -> what each of its parameters counts by the tokens that use it, for those of a mixture of experts;
    their mean over all parameters of the mixture is 1.  Empty for a model without one."""
    counts = spec.parameters()
    held = {part: n for part, n in counts.by_component.items() if part.startswith(_MIXTURE)}
    used = {part: counts.active_by_component[part] for part in held}
    if sum(used.values()) in (0, sum(held.values())):
        return {}
    mean = sum(used.values()) / sum(held.values())
    return {part: used[part] / number / mean for part, number in held.items() if number}


def _arrays(spec: ModelSpec, scores: Scores, axis: str) -> list[NDArray[np.float64]]:
    """Every array of scores of an axis: one of the whole model or one a layer."""
    found = _layer_arrays(scores, axis)
    for member in members_of(spec, axis) if not found else ():
        # All members of a group go with it.
        own = _layer_arrays(scores, member)
        found = [np.sqrt(np.square(array).reshape(spec.sizes[axis], -1).sum(1)) for array in own]
    return found


def _layer_arrays(scores: Scores, axis: str) -> list[NDArray[np.float64]]:
    return [values for (name, _), values in scores.importance.items() if name == axis]


def _curve(arrays: Sequence[NDArray[np.float64]], groups: int) -> Curve | None:
    """The mean over layers; [expert, size] arrays choose inside each expert, grouped ones inside each group."""
    if not arrays:
        return None
    return np.asarray(np.mean([_share(np.square(array).reshape(-1, array.shape[-1] // groups)) for array in arrays], 0))


def _share(energy: NDArray[np.float64]) -> Curve:
    """[rows, members] -> [members + 1]: what the best n of every row carry of the whole."""
    best = -np.sort(-energy, axis=1)
    carried = np.concatenate([[0.0], np.cumsum(best.sum(0))])
    if carried[-1] <= 0:
        return np.linspace(0.0, 1.0, len(carried))
    return np.asarray(carried / carried[-1])


def _channel_curves(layers: Sequence[NDArray[np.float64]], widths: Sequence[int], groups: int) -> NDArray[np.float64]:
    """[width + 1, heads per group + 1] share of the energy that so many head channels and heads keep; rows of widths
    that no candidate has are zero.

    All heads of a layer drop the same channels, and heads are chosen by what they keep (Taghibakhshi et al. 2025)."""
    heads, width = layers[0].shape
    table = np.zeros((width + 1, heads // groups + 1))
    for values in layers:
        energy = np.square(values)
        order = np.argsort(-energy.sum(0), kind="stable")
        whole = energy.sum()
        for kept in widths:
            left = energy[:, order[:kept]].sum(1)
            part = left.sum() / whole if whole > 0 else kept / width
            table[kept] += _share(left.reshape(groups, -1)) * part / len(layers)
    return table


def _kind_shares(lattice: Lattice, worth: NDArray[np.float64] | None) -> Mapping[str, NDArray[np.float64]]:
    """layer kind -> [depths] the model's number of such layers times the share of their importance that stays."""
    if worth is None:
        return {kind: count.astype(np.float64) for kind, count in lattice.kinds.items()}
    return {
        kind: np.array([_kept_layers(lattice.spec, worth, kind, kept) for kept in lattice.depths])
        for kind in lattice.kinds
    }


def _kept_layers(spec: ModelSpec, worth: NDArray[np.float64], kind: str, kept: Kept) -> float:
    here = [layer for layer, own in enumerate(spec.layers) if own == kind]
    left = [layer for layer in kept if spec.layers[layer] == kind]
    positive = np.maximum(worth, 0.0)
    whole = positive[here].sum()
    return float(len(here) * positive[left].sum() / whole) if whole > 0 else float(len(left))
