"""The modules at which each axis is observed, derived from the family's rules.

The linear whose LAST dimension is `ffn` reads the `ffn` activations; the norm whose gain is `hidden` makes the `hidden`
ones.  Modules carry the names that transformers uses in memory (minitron.model.tensor_map).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minitron.cut.rotation import reads_stream
from minitron.cut.scores import Key
from minitron.cut.selection import norm_groups
from minitron.model.dims import Product, Stack, Word, numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name, norm_module, parameter_name


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
    """A norm."""

    gain: str
    """The name of its weight, in the family's first dialect."""

    module: str
    """The module that normalises."""

    groups: int
    """Over how many equal parts of the channels the mean of squares runs apart."""

    makes_hidden: bool
    """Whether its output is the normalised residual stream."""

    centred: bool = False
    """Whether it subtracts the mean of its input (LayerNorm)."""

    gated_after: bool = False
    """Whether the gate that it is given multiplies its output and not its input."""


@dataclass(frozen=True)
class ExpertSite:
    """The routed experts of one layer, which transformers fuses into one module."""

    layer: int
    module: str

    axis: str
    """What the channels of an expert are called."""

    down: str
    """The parameter of the module by which they are read."""

    transposed: bool = False
    """Whether its weights are [E, in, out]."""

    @property
    def channels(self) -> tuple[str, "ExpertSite"]:
        """What the sums over the experts' channels are called, apart from those over experts."""
        return "channels", self


def channel_sites(spec: ModelSpec) -> Iterator[ChannelSite]:
    """Every place where channels are scored by their activations, layer by layer; without routed experts and norms."""
    seen: set[Key] = set()
    for layer, rule in _layer_rules(spec):
        site = _input_site(spec, rule, layer) or _state_space_site(spec, rule, layer)
        # Every expert reads the same latent channels, some of them with two linears: the first stands for all.
        if site is not None and site.key not in seen:
            seen.add(site.key)
            yield site


def norm_sites(spec: ModelSpec) -> Iterator[NormSite]:
    """Every norm that transformers builds: those of the multi-token-prediction block are not among them."""
    rules = [*_layer_rules(spec), *((None, rule) for rule in spec.rules["model"])]
    for layer, rule in rules:
        if rule.norm is not None:
            name = rule.pattern.format({"layer": layer or 0})
            # What is seen without the gain says less of a channel than what the others see.
            yield NormSite(
                name,
                norm_module(rule, layer),
                norm_groups(spec, rule, layer),
                makes_hidden=reads_stream(rule) and not rule.norm.module,
                centred=rule.norm.kind == "layer",
                gated_after=bool(rule.norm.gated_after and spec.value(rule.norm.gated_after)),
            )


def expert_sites(spec: ModelSpec) -> Iterator[ExpertSite]:
    """The routed experts of every layer that has some."""
    for layer, rule in _layer_rules(spec):
        if rule.per_expert and isinstance(rule.reads, Word) and spec.axis(rule.reads.name).nested_in:
            module, down = module_name(rule, layer), parameter_name(rule, layer)
            yield ExpertSite(layer, module, rule.reads.name, down, rule.transposed)


def _layer_rules(spec: ModelSpec) -> Iterator[tuple[int, Rule]]:
    return ((layer, rule) for layer, kind in enumerate(spec.layers) for rule in spec.rules[kind])


def _input_site(spec: ModelSpec, rule: Rule, layer: int) -> ChannelSite | None:
    sizes = spec.sizes_in(layer)
    match rule.reads:
        case Word(name) if spec.axis(name).scored_at_input:
            module, weight = module_name(rule, layer), parameter_name(rule, layer)
            return ChannelSite((name, layer), module, "input", (sizes[name],), weight=weight)
        case Product((Word(heads), Word(width))) if not spec.axis(heads).joint:
            shape = (sizes[heads], sizes[width])
            return ChannelSite((heads, layer), module_name(rule, layer), "input", shape)
    return None


def _state_space_site(spec: ModelSpec, rule: Rule, layer: int) -> ChannelSite | None:
    """x among the outputs of in_proj: a better source than the gate z or out_proj's input (facts: 3.56 against 4.11 and
    3.79 of zero-shot loss of a Mamba-2 hybrid, arXiv 2504.11409)."""
    if rule.scan_input is None or not isinstance(rule.writes, Stack):
        return None
    x = rule.writes.parts[rule.scan_input]
    sizes = spec.sizes_in(layer)
    start = sum(int(numel(part, sizes)) for part in rule.writes.parts[: rule.scan_input])
    match x:
        case Word(channels):
            return ChannelSite((channels, layer), module_name(rule, layer), "output", (sizes[channels],), start)
        case Product((Word(heads), Word(width))):
            shape = (sizes[heads], sizes[width])
            return ChannelSite((spec.axis(heads).joint, layer), module_name(rule, layer), "output", shape, start)
    raise ValueError(f"the scan's input {rule.name} is spelled {x}, neither channels nor heads*width")
