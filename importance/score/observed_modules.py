"""Where in a model the activations of an axis pass: read off the family's rules, so that no module is named here.

The linear whose LAST dimension is `ffn` reads the `ffn` activations; the norm whose gain is `hidden` makes the `hidden`
ones.  Modules carry the names of the family's first dialect, which is the one that transformers uses in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from minitron.cut.scores import Key
from minitron.model.dims import Dim, Name, Product, Stack, Word, numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec

CHANNELS: Final = frozenset({"ffn", "shared_ffn", "latent_in", "latent_out"})
"""Axes judged channel by channel at the input of the linear whose last dimension they are."""

X: Final = Product((Word("mamba_head"), Word("mamba_head_dim")))
"""The channels of a Mamba mixer's state-space input."""


@dataclass(frozen=True)
class ChannelSite:
    """Where the channels of one axis of one layer pass as a slice of some module's last dimension."""

    key: Key
    """What the scores are called."""

    module: str
    side: Literal["input", "output"]

    shape: tuple[int, ...]
    """Of the channels: (ffn,) or (query_head, head_dim)."""

    start: int = 0
    """The first of the module's columns that belongs to them."""

    weight: str = "weight"
    """The parameter of the module by which they are read, along its last dimension, or (side "output") made, along its
    first."""


@dataclass(frozen=True)
class NormSite:
    """An RMS norm."""

    gain: str
    """The name of its weight."""

    groups: int
    """Over how many equal parts of the channels the mean of squares runs apart."""

    makes_hidden: bool
    """Whether its output is the normalised residual stream."""

    @property
    def module(self) -> str:
        """The module that holds the gain."""
        return self.gain.removesuffix(".weight")


@dataclass(frozen=True)
class ExpertSite:
    """The routed experts of one layer, which transformers fuses into one module."""

    layer: int
    module: str

    @property
    def channels(self) -> tuple[str, "ExpertSite"]:
        """What the sums over the experts' channels are called, apart from those over experts."""
        return "channels", self


def channel_sites(spec: ModelSpec) -> Iterator[ChannelSite]:
    """Every place where channels are judged by what passes, layer by layer; routed experts' own and norms apart."""
    for layer, rule in _layer_rules(spec):
        if len(rule.dims) != 2:
            continue
        site = _input_site(spec, rule, layer) or _state_space_site(spec, rule, layer)
        # Every expert reads the same latent channels: one rule, one site.
        if site is not None:
            yield site


def norm_sites(spec: ModelSpec) -> Iterator[NormSite]:
    """Every norm that transformers builds: those of the multi-token-prediction block are not among them."""
    rules = [*_layer_rules(spec), *((None, rule) for rule in spec.rules["model"])]
    for layer, rule in rules:
        if rule.norm_group:
            groups = 1 if rule.norm_group == "1" else spec.sizes[rule.norm_group]
            yield NormSite(rule.pattern.format({"layer": layer or 0}), groups, rule.norm_group == "1")


def expert_sites(spec: ModelSpec) -> Iterator[ExpertSite]:
    """The routed experts of every layer that has some."""
    for layer, rule in _layer_rules(spec):
        if "expert" in rule.pattern.axes and rule.dims[-1] == Word("expert_ffn"):
            yield ExpertSite(layer, _module(rule, layer))


def _layer_rules(spec: ModelSpec) -> Iterator[tuple[int, Rule]]:
    return ((layer, rule) for layer, kind in enumerate(spec.layers) for rule in spec.rules[kind])


_EXPERT: Final = ".{expert}."
"""Divides the name of an expert's tensor into the module of all experts and, with .weight behind, its parameter."""


def _module(rule: Rule, layer: int) -> str:
    """The module that a rule's tensor belongs to; one expert's tensor belongs to the module of all of them."""
    name = rule.name.partition(_EXPERT)[0]
    return Name(name).format({"layer": layer}).removesuffix(".weight")


def _input_site(spec: ModelSpec, rule: Rule, layer: int) -> ChannelSite | None:
    match rule.dims[-1]:
        case Word(name) if name in CHANNELS:
            weight = rule.name.partition(_EXPERT)[2].removesuffix(".weight") or "weight"
            return ChannelSite((name, layer), _module(rule, layer), "input", (spec.sizes[name],), weight=weight)
        case Product((Word("query_head"), Word(width))):
            shape = (spec.sizes["query_head"], spec.sizes[width])
            return ChannelSite(("query_head", layer), _module(rule, layer), "input", shape)
    return None


def _state_space_site(spec: ModelSpec, rule: Rule, layer: int) -> ChannelSite | None:
    """x among the outputs of in_proj: a better source than the gate z or out_proj's input (facts: 3.56 against 4.11 and
    3.79 of zero-shot loss, arXiv 2504.11409)."""
    first, last = rule.dims
    if not isinstance(first, Stack) or last != Word("hidden"):
        return None
    # z and x are spelled alike; x is the second.
    _, x = [place for place, part in enumerate(first.parts) if part == X]
    shape = (spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"])
    return ChannelSite(("mamba_channel", layer), _module(rule, layer), "output", shape, _size(spec, first.parts[:x]))


def _size(spec: ModelSpec, parts: tuple[Dim, ...]) -> int:
    return sum(int(numel(part, spec.sizes)) for part in parts)
