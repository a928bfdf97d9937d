"""How a config.json becomes a model, as data: what the planner's page reads a dropped config with.

One entry for models of one type with the same tensors: the keys of its sizes and what their absence means, the layers,
what the config must say alike, and the law over sizes and counts (minitron.memory.law.Shape).  The page knows how to
look up keys and no family; a config that no entry covers is told so.

Where the layers, or a size, follow from code, the entry holds what the code read in the config of a known model and
what came of it: the same code that reads the same comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.memory.caches import window_of
from minitron.memory.expressions import variable
from minitron.memory.law import Shape, law
from minitron.memory.workload import workload_of
from minitron.model.axes import AXES, LAYER, Axis, as_many_as_queries, shared_out
from minitron.model.families.family import value_of
from minitron.model.families.layouts import read_layout
from minitron.model.spec import ModelSpec, spec_of

DEPTH: Final = AXES[LAYER].keys[0]
TIES: Final = "tie_word_embeddings"
PATTERN: Final = "hybrid_override_pattern"

_BESIDE: Final = ("num_nextn_predict_layers", "quantization_config")
"""Keys that change no tensor that the law counts: those of multi-token prediction, which is not asked for, and of
quantised weights, which the page does not read."""

_ABSENT: Final = {
    as_many_as_queries: {"copy": "num_attention_heads"},
    shared_out: {"divide": ["hidden_size", "num_attention_heads"]},
}
"""What a size follows from where its key is absent -> the same as data."""


class _Recorder(Mapping[str, Any]):
    """A config that remembers what was read of it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        # None for what is absent: null is read as if it were.
        self.read[key] = self._config.get(key)
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        for key in self._config:
            self.read[key] = self._config[key]
            yield key

    def __len__(self) -> int:
        return len(self._config)


def _given(what: Callable[[Any], Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What some code reads in a config."""
    recorder = _Recorder(config)
    what(recorder)
    return recorder.read


def reading_document(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries for the types of these models, with and without an output layer of its own."""
    entries: dict[Any, dict[str, Any]] = {}
    for config in configs:
        for tie in ({}, {TIES: True}, {TIES: False}):
            try:
                spec = spec_of({key: value for key, value in config.items() if key not in _BESIDE} | tie)
            except MinitronError:
                continue
            counted = _is_counted(spec)
            if _is_readable(spec) and (counted or not tie):
                same, layout = _same(spec), {} if counted else _given(spec.family.layout, spec.text)
                words = (repr(sorted(found.items())) for found in (same, layout, _windows(spec)))
                key = (spec.family.name, *words, tuple(sorted(spec.kind_counts())))
                if key not in entries:
                    entries[key] = _entry(spec, same, layout)
    return {"entries": list(entries.values())}


def _is_readable(spec: ModelSpec) -> bool:
    family = spec.family
    plain = family.nesting is None and not family.blocks and not spec.own_sizes and not spec.mtp_layers
    return plain and spec.quantisation is None and not any(spec.axis(axis).from_key for axis in spec.sizes)


def _is_counted(spec: ModelSpec) -> bool:
    """Whether the page counts the layers itself, of any number."""
    return len(spec.family.letters) == 1 or (spec.family.layout is read_layout and PATTERN in spec.config)


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


def _windows(spec: ModelSpec) -> dict[str, int | None]:
    """Config key of a sliding window -> its tokens."""
    caches = ((spec.cache(kind), kind) for kind in spec.kind_counts())
    return {cache.window: window_of(spec, cache, kind) for cache, kind in caches if cache is not None and cache.window}


def _size(axis: Axis, config: Mapping[str, Any]) -> dict[str, Any]:
    absent = _absent(axis.default, config)
    return {
        "keys": list(axis.keys),
        "absent": absent,
        "null": absent if axis.null is None else _absent(axis.null, config),
    }


def _absent(default: Any, config: Mapping[str, Any]) -> Any:
    """What a size is where its key is absent: a number, what it follows from, or what code made of what it read."""
    if default is None or isinstance(default, int):
        return default
    if default in _ABSENT:
        return _ABSENT[default]
    try:
        return {"given": _given(default, config), "size": int(default(config))}
    except MinitronError:
        return None


def _entry(spec: ModelSpec, same: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    family = spec.family
    sizes: dict[str, Any] = {axis: variable(f"size.{axis}") for axis in spec.sizes}
    counts: dict[str, Any] = dict(spec.kind_counts())
    if not layout:
        counts = {kind: variable(f"layers.{kind}") for kind in counts}
    shape = Shape(sizes, counts)
    return {
        "types": list(family.model_types),
        "family": family.name,
        "sizes": {axis: _size(spec.axis(axis), spec.text) for axis in sizes},
        "letters": dict(family.letters) if len(family.letters) > 1 and not layout else {},
        "layout": dict(layout),
        "layers_count": len(spec.layers),
        "kinds": list(counts),
        "same": dict(same),
        "defaults": {key: value for key, value in family.defaults.items() if isinstance(value, bool | int | str)},
        "spellings": dict(family.spellings),
        "windows": _windows(spec),
        "refused": [*family.refused, *family.also],
        "groups": [[axis, row.group] for axis, row in family.axes.items() if row.group in sizes and axis in sizes],
        "law": law(spec, workload_of(spec, 1), shape=shape),
    }
