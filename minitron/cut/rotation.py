"""Rotation: the residual stream in another orthonormal basis, whose weakest directions can be dropped.

RMSNorm(x) = g * x / rms(x), and a rotation changes no root mean square: fold each norm's gain g into the linears that
read it, and the whole model may be written in any orthonormal basis Q of the stream (Ashkboos et al. 2024, SliceGPT,
arXiv 2401.15024, section 3, with one Q for all layers so that the result needs no new matrix).  Where the columns of Q
are the eigenvectors of the normalised stream's covariance, the last ones carry the least of it: they are what is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis
from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN
from minitron.model.dims import Word
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec


class Directions:
    """The principal directions of covariances, computed when first asked for and kept."""

    def __init__(self, covariance: Mapping[tuple[str, int | None], NDArray[Any]]) -> None:
        """`covariance` is that of Scores: (axis, layer) -> [size, size]."""
        self._covariance = covariance
        self._found: dict[tuple[str, int | None], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def __contains__(self, key: tuple[str, int | None]) -> bool:
        return key in self._covariance

    def energies(self, key: tuple[str, int | None]) -> NDArray[np.float64]:
        """[size]: what each direction carries, the strongest first."""
        return self._of(key)[0]

    def basis(self, key: tuple[str, int | None], kept: int) -> Basis:
        """The `kept` strongest directions."""
        return Basis(self._of(key)[1][:, :kept])

    def share(self, key: tuple[str, int | None], kept: int) -> float:
        """What the `kept` strongest directions carry of the whole, 0 to 1."""
        energies = self.energies(key)
        return float(energies[:kept].sum() / energies.sum()) if energies.sum() > 0 else kept / len(energies)

    def _of(self, key: tuple[str, int | None]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if key not in self._found:
            energies, vectors = np.linalg.eigh(self._covariance[key].astype(np.float64))
            # Ascending, and rounding can leave a direction without energy a hair below zero.
            self._found[key] = np.maximum(energies[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1])
        return self._found[key]


def reads_stream(rule: Rule) -> bool:
    """Whether a rule is the gain of a norm through which the residual stream is read."""
    return rule.norm is not None and rule.norm.role in ("before", "final") and rule.dims == (Word(HIDDEN),)


def unrotatable(spec: ModelSpec) -> Rule | None:
    """The first norm for which the stream of a model cannot be written in another basis; None where there is none."""
    return binding_norm(spec.rules)


def binding_norm(rules: Mapping[str, tuple[Rule, ...]]) -> Rule | None:
    """The first norm in a table that ties the stream to the basis of its channels: one that subtracts a mean, or whose
    gain multiplies what goes to the stream or on in it, where no linear comes after it; None where there is none."""
    for kind in rules.values():
        for rule in kind:
            if rule.norm is None or rule.dims != (Word(HIDDEN),):
                continue
            if rule.norm.kind != "rms" or rule.norm.in_stream or not reads_stream(rule):
                return rule
    return None


def require_rotatable(spec: ModelSpec) -> None:
    """Raise MinitronError where the residual stream cannot be written in another basis."""
    if (rule := unrotatable(spec)) is not None:
        assert rule.norm is not None
        why = "multiplies the stream itself" if rule.norm.in_stream else "multiplies the output of a block"
        why = why if rule.norm.kind == "rms" else "subtracts a mean over channels"
        name = rule.pattern.format(dict.fromkeys(rule.pattern.axes, 0))
        raise MinitronError(
            f"the residual stream of {spec.family.name} models cannot be rotated: the norm {name} {why}; select its "
            "best channels instead (--no-rotate)."
        )


def norms_read(rules: tuple[Rule, ...]) -> dict[Rule, tuple[Rule, ...]]:
    """rule of a linear that reads the normalised stream -> the norms it reads, one for each `hidden` in its last
    dimension, given the `rules` of one kind of layer (or of the model) in the order of their families' tables: a linear
    reads what was normalised last before it.  An embedding, which no norm precedes, only writes."""
    norms: list[Rule] = []
    found: dict[Rule, tuple[Rule, ...]] = {}
    for rule in rules:
        if reads_stream(rule):
            norms.append(rule)
        elif norms and (count := rule.reads_stream):
            found[rule] = tuple(norms[-count:])
    return found
