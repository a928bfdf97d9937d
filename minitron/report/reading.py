"""How a config.json becomes a model, as data: what the planner's page reads a dropped config with.

One entry for models of one type with the same tensors: the keys of its sizes and what their absence means, the layers,
what the config must say alike, and the law over sizes and counts (minitron.memory.law.Shape).  The page knows how to
look up keys and no family; a config that no entry covers is told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.memory.caches import window_of
from minitron.memory.expressions import variable
from minitron.memory.law import Shape, law
from minitron.memory.workload import workload_of
from minitron.model.axes import AXES, LAYER, Axis
from minitron.model.families.family import value_of
from minitron.model.families.layouts import read_layout
from minitron.model.spec import ModelSpec, spec_of

DEPTH: Final = AXES[LAYER].keys[0]
TIES: Final = "tie_word_embeddings"
PATTERN: Final = "hybrid_override_pattern"

_ABSENT: Final = {
    AXES["kv_head"].default: {"copy": "num_attention_heads"},
    AXES["head_dim"].default: {"divide": ["hidden_size", "num_attention_heads"]},
}
"""What a size follows from where its key is absent -> the same as data."""


def reading_document(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries for the types of these models, with and without an output layer of its own."""
    entries: dict[Any, dict[str, Any]] = {}
    for config in configs:
        for tied in (True, False):
            try:
                spec = spec_of({**config, TIES: tied})
            except MinitronError:
                continue
            if _is_readable(spec):
                same = _same(spec)
                key = (spec.family.name, tuple(sorted(map(str, same.items()))), tuple(sorted(spec.kind_counts())))
                if key not in entries:
                    entries[key] = _entry(spec, same)
    return {"entries": list(entries.values())}


def _is_readable(spec: ModelSpec) -> bool:
    family = spec.family
    plain = family.nesting is None and not family.blocks and not spec.own_sizes and not spec.mtp_layers
    named = len(family.letters) == 1 or (family.layout is read_layout and PATTERN in spec.config)
    return plain and named and spec.quantisation is None and not any(spec.axis(axis).from_key for axis in spec.sizes)


def _same(spec: ModelSpec) -> dict[str, Any]:
    """condition of a rule -> whether it holds: what another config must say alike."""
    words = {
        word.removeprefix("!") for rules in spec.family.rules.values() for rule in rules for word in rule.when.split()
    }
    found = {}
    for word in sorted(words - set(spec.family.storage)):
        key, is_word, text = word.partition("=")
        value = value_of(spec.told, spec.family.defaults, key)
        found[word] = value == text if is_word else bool(value)
    return found


def _size(axis: Axis) -> dict[str, Any]:
    default = axis.default
    absent = default if isinstance(default, int) else _ABSENT.get(default)
    null = absent if axis.null is None else _ABSENT.get(axis.null)
    return {"keys": list(axis.keys), "absent": absent, "null": null}


def _entry(spec: ModelSpec, same: Mapping[str, Any]) -> dict[str, Any]:
    family = spec.family
    sizes: dict[str, Any] = {axis: variable(f"size.{axis}") for axis in spec.sizes}
    counts = {kind: variable(f"layers.{kind}") for kind in spec.kind_counts()}
    shape = Shape(sizes, counts)
    windows = {
        cache.window: window_of(spec, cache, kind)
        for kind in counts
        if (cache := spec.cache(kind)) is not None and cache.window
    }
    return {
        "types": list(family.model_types),
        "family": family.name,
        "sizes": {axis: _size(spec.axis(axis)) for axis in sizes},
        "letters": dict(family.letters) if len(family.letters) > 1 else {},
        "kinds": list(counts),
        "same": dict(same),
        "defaults": {key: value for key, value in family.defaults.items() if isinstance(value, bool | int | str)},
        "spellings": dict(family.spellings),
        "windows": windows,
        "refused": [*family.refused, *family.also],
        "groups": [[axis, row.group] for axis, row in family.axes.items() if row.group in sizes and axis in sizes],
        "law": law(spec, workload_of(spec, 1), shape=shape),
    }
