"""Layers of one kind that differ in size: what a config says of each of them stands in for what it says of all.

A config then has a list with one object a layer (Family.blocks).  Layers of which it says the same are one kind;
layers of one kind of which it says different things are several kinds, `moe_1` and `moe_2`, with the tensors of `moe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import Config


@dataclass(frozen=True)
class Blocks:
    """The kinds of layers of a model that says of each layer what it is."""

    layers: tuple[str, ...]
    """The kind of every layer."""

    base: Mapping[str, str] = field(default_factory=dict)
    """kind -> the kind in the family's table whose tensors it has, where it is another."""

    told: Mapping[str, Config] = field(default_factory=dict)
    """kind -> what the config says of these layers alone."""


def read_blocks(config: Config, key: str) -> Sequence[Config]:
    """One object a layer; none where the key is absent.  Raises MinitronError for anything else."""
    given = config.get(key) or ()
    if not isinstance(given, list | tuple) or not all(isinstance(block, Mapping) for block in given):
        raise MinitronError(f"config.json: {key} is not a list of one object a layer; correct it.")
    return given


def tell_apart(kinds: tuple[str, ...], blocks: Sequence[Config]) -> Blocks:
    """The kinds of layers that are of these kinds in the family's table; without `blocks` those.

    Raises MinitronError where there is not one block a layer."""
    if not blocks:
        return Blocks(kinds)
    if len(blocks) != len(kinds):
        raise MinitronError(
            f"config.json describes {len(kinds)} layers by {len(blocks)} blocks; correct one of the two."
        )
    # What is null in a block says nothing.
    said: list[dict[str, Any]] = [{key: one for key, one in block.items() if one is not None} for block in blocks]
    apart: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, own in zip(kinds, said, strict=True):
        apart.setdefault(kind, {}).setdefault(_name(own), own)
    layers = []
    base: dict[str, str] = {}
    told: dict[str, Config] = {}
    for kind, own in zip(kinds, said, strict=True):
        number = [*apart[kind]].index(_name(own)) + 1
        name = kind if len(apart[kind]) == 1 else f"{kind}_{number}"
        layers.append(name)
        base[name], told[name] = kind, own
    return Blocks(tuple(layers), base, told)


def _name(own: Mapping[str, Any]) -> str:
    return json.dumps(own, sort_keys=True)
