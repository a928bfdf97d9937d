"""The sizes of what a model's scores are of: an axis, the channels of heads together, the inputs of a linear."""

from __future__ import annotations

import math
from collections.abc import Mapping

from minitron.errors import MinitronError
from minitron.model.axes import HIDDEN, LAYER
from minitron.model.dims import Dim, Product, Word
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec


def input_axes(dim: Dim) -> tuple[str, ...]:
    """The one axis along which a linear's inputs lie, or the two of heads and their channels; empty for what no cut
    refits: the residual stream, which many linears read, and what is spelled otherwise."""
    parts = dim.factors if isinstance(dim, Product) else (dim,)
    names = tuple(part.name for part in parts if isinstance(part, Word))
    return names if len(names) == len(parts) <= 2 and names != (HIDDEN,) else ()


def input_name(spec: ModelSpec, rule: Rule) -> str:
    """What the scores call the inputs of a linear; empty for those that no cut refits."""
    axes = () if rule.reads is None else input_axes(rule.reads)
    return rule.inputs or spec.axis(axes[0]).joint or axes[0] if axes else ""


class ScoredAxes:
    """Of one model.  Every function raises MinitronError for an axis or layer that it does not have."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._kinds = spec.layers + spec.mtp_layers

    def indices(self, axis: str, layer: int | None) -> tuple[int, ...]:
        """The shape of an importance."""
        if axis == LAYER:
            return (len(self._spec.layers),)
        sizes = self._sizes(axis, layer)
        if axis in sizes:
            nested = self._spec.axis(axis).nested_in
            return (sizes[nested], sizes[axis]) if nested else (sizes[axis],)
        return self._joint(axis, sizes)

    def size(self, axis: str, layer: int | None) -> int:
        """How many dimensions the space has that an axis spans."""
        return math.prod(self.indices(axis, layer)[-1:])

    def inputs(self, axis: str, layer: int | None) -> int:
        """How many inputs the linears have whose second moments are called so, or how many dimensions the space."""
        sizes = self._sizes(axis, layer)
        for kind in self._kinds if layer is None else (self._kinds[layer],):
            for rule in self._spec.rules[kind]:
                if rule.reads is not None and input_name(self._spec, rule) == axis:
                    return math.prod(sizes[one] for one in input_axes(rule.reads))
        return self.size(axis, layer)

    def _sizes(self, axis: str, layer: int | None) -> Mapping[str, int]:
        if layer is None:
            return self._spec.sizes
        if layer >= len(self._kinds):
            raise MinitronError(f"the scores hold {axis:.60} of layer {layer}, which is not there; score it again.")
        return self._spec.at(self._kinds[layer], self._spec.sizes)

    def _joint(self, axis: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """[heads, channels]."""
        rows = {name: self._spec.axis(name) for name in self._spec.sizes}
        found = sorted((row.joint_place, sizes[name]) for name, row in rows.items() if row.joint == axis)
        if len(found) != 2:
            raise MinitronError(f"the scores hold {axis!r:.60}, which this model does not have; score it again.")
        return tuple(size for _, size in found)
