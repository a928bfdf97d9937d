"""Sizes by layer: a model some of whose layers have sizes of their own, where its family's configs can say so."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import ACTIVE, EXPERT
from minitron.model.sizes import Sizes

ByLayer = Mapping[str, Mapping[int, int]]
"""config key -> layer -> the size that it gives to that layer alone."""


def write_sizes(by_layer: ByLayer) -> dict[str, dict[str, int]]:
    """As JSON has it, whose keys are texts."""
    return {key: {str(layer): size for layer, size in sorted(own.items())} for key, own in by_layer.items()}


def read_sizes(value: Mapping[str, Mapping[str, int]]) -> ByLayer:
    """From what `write_sizes` made; raises ValueError where a layer is no number."""
    return {key: {int(layer): size for layer, size in own.items()} for key, own in value.items()}


def axes_by_layer(spec: Sizes) -> dict[str, str]:
    """config key -> the axis whose size it gives to each layer by itself, of those that the model has."""
    found = {spec.key(axis): axis for axis in spec.family.by_layer if axis in spec.axes}
    return found | ({spec.key(ACTIVE): ACTIVE} if EXPERT in found.values() else {})


def own_size(spec: Sizes, key: str, layer: int) -> int | None:
    """What a layer has of a key of `axes_by_layer`, those of the multi-token-prediction block counted on from the last;
    None for a layer that has none of it."""
    axis, kind = axes_by_layer(spec)[key], (spec.layers + spec.mtp_layers)[layer]
    if not any(axis in rule.all_axes for rule in spec.rules[kind]):
        return None
    return spec.sizes_in(layer)[axis]


def config_with_sizes(spec: Sizes, by_layer: ByLayer, layers: tuple[int, ...]) -> dict[str, Any]:
    """The config of the model whose layers have the sizes of `by_layer`, each no larger than it was; `layers` are the
    numbers by which that knows them.

    Raises MinitronError for a family whose layers cannot differ, a key or a layer that has no such size, and sizes that
    are none or contradict each other."""
    if not spec.family.by_layer:
        raise MinitronError(
            f"the layers of a {spec.family.name} model cannot differ in size, as no engine reads such a model; give "
            "them all one size."
        )
    known = axes_by_layer(spec)
    for key, sizes in by_layer.items():
        if key not in known:
            raise MinitronError(
                f"{key} cannot differ from layer to layer in this model; what can: {', '.join(known) or 'nothing'}."
            )
        if gone := sizes.keys() - set(layers):
            raise MinitronError(
                f"{key} is given for layer {min(gone)}, which does not stay; give sizes to layers that do."
            )
    blocks: list[dict[str, int]] = []
    for layer, name in enumerate((*layers, *[None] * len(spec.mtp_layers))):
        asked = {key: None if name is None else sizes.get(name) for key, sizes in by_layer.items()}
        found = {key: (own_size(spec, key, layer), size) for key, size in asked.items()}
        blocks.append({key: _cut(key, name, *pair) for key, pair in found.items() if pair != (None, None)})
    config = copy.deepcopy(dict(spec.config))
    spec.family.set_apart(config, blocks[: len(layers)], blocks[len(layers) :])
    return config


def _cut(key: str, layer: int | None, now: int | None, size: int | None) -> int:
    if now is None:
        raise MinitronError(f"layer {layer} has no {key}; give sizes to layers that have it.")
    if size is not None and not 1 <= size <= now:
        raise MinitronError(f"{key} = {size} in layer {layer} cannot be reached from {now}; choose 1 to {now}.")
    return now if size is None else size
