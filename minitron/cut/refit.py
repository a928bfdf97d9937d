"""Refit: least-squares weights for a linear layer that has lost some of its inputs.

Where inputs a of a linear W go, those that stay, a_K, foretell part of what the others carried.  With C = E[a a^T] the
W' that makes E|W a - W' a_K|^2 + ridge * |W'|^2 least is W C[:, K] (C[K, K] + ridge * I)^-1: the normal equations of
least squares, the second half of Optimal Brain Surgeon (Hassibi and Stork 1992; for whole columns Kurtic et al. 2023,
ZipLM, arXiv 2302.04089, equation 3).  W' follows from W and a matrix that no weight enters: a fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis
from minitron.cut.scored_axes import input_axes, input_name
from minitron.cut.scores import Key, Scores
from minitron.cut.selection import Keep, kept_rows
from minitron.model.axes import EXPERT
from minitron.model.dims import Indices
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec

RIDGE: Final = 1e-3
"""Times the mean of C's diagonal, where the scores name none for a site."""


@dataclass(frozen=True)
class InputSite:
    """A linear whose inputs can go."""

    key: Key
    """What the second moments of its inputs are called in the scores."""

    rule: Rule
    layer: int

    size: int
    """How many inputs it has."""

    by_expert: bool
    """Whether each expert reads inputs of its own, so that there is one matrix for each."""


def input_sites(spec: ModelSpec) -> Iterator[InputSite]:
    """Every linear of a layer that reads what the layer itself made: MLP, expert and latent channels, heads."""
    for layer, kind in enumerate(spec.layers):
        for rule in spec.rules[kind]:
            if rule.reads is not None and (axes := input_axes(rule.reads)):
                size = int(np.prod([spec.sizes_in(layer)[axis] for axis in axes]))
                nested = rule.per_expert and spec.axis(axes[0]).nested_in == EXPERT
                yield InputSite((input_name(spec, rule), layer), rule, layer, size, nested)


def fold(moments: NDArray[np.float64], kept: Indices, ridge: float) -> NDArray[np.float64]:
    """[size, kept]: what W is multiplied by to read the inputs `kept` only, given E[a a^T] [size, size].

    `ridge` is a share of the mean of the diagonal.  Where nothing was seen of the inputs, W's columns are selected."""
    inner = moments[np.ix_(kept, kept)]
    weight = ridge * float(np.diag(moments).mean())
    if weight <= 0:
        return np.eye(len(moments))[:, kept]
    return np.asarray(np.linalg.solve(inner + weight * np.eye(len(kept)), moments[kept]).T)


class Folds:
    """The folds of one model's scores, each kept once made: candidates of a search share many."""

    def __init__(self, scores: Scores) -> None:
        """`scores` may hold second moments for any of the model's sites."""
        self._moments, self._ridges = scores.covariance, scores.ridges
        self._made: dict[tuple[Key, int | None, bytes], NDArray[np.float32]] = {}

    def of(self, spec: ModelSpec, keep: Keep, layers: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
        """Tensor name (the family's first dialect) -> [size, kept] of every linear in `layers` that loses inputs; of
        one tensor for all experts [expert, size, kept]."""
        found: dict[str, NDArray[np.float32]] = {}
        for site in input_sites(spec):
            if site.key not in self._moments or site.layer not in layers:
                continue
            reads = site.rule.reads
            assert reads is not None
            if any(isinstance(keep.get((axis, site.layer)), Basis) for axis in input_axes(reads)):
                continue
            folds: dict[int | None, NDArray[np.float32]] = {}
            for expert in range(spec.sizes_in(site.layer)[EXPERT]) if site.rule.per_expert else (None,):
                kept = kept_rows(spec, keep, reads, site.layer, expert)
                if len(kept) < site.size:
                    folds[expert] = self._fold(site, expert, kept)
            if site.rule.is_stacked and folds:
                found[site.rule.pattern.format({"layer": site.layer})] = np.stack(list(folds.values()))
                continue
            for expert, matrix in folds.items():
                index = {"layer": site.layer} | ({} if expert is None else {EXPERT: expert})
                found[site.rule.pattern.format(index)] = matrix
        return found

    def _fold(self, site: InputSite, expert: int | None, kept: Indices) -> NDArray[np.float32]:
        own = expert if site.by_expert else None
        name = site.key, own, kept.tobytes()
        if name not in self._made:
            moments = self._moments[site.key]
            moments = (moments if own is None else moments[own]).astype(np.float64)
            whole = fold(moments, kept, self._ridges.get(site.key, RIDGE))
            self._made[name] = whole.astype(np.float32)
        return self._made[name]


_FOLDS: Final[WeakKeyDictionary[Scores, Folds]] = WeakKeyDictionary()


def folds_of(scores: Scores) -> Folds:
    """The folds of `scores`, the same ones as long as the scores live."""
    return _FOLDS.setdefault(scores, Folds(scores))
