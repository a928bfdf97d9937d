"""Which indices stay: from scores and new sizes to kept indices and norm gains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut
from minitron.cut.left import Left
from minitron.cut.rotation import reads_stream, require_rotatable, unrotatable
from minitron.cut.scores import Key, Scores
from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN
from minitron.model.by_layer import ByLayer, axes_by_layer
from minitron.model.dims import Dim, Indices, axes_of, rows
from minitron.model.families import Rule
from minitron.model.families.nesting import PROJECTOR
from minitron.model.spec import ModelSpec
from minitron.model.tensors import Expected

Keep = Mapping[Key, Cut]
"""(axis, layer) -> kept indices [kept], or [expert, kept] for an axis inside each expert, or a basis.  The layer is
None for an axis that all layers share; layers of the multi-token-prediction block count on from the last layer."""

STREAM: Final[Key] = (HIDDEN, None)
"""The residual stream among keys."""

Fallback = Callable[[str, int | None], NDArray[np.float64]]
"""(axis, layer) -> [size] importance of an axis that the scores do not cover."""


def require_cuttable(spec: ModelSpec, *, by_layer: bool = True) -> None:
    """Raise MinitronError where no size of a model may be cut, so that there is nothing to score or to search; without
    `by_layer`, none of all layers together."""
    if all(axis in spec.family.fixed for axis in spec.sizes) and not (by_layer and axes_by_layer(spec)):
        raise MinitronError(
            f"nothing of a {spec.family.name} model can be cut, as {spec.axis(HIDDEN).fixed}; it can be "
            "planned for and inspected as it is."
        )


def places(spec: ModelSpec) -> Iterator[tuple[int | None, str]]:
    """(layer, kind) of everything that holds tensors: the model itself, what stands beside it in a larger one, its
    layers, the prediction block's layers."""
    yield None, "model"
    if PROJECTOR in spec.rules:
        yield None, PROJECTOR
    yield from enumerate(spec.layers + spec.mtp_layers)


def axes_at(spec: ModelSpec, kind: str) -> frozenset[str]:
    """The axes whose indices are chosen for each layer of `kind` by itself, or for `model` those that all share."""
    shared = frozenset().union(*(rule.axes for rule in spec.rules["model"]))
    here = frozenset().union(*(rule.axes for rule in spec.rules[kind]))
    return here if kind == "model" else here - shared


def choose(
    spec: ModelSpec,
    scores: Scores,
    named_sizes: Mapping[str, int],
    layers: tuple[int, ...],
    fallback: Fallback | None = None,
    *,
    by_layer: ByLayer | None = None,
    rotate: bool = False,
    project: bool = False,
) -> dict[Key, Cut]:
    """The most important indices of every axis that shrinks, for the layers that stay, which may have sizes of their
    own (`by_layer`); with `rotate` the strongest directions of the residual stream in the place of its channels, with
    `project` those of every space that the scores hold a basis of.

    Raises MinitronError for a size that cannot be reached: larger than the model's, not the same number in every
    group, or of an axis that neither the scores nor `fallback` know."""
    uniform = spec.resized(named_sizes, layers)
    for axis, size in () if spec.blocks.told else uniform.sizes.items():
        if size > spec.sizes[axis]:
            raise MinitronError(
                f"{spec.key(axis)} = {size} is more than the model's {spec.sizes[axis]}; pruning only cuts."
            )
        if size < spec.sizes[axis] and (why := spec.axis(axis).fixed):
            raise MinitronError(
                f"{spec.key(axis)} cannot be cut in a {spec.family.name} model, as {why}; leave it as it is."
            )
    left = Left(spec, spec.resized(named_sizes, layers, by_layer) if by_layer else uniform, layers)
    if rotate and left.sizes(None)[HIDDEN] < spec.sizes[HIDDEN]:
        require_rotatable(spec)
    keep: dict[Key, Cut] = {}
    for layer, kind in places(spec):
        if not left.stays(layer):
            continue
        before, after = spec.sizes_in(layer), left.sizes(layer)
        _require_members(spec, before, after)
        chooser = _Chooser(spec, scores, after, layer, fallback)
        for axis in sorted(axes_at(spec, kind), key=lambda axis: _rank(spec, axis)):
            size = after[axis]
            if size < before[axis] and project and (axis, layer) in scores.bases:
                matrix, dual, _ = scores.bases[axis, layer]
                keep[axis, layer] = Basis(matrix[..., :size], dual[..., :size])
            elif size < before[axis]:
                chooser.choose(axis)
        keep |= {(axis, layer): kept for axis, kept in chooser.kept.items()}
    if rotate and STREAM in keep:
        keep[STREAM] = scores.directions.basis(STREAM, left.sizes(None)[HIDDEN])
    return keep


