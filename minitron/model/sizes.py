"""Sizes: how large every axis of a model is, in all layers or in those of one kind, and what must hold of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import ACTIVE, AUTO, EXPERT, entry, has_entry, shown, whole
from minitron.model.dims import axes_of, numel, parse
from minitron.model.dtypes import DTYPE_KEYS, DTYPES
from minitron.model.families import Rule
from minitron.model.families.layer_lists import size_under
from minitron.model.families.nesting import ASIDE
from minitron.model.reading import Reading
from minitron.model.routing import Choice, choice_of


@dataclass(frozen=True)
class Sizes(Reading):
    """A config and the family that reads it, and the sizes that follow; raises MinitronError where they contradict each
    other or the family refuses a setting."""

    def __post_init__(self) -> None:
        _check_settings(self)
        _check_kinds(self)

    @cached_property
    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """kind -> the tensors that this model has; only kinds that it has."""
        kinds = ["model", *dict.fromkeys(self.layers + self.mtp_layers)]
        kinds += [kind for kind in ASIDE if kind in self.family.rules]
        found = {
            kind: tuple(
                rule
                for rule in self.family.rules[self.base(kind)]
                if rule.exists(self.told_of(kind), self.family.defaults) and (self.has_head or not rule.tied_to)
            )
            for kind in kinds
        }
        return found | ({"mtp": self.family.mtp_rules} if self.mtp_layers else {})

    @cached_property
    def axes(self) -> frozenset[str]:
        """The axes that this model's tensors have: a dense model has no experts, whatever its config says of them.
        With routed experts it has the number of those that a token is sent to."""
        rules = [rule for rules in self.rules.values() for rule in rules]
        active = frozenset([ACTIVE]) if any(rule.per_expert for rule in rules) else frozenset()
        return active.union(*(rule.axes for rule in rules))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """axis -> size; where layers differ in it, the largest."""
        if not self.blocks.told:
            return {axis: self._size(axis, "") for axis in self.family.axes if axis in self.axes}
        return {axis: max(sizes.values()) for axis, sizes in self._sizes_by_kind.items()}

    @cached_property
    def _sizes_by_kind(self) -> dict[str, dict[str, int]]:
        """axis -> kind that has it -> size in its layers."""
        has = {kind: frozenset().union(*(rule.all_axes for rule in rules)) for kind, rules in self.rules.items()}
        return {
            axis: {kind: self._size(axis, kind) for kind, axes in has.items() if axis in axes}
            for axis in self.family.axes
            if axis in self.axes
        }

    @cached_property
    def own_sizes(self) -> dict[str, dict[str, int]]:
        """kind -> axis -> its size in layers of that kind, of axes in which layers of other kinds have another."""
        found: dict[str, dict[str, int]] = {}
        for axis, sizes in self._sizes_by_kind.items() if self.blocks.told else ():
            if len(set(sizes.values())) > 1:
                for kind, size in sizes.items():
                    found.setdefault(kind, {})[axis] = size
        return found

    def at(self, kind: str, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`sizes` as layers of a kind have them; where one GPU holds a share, that is under `kind.axis`
        (minitron.memory.parallel)."""
        own = self.own_sizes.get(kind)
        return {**sizes, **{axis: sizes.get(f"{kind}.{axis}", size) for axis, size in own.items()}} if own else sizes

    def sizes_in(self, layer: int | None) -> Mapping[str, int]:
        """axis -> its size in a layer, those of the multi-token-prediction block counted on from the last; outside
        layers for None."""
        return self.sizes if layer is None else self.at((self.layers + self.mtp_layers)[layer], self.sizes)

    def _size(self, axis: str, kind: str) -> int:
        """In layers of `kind`, in all where none is given."""
        if axis == ACTIVE:
            return self.choice(EXPERT, kind).needed
        row, text = self.axis(axis), self.text_of(kind)
        for key in row.keys:
            value = entry(text, key)
            if value is not None and not (value == AUTO and row.default is not None):
                size = size_under(key, value)
                return row.from_key(text, size) if row.from_key else size
        if row.null is not None and any(has_entry(text, key) for key in row.keys):
            return row.null(text)
        if row.default is None:
            raise MinitronError(
                f"config.json has no {row.keys[0]}; a {self.family.name} model with these layers needs it; add it."
            )
        size = row.default(text) if callable(row.default) else row.default
        return row.from_key(text, size) if row.from_key else size

    def key(self, axis: str) -> str:
        """The config key of an axis in this config's dialect; its own name where it has none."""
        return self.axis(axis).key(self.text)

    @cached_property
    def equal(self) -> tuple[tuple[str, str], ...]:
        """The pairs of sizes that must be equal, of those whose axes this model has."""
        known = self.axes | set(self.text) | set(self.family.defaults)
        return tuple(pair for pair in self.family.equal if axes_of(parse(pair[0])) | axes_of(parse(pair[1])) <= known)

    def amount(self, expression: str, sizes: Mapping[str, Any] | None = None) -> Any:
        """What an expression in axes and config keys comes to; `sizes` stand in for the model's own."""
        dim = parse(expression)
        keys = {key: whole(key, self.value(key)) for key in axes_of(dim) - set(self.sizes)}
        return numel(dim, self.sizes | keys | dict(sizes or {}))

    def spelled(self, expression: str) -> str:
        """The same expression in config keys."""
        words = expression.replace("*", " * ").split()
        return " ".join(self.key(word) if word in self.sizes else word for word in words)

    @cached_property
    def experts_per_token(self) -> int:
        """How many routed experts a token is sent to, where all layers of a mixture send it to as many."""
        return self.choice(EXPERT).needed

    def routed(self, kind: str, sizes: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        """How many routed experts a layer of a kind has, and to how many of them a token is sent; 0 and 0 where it has
        none.  `sizes` stand in for the model's own."""
        if not any(rule.per_expert for rule in self.rules[kind]):
            return 0, 0
        own = self.at(kind, self.sizes if sizes is None else sizes)
        return own[EXPERT], own[ACTIVE]

    def share_routed(self, layer: int | None) -> Fraction:
        """The share of its routed experts that a layer sends a token to."""
        assert layer is not None  # no expert stands outside layers
        experts, needed = self.routed((self.layers + self.mtp_layers)[layer])
        return Fraction(needed, experts)

    @property
    def num_experts(self) -> int:
        """How many routed experts a layer of a mixture has, the most where layers differ; 0 for a dense model."""
        return self.sizes.get(EXPERT, 0)

    def choice(self, axis: str, kind: str = "") -> Choice:
        """How many indices of an axis a model chooses among, and in which groups: layers of `kind` where one is
        given."""
        return choice_of(self.axis(axis), lambda key: self.value(key, kind), self.family.name)

    def least(self, axis: str) -> int:
        """The fewest indices of an axis that a model can be left with."""
        return self.choice(axis).least

    def equal_groups(self, axis: str) -> int:
        """In how many groups of one size the indices of an axis must stay, such as a router's groups of experts."""
        return self.choice(axis).groups


def _check_settings(spec: Sizes) -> None:
    """Raise MinitronError for a setting that the family refuses, or a value of one that transformers does not know."""
    for key, why in spec.family.refused.items():
        if spec.value(key):
            raise MinitronError(
                f"config.json: {key} is {spec.value(key)!r:.40}, which Minitron does not support for "
                f"{spec.family.name} models ({why}); use a model without it."
            )
    for key in DTYPE_KEYS:
        dtype = spec.stated.get(key)
        if dtype is not None and not (isinstance(dtype, str) and dtype in DTYPES):
            raise MinitronError(
                f"config.json: {key} is {shown(dtype)}, which torch does not know; write one of {', '.join(DTYPES)}."
            )
    _ = spec.logit_map  # raises where it cannot be read
    for key, values in spec.family.known.items():
        if spec.value(key) not in values:
            raise MinitronError(
                f"config.json: {key} is {spec.value(key)!r:.40}; transformers knows "
                f"{', '.join(map(str, values))} for {spec.family.name} models; use a model with one of these."
            )


def _check_kinds(spec: Sizes) -> None:
    """Raise MinitronError for sizes that contradict each other, in the layers of any kind."""
    if not spec.own_sizes:
        _check_sizes(spec, spec.sizes)
    for kind, rules in spec.rules.items():
        sizes = spec.at(kind, spec.sizes)
        if spec.own_sizes:
            axes = frozenset().union(*(rule.axes for rule in rules))
            _check_sizes(spec, {axis: size for axis, size in sizes.items() if axis in axes})
        if any(rule.per_expert for rule in rules):
            spec.choice(EXPERT, kind).check(sizes[EXPERT], spec.key(EXPERT))
    for axis in spec.own_sizes.get("model", ()):
        raise MinitronError(
            f"config.json: {spec.key(axis)} differs from layer to layer, and all layers share it; make it the same."
        )


def _check_sizes(spec: Sizes, sizes: Mapping[str, int]) -> None:
    for axis, size in sizes.items():
        if size < 1 and axis != ACTIVE:  # which is held against the experts
            raise MinitronError(f"config.json: {spec.key(axis)} is {size}; give at least 1.")
        for key in spec.axis(axis).repeats:
            if spec.text.get(key) not in (None, size):
                raise MinitronError(
                    f"config.json: {spec.key(axis)} = {size} and {key} = {spec.text[key]!r:.40} differ, and "
                    f"{spec.family.name} models have as many of both; make them equal."
                )
        if size > spec.axis(axis).largest:
            raise MinitronError(
                f"config.json: {spec.key(axis)} is {shown(size)}; Minitron reads at most {spec.axis(axis).largest:,}."
            )
    for axis, group in spec.family.grouped.items():
        if axis in sizes and group in sizes and sizes[axis] % sizes[group]:
            raise MinitronError(
                f"config.json: {spec.key(axis)} = {sizes[axis]} does not divide into "
                f"{spec.key(group)} = {sizes[group]} equal groups."
            )
    for axis, unit in spec.family.multiples.items():
        if axis in sizes and unit in sizes and sizes[axis] % sizes[unit]:
            raise MinitronError(
                f"config.json: {spec.key(axis)} = {sizes[axis]} is no multiple of {spec.key(unit)} = "
                f"{sizes[unit]}, and transformers requires one for {spec.family.name} models; choose one."
            )
    for left, right in spec.equal:
        if spec.amount(left, sizes) != spec.amount(right, sizes):
            raise MinitronError(
                f"config.json: {spec.spelled(left)} = {spec.amount(left, sizes)} and {spec.spelled(right)} = "
                f"{spec.amount(right, sizes)} differ, and transformers requires them equal for {spec.family.name} "
                "models; make them equal."
            )
