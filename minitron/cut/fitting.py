"""Whether a plan is one of a model: a file may have been edited, or damaged, in any part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut
from minitron.cut.left import Left
from minitron.cut.selection import Keep, axes_at, factors_of, layer_of, places
from minitron.errors import MinitronError
from minitron.model.axes import EXPERT
from minitron.model.dims import numel
from minitron.model.spec import ModelSpec

AGAIN: Final = "make the plan again with minitron plan -o"
"""What to do about a plan that does not fit."""

_LARGEST: Final = float(np.finfo(np.float16).max)
"""What a factor may be: the narrowest type of weights holds no more."""


def require_layers(spec: ModelSpec, layers: tuple[int, ...]) -> None:
    """Raise MinitronError for kept layers that the model does not have."""
    if layers[-1] >= len(spec.layers):
        raise MinitronError(f"the plan keeps layer {layers[-1]} of {len(spec.layers)}; {AGAIN}.")


def require_cuts(spec: ModelSpec, target: ModelSpec, layers: tuple[int, ...], keep: Keep) -> None:
    """Raise MinitronError where what is kept of each axis is not what makes `target` of `spec`."""
    for axis, size in target.sizes.items():
        if size > spec.sizes[axis]:
            raise MinitronError(
                f"the plan gives {spec.key(axis)} = {size}, more than the model's {spec.sizes[axis]}; {AGAIN}."
            )
    if not keep:
        return  # an architecture without a choice of indices
    left = Left(spec, target, layers)
    known = {
        (axis, layer): left.sizes(layer)[axis] < spec.sizes_in(layer)[axis]
        for layer, kind in places(spec)
        if left.stays(layer)
        for axis in axes_at(spec, kind)
    }
    for (axis, layer), chosen in keep.items():
        where = f"{axis:.60}" if layer is None else f"{axis:.60} in layer {layer}"
        if axis in spec.family.axes and axis not in spec.axes:
            continue  # of a part of a larger model that was taken out of the folder since
        if (axis, layer) not in known:
            raise MinitronError(f"the plan keeps a part of {where}, which is not there; {AGAIN}.")
        before, after = spec.sizes_in(layer), left.sizes(layer)
        if not _fits(chosen, spec, before, after, axis):
            raise MinitronError(
                f"the plan does not keep {after[axis]} of the {before[axis]} indices of {where}; {AGAIN}."
            )
    for axis, layer in {key for key, shrinks in known.items() if shrinks} - keep.keys():
        where = axis if layer is None else f"{axis} in layer {layer}"
        raise MinitronError(f"the plan does not say what it keeps of {where}; {AGAIN}.")


def _fits(chosen: Cut, spec: ModelSpec, before: Mapping[str, int], after: Mapping[str, int], axis: str) -> bool:
    size, kept = before[axis], after[axis]
    if isinstance(chosen, Basis):
        return chosen.matrix.shape[-2:] == (size, kept)
    nested = spec.axis(axis).nested_in
    shape = (before[nested], kept) if nested else (kept,)
    return chosen.shape == shape and int(chosen.max()) < size


def require_factors(
    spec: ModelSpec, layers: tuple[int, ...], keep: Keep, gains: Mapping[str, tuple[float, ...]]
) -> None:
    """Raise MinitronError unless there are factors for every norm that averages over fewer channels, and no others."""
    wanted = factors_of(spec, layers, keep) if keep else {}
    for name, factors in gains.items():
        if len(factors) != wanted.get(name) or not all(abs(factor) <= _LARGEST for factor in factors):
            raise MinitronError(f"the plan's gains of {name:.80} are not those of a norm that it cuts; {AGAIN}.")
    if missing := sorted(wanted.keys() - gains.keys()):
        raise MinitronError(f"the plan has no gains of {missing[0]}, which it cuts; {AGAIN}.")


def require_folds(
    spec: ModelSpec, target: ModelSpec, layers: tuple[int, ...], folds: Mapping[str, NDArray[Any]]
) -> None:
    """Raise MinitronError for matrices that no linear of the model can be multiplied by."""
    left = Left(spec, target, layers)
    for name, fold in folds.items():
        rule, index = spec.find(name)
        layer = layer_of(spec, index)
        if rule.reads is None or not left.stays(layer):
            raise MinitronError(f"the plan refits {name:.80}, which is no linear layer that stays; {AGAIN}.")
        before, after = spec.sizes_in(layer), left.sizes(layer)
        matrix = (int(numel(rule.reads, before)), int(numel(rule.reads, after)))
        shape = (before[EXPERT], *matrix) if rule.is_stacked else matrix
        if fold.shape != shape or not np.isfinite(fold).all():
            raise MinitronError(
                f"the plan refits {name:.80} by numbers of the shape {list(fold.shape)}, not {list(shape)}; {AGAIN}."
            )
