"""Kept importance: the share of the scores that each layer keeps of each pruned axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis
from minitron.cut.scores import Key, Scores
from minitron.cut.selection import Keep, choose, members_of, partner_of, rotates
from minitron.model.by_layer import ByLayer
from minitron.model.dims import Indices
from minitron.model.spec import ModelSpec


def kept_importance(
    spec: ModelSpec,
    scores: Scores,
    sizes: Mapping[str, int],
    layers: tuple[int, ...],
    by_layer: ByLayer | None = None,
) -> dict[Key, float]:
    """(axis, layer) -> the share of importance, 0 to 1, that the best indices carry when `sizes` (config key -> size)
    and `layers` stay, some with sizes of their own (`by_layer`); for axes that shrink and that the scores cover.

    An index's importance is the square of its score, so that shares are shares of energy
    (minitron.search.effective_parameters)."""
    scores.require(spec)
    unknown: set[Key] = set()

    def nothing(axis: str, layer: int | None) -> NDArray[np.float64]:
        unknown.add((axis, layer))
        return np.zeros(spec.sizes_in(layer)[axis])

    changed = {key: size for key, size in sizes.items() if key in spec.keys and size != spec.named_sizes[key]}
    keep = choose(spec, scores, changed, layers, nothing, by_layer=by_layer, rotate=rotates(spec, scores), project=True)
    return {
        key: _basis_share(scores, key, kept)
        if isinstance(kept, Basis)
        else _share(_energy(spec, scores, keep, key), kept)
        for key, kept in keep.items()
        if key not in unknown and (key[1] is None or key[1] < len(spec.layers))
    }


def _basis_share(scores: Scores, key: Key, basis: Basis) -> float:
    """What the kept directions carry of the whole."""
    if key not in scores.bases:
        return scores.directions.share(key, basis.kept)
    worth = np.square(scores.bases[key][2])
    return float(worth[: basis.kept].sum() / worth.sum())


def _energy(spec: ModelSpec, scores: Scores, keep: Keep, key: Key) -> NDArray[np.float64]:
    """[size], or [expert, size]: the importance of every index."""
    axis, layer = key
    if key in scores.importance:
        return np.square(scores.importance[key])
    for member in members_of(spec, axis):
        if (member, layer) in scores.importance:
            return np.asarray(np.square(scores.importance[member, layer]).reshape(spec.sizes[axis], -1).sum(1))
    row = spec.axis(axis)
    channels = np.square(scores.importance[row.joint, layer])
    if row.joint_place == 1:
        return np.asarray(channels.sum(0))
    # Heads are chosen by what they hold in the channels that stay.
    inside = keep.get((partner_of(spec, axis), layer))
    return np.asarray((channels if inside is None or isinstance(inside, Basis) else channels[:, inside]).sum(1))


def _share(energy: NDArray[np.float64], kept: Indices) -> float:
    whole = energy.sum()
    return float(np.take_along_axis(energy, kept, -1).sum() / whole) if whole > 0 else kept.shape[-1] / energy.shape[-1]