def _require_members(spec: ModelSpec, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Raise MinitronError where more members are to stay than the groups that stay have: query heads of KV heads."""
    for member, group in spec.family.grouped.items():
        if member not in after or group not in after or after[group] >= before[group]:
            continue
        most = before[member] // before[group] * after[group]
        if after[member] > most:
            raise MinitronError(
                f"{spec.key(member)} = {after[member]} is more than the {most} that are in the {after[group]} groups "
                f"that stay ({spec.key(group)}); choose {most} or less."
            )


def rehearse(spec: ModelSpec, named_sizes: Mapping[str, int], layers: tuple[int, ...]) -> None:
    """Raise MinitronError for sizes that cannot be reached whatever the scores are, which is told before a model is
    scored: where heads are not the same number in every group, say."""
    choose(spec, Scores({}, {}, spec.fingerprint, ""), named_sizes, layers, lambda axis, _: np.zeros(spec.sizes[axis]))


def rotates(spec: ModelSpec, scores: Scores) -> bool:
    """Whether a cut of the residual stream rotates it where nobody says: where the scores hold its covariance, the
    family's norms allow it, and the output layer is not tied to the embedding, which a rotation would part."""
    return STREAM in scores.directions and not spec.is_tied and unrotatable(spec) is None


def _rank(spec: ModelSpec, axis: str) -> tuple[bool, str]:
    """KV heads are chosen before the query heads in them, head channels before the heads whose worth they decide."""
    first = axis in spec.family.grouped.values() or spec.axis(axis).joint_place == 1
    return not first, axis


class _Chooser:
    """The choice for one layer, axis after axis."""

    def __init__(
        self, spec: ModelSpec, scores: Scores, target: Mapping[str, int], layer: int | None, fallback: Fallback | None
    ) -> None:
        self.spec, self.scores, self.target, self.layer, self.fallback = spec, scores, target, layer, fallback
        self.sizes = spec.sizes_in(layer)
        self.kept: dict[str, Indices] = {}

    def choose(self, axis: str) -> None:
        size, wanted = self.sizes[axis], self.target[axis]
        group = self.spec.family.grouped.get(axis)
        if group is None:
            self.kept[axis] = top(self._importance(axis), wanted, self.spec.equal_groups(axis), self.spec.key(axis))
            return
        members = np.arange(size).reshape(self.sizes[group], -1)[self.kept.get(group, slice(None))]
        if members.size == wanted:
            # All members of the groups that stay.
            self.kept[axis] = members.ravel()
            return
        inside = top(self._importance(axis)[members.ravel()], wanted, len(members), self.spec.key(axis))
        self.kept[axis] = members.ravel()[inside]

    def _importance(self, axis: str) -> NDArray[np.float64]:
        """[size], or [expert, size]."""
        found = self._find(axis)
        if found is not None:
            return found
        # All members of a group go with it: the query heads of a KV head.
        for member in members_of(self.spec, axis):
            if (own := self._find(member)) is not None:
                return _energy(own.reshape(self.sizes[axis], -1), 1)
        joint = self.spec.axis(axis).joint
        if joint and (channels := self._find(joint)) is not None:
            if self.spec.axis(axis).joint_place == 1:
                return _energy(channels, 0)
            return _energy(channels[:, self.kept.get(partner_of(self.spec, axis), slice(None))], 1)
        if self.fallback is not None:
            return self.fallback(axis, self.layer)
        where = "" if self.layer is None else f" in layer {self.layer}"
        raise MinitronError(
            f"the scores do not cover {self.spec.key(axis)}{where}; leave it at {self.sizes[axis]} "
            "or score the model again."
        )

    def _find(self, axis: str) -> NDArray[np.float64] | None:
        return self.scores.importance.get((axis, self.layer))


def members_of(spec: ModelSpec, axis: str) -> tuple[str, ...]:
    """The axes that are grouped in this one."""
    return tuple(member for member, group in spec.family.grouped.items() if group == axis and member in spec.sizes)


def partner_of(spec: ModelSpec, axis: str) -> str:
    """The axis with which this one shares a score: the channels of heads, the heads of channels."""
    joint = spec.axis(axis).joint
    return next(other for other in spec.sizes if other != axis and spec.axis(other).joint == joint)


def _energy(values: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """The squared L2 norm along one dimension: it orders as the norm does."""
    return np.asarray(np.square(values).sum(dim))


def top(worth: NDArray[np.float64], wanted: int, groups: int, name: str) -> Indices:
    """The `wanted` most important of [size] or [rows, size] in ascending order, the same number from each of `groups`.

    Equal ones: the first.  Raises MinitronError where the groups cannot be served alike."""
    if wanted % groups or wanted < groups:
        raise MinitronError(
            f"{name} = {wanted} does not give each of {groups} groups the same number; use a multiple of {groups}."
        )
    blocks = worth.reshape(*worth.shape[:-1], groups, -1)
    best = np.argsort(-blocks, axis=-1, kind="stable")[..., : wanted // groups]
    start = np.arange(groups)[:, None] * blocks.shape[-1]
    return np.sort(best + start, axis=-1).reshape(*worth.shape[:-1], wanted).astype(np.int64)


def kept_rows(spec: ModelSpec, keep: Keep, dim: Dim, layer: int | None, expert: int | None = None) -> Indices:
    """The rows of one dimension that stay in one layer; raises ValueError where a basis leaves no rows as they were."""
    kept: dict[str, Indices] = {}
    for axis in axes_of(dim):
        chosen = pick(keep, axis, layer, expert)
        if isinstance(chosen, Basis):
            raise ValueError(f"{axis} is projected: no rows of it stay")
        if chosen is not None:
            kept[axis] = chosen
    return rows(dim, spec.sizes_in(layer), kept)


def pick(keep: Keep, axis: str, layer: int | None, expert: int | None) -> Cut | None:
    """The cut of an axis at one place; None where the axis stays whole there."""
    kept = keep.get((axis, layer), keep.get((axis, None)))
    return kept[expert] if isinstance(kept, np.ndarray) and kept.ndim == 2 else kept


def gains(spec: ModelSpec, scores: Scores, keep: Keep, layers: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """Norm gain's name -> the factor of each of its groups, for every norm that averages over fewer channels.

    RMSNorm(x)_c = g_c x_c / sqrt(mean x^2).  Over the kept channels the mean is (size / kept) * E times the old one, E
    the share of the energy that they carry, so the gain times sqrt(size / kept * E) leaves the output of the kept
    channels as it was (exactly, where E is the same for all tokens and the norm's epsilon negligible).  In a rotated
    stream the gain itself is folded away and that factor is what is left.  Where the embedding enters the stream times
    sqrt(hidden), all that a norm after a block writes is scaled like the embedding, by sqrt(kept / size): the norms
    that read the stream do not see it.  So is the gain of a norm whose output the model divides by sqrt(size)."""
    found: dict[str, tuple[float, ...]] = {}
    for tensor, chosen in _norms_cut(spec, keep, layers):
        rule, size = tensor.rule, tensor.shape[-1]
        assert rule.norm is not None
        if isinstance(chosen, Basis):
            share = scores.directions.share(STREAM, chosen.kept)
            root = np.sqrt(chosen.kept / size) if rule.norm.over_root else 1.0
            found[tensor.name] = (float(np.sqrt(size / chosen.kept * share) * root),)
        else:
            groups = norm_groups(spec, rule, layer_of(spec, tensor.index))
            factors = _factors(scores.energy.get(tensor.name, np.ones(size)), chosen, groups)
            follows = rule.norm.over_root or (rule.norm.role == "after" and spec.family.scales_stream(spec.told))
            scale = np.sqrt(len(chosen) / size) if follows else 1.0
            found[tensor.name] = tuple(float(factor * scale) for factor in factors)
    return found


def factors_of(spec: ModelSpec, layers: tuple[int, ...], keep: Keep) -> dict[str, int]:
    """Norm gain's name -> how many factors `gains` gives it."""
    return {
        tensor.name: 1 if isinstance(chosen, Basis) else norm_groups(spec, tensor.rule, layer_of(spec, tensor.index))
        for tensor, chosen in _norms_cut(spec, keep, layers)
    }


def _norms_cut(spec: ModelSpec, keep: Keep, layers: tuple[int, ...]) -> Iterator[tuple[Expected, Cut]]:
    """(norm gain, the basis or the rows that stay of it) of every norm that averages over fewer channels."""
    for tensor in spec.expected():
        rule = tensor.rule
        layer = layer_of(spec, tensor.index)
        if rule.norm is None or (layer is not None and layer < len(spec.layers) and layer not in layers):
            continue
        chosen = keep.get(STREAM) if reads_stream(rule) else None
        if isinstance(chosen, Basis):
            yield tensor, chosen
        elif len(kept := kept_rows(spec, keep, rule.dims[-1], layer)) < tensor.shape[-1]:
            yield tensor, kept


def _factors(energy: NDArray[np.float64], kept: Indices, groups: int) -> tuple[float, ...]:
    """[size] what each channel carries -> for each group sqrt(size / kept * share kept)."""
    whole = energy.reshape(groups, -1).sum(1)
    part = energy[kept].reshape(groups, -1).sum(1)
    share = np.divide(part, whole, out=np.ones(groups), where=(whole > 0) & (part > 0))
    return tuple(float(factor) for factor in np.sqrt(len(energy) / len(kept) * share))


def norm_groups(spec: ModelSpec, rule: Rule, layer: int | None) -> int:
    """Over how many groups of channels a norm takes separate means."""
    assert rule.norm is not None
    return spec.sizes_in(layer)[rule.norm.group] if rule.norm.group else 1


def layer_of(spec: ModelSpec, index: Mapping[str, int]) -> int | None:
    """The layer that a tensor's indices speak of, the prediction block's counted on from the last; None for none."""
    if "layer" in index:
        return index["layer"]
    return len(spec.layers) + index["mtp_layer"] if "mtp_layer" in index else None


__all__ = [
    "Keep",
    "axes_at",
    "choose",
    "factors_of",
    "gains",
    "kept_rows",
    "layer_of",
    "members_of",
    "norm_groups",
    "partner_of",
    "pick",
    "places",
    "rehearse",
    "require_cuttable",
    "rotates",
    "top",
]
