"""ModelSpec: a family and a config, and what follows from the two without a weight being read."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.model.axes import ACTIVE, AXES, EXPERT, HIDDEN, LAYER
from minitron.model.by_layer import ByLayer, config_with_sizes
from minitron.model.dims import numel
from minitron.model.dtypes import DTYPE_ALIASES, DTYPE_KEYS
from minitron.model.families import Extra, Rule, find_family
from minitron.model.families.family import OTHER_HEADS, ROTARY_BUFFERS
from minitron.model.families.nesting import ASIDE, PROJECTOR
from minitron.model.headers import tensor_files
from minitron.model.quantised import ORIGINAL, Quantisation, Source, plain_config, quantisation_of, with_companions
from minitron.model.reading import HEADLESS
from minitron.model.sizes import Sizes
from minitron.model.sources import config_path
from minitron.model.spellings import differing_head, has_head, known_as
from minitron.model.tensors import Expected, Parameters, count_parameters, is_read

DEPTH: Final = AXES[LAYER].keys[0]
"""How the number of layers is named among sizes."""


MOST_TENSORS: Final = 2**20
"""What a checkpoint of ours may hold: the largest published ones have a tenth of it."""


@dataclass(frozen=True)
class ModelSpec(Sizes):
    """A model as data."""

    source: Source = ORIGINAL
    """Of a quantised checkpoint: its layers that are left, and what its files hold."""

    @cached_property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """config key -> the axes whose size it gives."""
        found: dict[str, tuple[str, ...]] = {}
        for axis in self.sizes:
            if self.axis(axis).keys:
                found[self.key(axis)] = (*found.get(self.key(axis), ()), axis)
        return found

    @cached_property
    def named_sizes(self) -> dict[str, int]:
        """config key -> size, num_hidden_layers among them: how a person names an architecture."""
        return {DEPTH: len(self.layers)} | {key: self.sizes[axes[0]] for key, axes in self.keys.items()}

    @cached_property
    def quantisation(self) -> Quantisation | None:
        """What the config says of how the weights are quantised; None for a model in plain numbers."""
        return quantisation_of(self.config)

    @cached_property
    def tallies(self) -> dict[Any, Any]:
        """What minitron.memory.precision counted of the whole model, which a plan asks for at every context length."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the config, whatever it says of quantisation: scores and plans are those of the same model."""
        return hashlib.sha256(json.dumps(plain_config(self.config), sort_keys=True).encode()).hexdigest()

    def kind_counts(self) -> Counter[str]:
        """kind -> how many layers of it, the multi-token-prediction block's under their own kinds."""
        return Counter(self.layers + self.mtp_layers)

    def parameters(self, sizes: Mapping[str, Any] | None = None, counts: Mapping[str, Any] | None = None) -> Parameters:
        """The parameter counts, exact (design: each tensor's product of dimensions, times layers, times experts).

        `sizes` and `counts` stand in for the model's own: as numpy arrays they count many candidates at once."""
        sizes = dict(self.sizes) | dict(sizes or {})
        counts = dict(self.kind_counts()) | dict(counts or {}) | dict.fromkeys(("model", "mtp", *ASIDE), 1)
        return count_parameters(
            self.rules,
            lambda kind: self.at(kind, sizes),
            counts,
            lambda kind: self.at(kind, sizes)[EXPERT] - self.at(kind, sizes)[ACTIVE],
        )

    def expected(self) -> Iterator[Expected]:
        """Every tensor that a checkpoint of this model must hold, layer by layer."""
        places: list[tuple[str, dict[str, int]]] = [("model", {})]
        elsewhere = self.family.elsewhere(self.text)
        places += [(kind, {"layer": layer, **elsewhere.get(layer, {})}) for layer, kind in enumerate(self.layers)]
        places += [(kind, {"mtp_layer": layer}) for layer, kind in enumerate(self.mtp_layers)]
        if self.mtp_layers:
            places.append(("mtp", {"mtp_last": len(self.mtp_layers) - 1}))
        if PROJECTOR in self.rules:
            places.append((PROJECTOR, {}))
        if self._num_tensors > MOST_TENSORS:
            raise MinitronError(
                f"config.json describes a model of {self._num_tensors:,} tensors; Minitron reads at most "
                f"{MOST_TENSORS:,}; correct its layers or experts."
            )
        for kind, index in places:
            sizes = self.at(kind, self.sizes)
            for rule in self.rules[kind]:
                shape = tuple(int(numel(dim, sizes)) for dim in rule.dims)
                for expert in range(sizes[EXPERT]) if EXPERT in rule.pattern.axes else (None,):
                    full = index if expert is None else index | {EXPERT: expert}
                    yield Expected(rule.pattern.format(full), shape, kind, rule, full)

    @cached_property
    def _num_tensors(self) -> int:
        """How many tensors the layers hold."""
        experts = {kind: self.at(kind, self.sizes).get(EXPERT, 1) for kind in self.rules}
        each = {
            kind: sum(experts[kind] if EXPERT in rule.pattern.axes else 1 for rule in self.rules[kind])
            for kind in self.rules
        }
        return sum(count * each[kind] for kind, count in self.kind_counts().items())

    def find(self, name: str) -> tuple[Rule, dict[str, int]]:
        """The rule that names a tensor and the indices in its name; raises MinitronError where no rule does."""
        for _, rule, index in self._named(name):
            return rule, index
        raise MinitronError(
            f"the family {self.family.name} has no rule for the tensor {name!r}, and Minitron changes no checkpoint "
            "that it does not know completely; remove the tensor or add a rule."
        )

    def builds(self, name: str) -> bool:
        """Whether transformers builds something for a tensor of this name when it loads the language model: neither for
        the multi-token-prediction block nor for what stands beside that model or what no rule names."""
        return any(is_read(kind) for kind, _, _ in self._named(name))

    def _named(self, name: str) -> Iterator[tuple[str, Rule, dict[str, int]]]:
        """(kind, rule, indices in the name) of the tensors of this model that have the name: one or none."""
        for kind, rules in self.rules.items():
            for rule in rules:
                index = self.family.placed(self.text, rule.pattern.match(name))
                if index is not None and self._holds(kind, index):
                    yield kind, rule, index

    def _holds(self, kind: str, index: Mapping[str, int]) -> bool:
        """Whether the place that a name speaks of is one of this model's, of that kind."""
        if EXPERT in index and index[EXPERT] >= self.at(kind, self.sizes)[EXPERT]:
            return False
        if "layer" in index:
            return index["layer"] < len(self.layers) and self.layers[index["layer"]] == kind
        if "mtp_layer" in index:
            return index["mtp_layer"] < len(self.mtp_layers) and self.mtp_layers[index["mtp_layer"]] == kind
        return (
            set(index) <= {"mtp_last"} and index.get("mtp_last", len(self.mtp_layers) - 1) == len(self.mtp_layers) - 1
        )

    def extra(self, name: str) -> Extra | None:
        """What a tensor is that no rule names and that is known all the same; None for one of the model's own."""
        rows = (*self.family.extras, ROTARY_BUFFERS, *(() if self.has_head else (OTHER_HEADS,)))
        layers, defaults = len(self.layers), self.family.defaults
        return next((row for row in rows if row.matches(name, self.told, defaults, layers)), None)

    def as_loaded(self, files: Mapping[str, Path]) -> ModelSpec:
        """The spec of the model that transformers loads from these tensors (name -> file): an output layer that is
        stored is there whatever `architectures` says, and one that differs from the embedding is not tied to it."""
        outside, names = self.family.rules["model"], self.known_as(files)
        stored = {names.get(name, name): (file, name) for name, file in files.items()}
        if not self.has_head and has_head(stored, outside):
            named = [re.sub(HEADLESS, "ForCausalLM", name) for name in self.architectures]
            return ModelSpec(self.family, {**self.config, "architectures": named}, self.stored).as_loaded(files)
        return self.untied() if self.is_tied and differing_head(stored, outside) else self

    def known_as(self, names: Iterable[str]) -> dict[str, str]:
        """Stored name of a tensor -> the name that a rule knows, where transformers would find it under another."""
        return known_as(names, self.family, lambda one: bool(self.extra(one) or [*self._named(one)]), tied=self.is_tied)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer shares the embedding's numbers."""
        rules, defaults = self.family.rules["model"], self.family.defaults
        return self.has_head and any(rule.tied_to and not rule.exists(self.told, defaults) for rule in rules)

    def untied(self) -> ModelSpec:
        """The spec of the same model with an output layer of its own."""
        if not self.is_tied:
            return self
        config = copy.deepcopy(dict(self.config))
        self.family.untie(config)
        return replace(self, config=config)

    def resized(
        self,
        named_sizes: Mapping[str, int],
        layers: tuple[int, ...] | None = None,
        by_layer: ByLayer | None = None,
    ) -> ModelSpec:
        """The spec with other sizes (by config key) and only the given layers, its config in the same dialect; of these
        layers (by their numbers in this model) some may have sizes of their own.

        A width that the config left to a default, such as head_dim, is written out: the default may follow from a size
        that changed.  Raises MinitronError for a key that this model has no axis for."""
        if by_layer:
            stay = tuple(range(len(self.layers))) if layers is None else layers
            alike = self.resized(named_sizes, layers)
            apart = config_with_sizes(alike, by_layer, stay)
            return replace(alike, family=find_family(apart), config=apart)
        document = copy.deepcopy(dict(self.config))
        config = self.family.place(document)
        self._require_named(named_sizes)
        if self.blocks.told:
            if layers is not None and layers != tuple(range(len(self.layers))):
                self.family.edit_layout(config, layers)
            return self
        for key, value in named_sizes.items():
            for axis in self.keys[key] if key != DEPTH else ():
                if int(value) != self.sizes[axis] or not self.axis(axis).from_key:
                    self.axis(axis).write(config, int(value))
        if layers is not None and layers != tuple(range(len(self.layers))):
            if self.text.get(DEPTH) is not None:
                config.setdefault(DEPTH, self.text[DEPTH])
            self.family.edit_layout(config, layers)
        for axis, other in self.family.followers.items():
            # Always the same multiple: written back where the config names it.
            if axis in self.sizes and self.axis(axis).keys and self.key(other) in named_sizes:
                ratio = self.sizes[axis] // self.sizes[other]
                self.axis(axis).write(config, ratio * int(named_sizes[self.key(other)]))
        self.family.settle(config)
        probe = ModelSpec(self.family, document, self.stored)
        for axis, size in self.sizes.items():
            if axis in self.family.followers:
                continue
            wanted = named_sizes.get(self.key(axis), size)
            if self.axis(axis).keys and probe.sizes.get(axis, wanted) != wanted:
                self.axis(axis).write(config, int(wanted))
        self.family.settle(config)
        if self.family.nesting is not None and probe.sizes[HIDDEN] != self.sizes[HIDDEN]:
            self.family.nesting.copy_width(document, probe.sizes[HIDDEN])
        return replace(self, config=document, source=self.source.left(layers))

    def _require_named(self, named_sizes: Mapping[str, int]) -> None:
        """Raise MinitronError for a key that no axis has, or another size than that of layers that differ in theirs."""
        for key, value in named_sizes.items():
            if key != DEPTH and key not in self.keys:
                raise MinitronError(
                    f"{key} is no size of this model; its sizes: {', '.join(sorted(self.named_sizes))}."
                )
            if self.blocks.told and value != self.named_sizes[key]:
                raise MinitronError(
                    f"{key} cannot be cut in a {self.family.name} model, as its layers differ in size; leave it as it "
                    "is."
                )


