"""What a family of models is: one table of tensors, one of sizes, and what a token costs in cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minitron.model.axes import Dim, Name, axes_of, parse, parse_shape

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One kind of tensor."""

    name: str
    """Its name, with `{layer}`, `{mtp_layer}` and `{expert}` for indices and `(one|other)` for dialects; the first
    dialect is the name that transformers uses in memory."""

    shape: str
    """Its dimensions in axes, separated by commas."""

    component: str
    """The heading under which its parameters are counted."""

    when: str = ""
    """The config key that must be true for the tensor to exist (`!key`: false); empty for always."""

    norm_group: str = ""
    """For the gain of an RMS norm: the axis over whose indices the mean runs apart, `1` for one mean over all."""

    tied_to: str = ""
    """For an output layer: the name in the rule of the tensor whose numbers it shares where it does not exist."""

    scaled_by: str = ""
    """For a query projection: the axis in which queries and keys meet.  Models divide their product by the square root
    of its size, so the projection takes up what a cut of it changes."""

    @cached_property
    def pattern(self) -> Name:
        """The name, ready to match."""
        return Name(self.name)

    @cached_property
    def dims(self) -> tuple[Dim, ...]:
        """The dimensions, parsed."""
        return parse_shape(self.shape)

    @cached_property
    def axes(self) -> frozenset[str]:
        """Every axis in the shape."""
        return frozenset().union(*map(axes_of, self.dims))

    def exists(self, config: Config) -> bool:
        """Whether a model of this config has the tensor."""
        key = self.when.removeprefix("!")
        return not key or bool(config.get(key)) != self.when.startswith("!")


@dataclass(frozen=True)
class Size:
    """Where an axis's size stands in config.json."""

    keys: tuple[str, ...]
    """The names that dialects give it; the first present one counts, all present ones are written."""

    default: Callable[[Config], int] | None = None
    """What models assume where the key is absent; None where it must be there."""


@dataclass(frozen=True)
class Cache:
    """What one layer keeps between tokens, as dimensions to count."""

    kv_per_token: str = ""
    """Numbers a token and layer adds to the KV cache: keys and values."""

    conv_channels: str = ""
    """Channels of which a sequence keeps the last conv_kernel - 1 inputs."""

    ssm_state: str = ""
    """Numbers in the recurrent state of a sequence."""

    def dim(self, part: str) -> Dim | None:
        """One of the three, parsed; None where the layer keeps nothing of the kind."""
        text = getattr(self, part)
        return parse(text) if text else None


@dataclass(frozen=True)
class Family:
    """A family as one table."""

    name: str
    model_types: tuple[str, ...]
    """The `model_type`s of config.json that it reads."""

    letters: Mapping[str, str]
    """One letter a layer -> the layer's kind."""

    rules: Mapping[str, tuple[Rule, ...]]
    """kind -> the tensors of a layer of that kind; `model` -> the tensors outside layers."""

    sizes: Mapping[str, Size]
    """axis -> where its size stands."""

    grouped: Mapping[str, str]
    """axis -> the axis in whose indices it is grouped: the same number of it is kept in each."""

    cache: Mapping[str, Cache]
    """kind -> what a layer of the kind keeps between tokens."""

    layout: Callable[[Config], str]
    """config -> one letter a layer."""

    edit_layout: Callable[[dict[str, Any], tuple[int, ...]], None]
    """Rewrites a config in place so that only the given layers stay, in the config's own dialect."""

    mtp_layout: Callable[[Config], str] = lambda config: ""
    """config -> one letter a layer of the multi-token-prediction block."""

    mtp_rules: tuple[Rule, ...] = ()
    """The tensors of the multi-token-prediction block outside its mixers."""

    experts_per_token: str = ""
    """The config key that says how many experts a token uses."""

    multiples: Mapping[str, str] = field(default_factory=dict)
    """axis -> the axis of whose size its own must be a multiple, or transformers refuses the config."""

    fixed: frozenset[str] = field(default_factory=frozenset)
    """Axes that no plan may cut: rotary head widths, the vocabulary, convolution taps."""

    summary: str = ""
    """What layers it has, and in brackets which models are of it; for the table in README.md."""

    def __post_init__(self) -> None:
        spelled = set().union(*(rule.axes for rules in self.rules.values() for rule in rules))
        if unknown := spelled - set(self.sizes):
            raise ValueError(f"family {self.name}: no size is given for {', '.join(sorted(unknown))}")
        if unknown := {axis for pair in self.grouped.items() for axis in pair} - set(self.sizes):
            raise ValueError(f"family {self.name}: grouped axes without a size: {', '.join(sorted(unknown))}")