def spec_of(config: Mapping[str, Any], names: Collection[str] = ()) -> ModelSpec:
    """The spec of a config.json document and the `names` of its checkpoint's tensors, where there are some.

    Raises MinitronError for a model type that no family reads."""
    family = find_family(config).of(names)
    stored = {word for word, held in family.storage.items() if any(re.search(held, name) for name in names)}
    # Some tools write what torch prints, which transformers does not read.
    words = {key: config[key].removeprefix("torch.") for key in DTYPE_KEYS if isinstance(config.get(key), str)}
    plain = {key: DTYPE_ALIASES.get(word, word) for key, word in words.items()}
    return ModelSpec(family, {**config, **plain}, frozenset(stored))


def read_spec(model: Path) -> ModelSpec:
    """The spec of MODEL: a checkpoint folder, a config.json, or a JSON document that holds one under `config`.

    Where weights stand beside config.json it is that of the model which transformers loads from them."""
    path = config_path(model)
    config = read_json(path)
    if isinstance(config, dict) and "model_type" not in config and isinstance(config.get("config"), dict):
        config = config["config"]
    if not isinstance(config, dict):
        raise MinitronError(f"{path} is no config.json: it holds a {type(config).__name__}, not an object.")
    files = tensor_files(path.parent) if path.name == "config.json" else {}
    return spec_of(with_companions(config, path), files).as_loaded(files)
