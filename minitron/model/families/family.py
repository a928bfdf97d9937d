"""What a family of models is: one table of tensors, one of axes, and what a layer keeps between tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from minitron.model.axes import ACTIVE, AXES, EXPERT, HIDDEN, Axis, Config
from minitron.model.dims import Constant, Dim, Name, Product, Stack, Word, axes_of, parse_shape
from minitron.model.families.cache import Cache
from minitron.model.families.logits import PRODUCTS, Logits
from minitron.model.families.nesting import ASIDE, PROJECTOR, TIES, Nesting
from minitron.model.families.norms import Norm


@dataclass(frozen=True)
class Rule:
    """One kind of tensor."""

    name: str
    """Its name, with `{layer}`, `{mtp_layer}`, `{owner}`, `{use}` and `{expert}` for indices and `(one|other)` for
    dialects; the first dialect is the name that transformers uses in memory."""

    shape: str
    """Its dimensions in axes, separated by commas."""

    component: str
    """The heading under which its parameters are counted."""

    when: str = ""
    """The config keys and words of Family.storage, separated by spaces, that must all be true for the tensor to exist
    (`!key`: false; `key=word`: that word); empty for always.  What an absent key means stands in Family.defaults."""

    norm: Norm | None = None
    """For the gain of a norm."""

    tied_to: str = ""
    """For an output layer: the name in the rule of the tensor whose numbers it shares where it does not exist."""

    scaled_by: str = ""
    """For a query projection: the axis in which queries and keys meet.  Models divide their product by the square root
    of its size, so the projection takes up what a cut of it changes."""

    memory: str = ""
    """The parameter in memory that holds it, where that has another name: the tensors of all experts as rows of one,
    several rules' tensors one after the other along their first dimension, a module that transformers renames."""

    transposed: bool = False
    """Whether a linear's inputs stand before its outputs."""

    inputs: str = ""
    """For a linear that reads other activations than those which the axis of its inputs is otherwise read as: what
    these are called, apart from the axis."""

    called: bool = True
    """Whether the model calls the module that holds it.  Of some linears it takes the weight and multiplies itself:
    nothing is seen there, and no other module can stand in its place."""

    also_run_by: tuple[str, ...] = ()
    """The kinds of other layers that run it too: it is stored with one layer and used by several."""

    router: bool = False
    """Whether it is the router's: its experts are what it chooses among, and it belongs to none of them."""

    scan_input: int | None = None
    """For the projection that feeds a state-space scan: the place of the scan's input x in the sum that its first
    dimension is."""

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

    @cached_property
    def all_axes(self) -> frozenset[str]:
        """Every axis in the shape or the name, and of routed experts how many a token is sent to."""
        return self.axes | frozenset(self.pattern.axes) | (frozenset([ACTIVE]) if self.per_expert else frozenset())

    @cached_property
    def is_stacked(self) -> bool:
        """Whether one tensor on disk holds all experts, along its first dimension."""
        return not self.router and self.dims[:1] == (Word(EXPERT),)

    @cached_property
    def per_expert(self) -> bool:
        """Whether each routed expert has one of its own, wherever the expert axis stands."""
        return EXPERT in self.pattern.axes or self.is_stacked

    @cached_property
    def matrix(self) -> tuple[Dim, ...]:
        """The dimensions of one expert's tensor, or of the tensor itself."""
        return self.dims[1:] if self.is_stacked else self.dims

    @cached_property
    def is_linear(self) -> bool:
        """Whether it is the matrix of a linear layer that the model calls."""
        named = self.called and (self.name.endswith("weight") or self.is_stacked)
        return len(self.matrix) == 2 and named and self.norm is None and self.component != "embedding"

    @cached_property
    def is_projection(self) -> bool:
        """Whether it is a linear inside a block: neither a router nor the output layer."""
        return self.is_linear and not self.router and not self.tied_to

    @cached_property
    def reads(self) -> Dim | None:
        """The inputs of a linear; None for other tensors."""
        return self.matrix[0 if self.transposed else -1] if self.is_linear else None

    @cached_property
    def writes(self) -> Dim | None:
        """The outputs of a linear; None for other tensors."""
        return self.matrix[-1 if self.transposed else 0] if self.is_linear else None

    @property
    def reads_stream(self) -> int:
        """How many copies of the residual stream a linear reads side by side."""
        parts = self.reads.parts if isinstance(self.reads, Stack) else (self.reads,)
        return sum(part == Word(HIDDEN) for part in parts)

    def exists(self, config: Config, defaults: Mapping[str, Any]) -> bool:
        """Whether a model of this config has the tensor; `defaults` says what absent keys mean."""
        return _holds(self.when, config, defaults)


def value_of(config: Config, defaults: Mapping[str, Any], key: str) -> Any:
    """What a config says under a key, or transformers' class default where it says nothing."""
    return config[key] if key in config else defaults.get(key)


@dataclass(frozen=True)
class Extra:
    """Tensors that some checkpoints hold beside those that the rules name: they are neither cut nor counted."""

    pattern: str
    """A regular expression that matches a whole name."""

    what: str
    """What it is, in a few words."""

    carried: bool = False
    """Whether a pruned checkpoint holds it too, as it is; else it is left out, with a note."""

    when: str = ""
    """As in a rule."""

    counted: bool = False
    """Whether a rule of kind TOWER counts them among the model's parameters."""

    behind_the_last: str = ""
    """The config key of how many layers stand behind the last one of the model; the pattern's group `layer` is then the
    number of one of these.  Empty where no layer's number counts."""

    def matches(self, name: str, config: Config, defaults: Mapping[str, Any], layers: int) -> bool:
        """Whether a tensor of that name is one, in a checkpoint of this config with so many layers."""
        found = re.fullmatch(self.pattern, name)
        if found is None or not _holds(self.when, config, defaults):
            return False
        if not self.behind_the_last:
            return True
        return layers <= int(found["layer"]) < layers + (value_of(config, defaults, self.behind_the_last) or 0)


ROTARY_BUFFERS: Final = Extra(r"(.+\.)?rotary_emb\.inv_freq", "rotary frequencies")
"""Older exports stored them in each layer; transformers computes them."""

OTHER_HEADS: Final = Extra(r"(score|classifier|(v|value|reward)_head|regression_layer)(\..+)?", "classification head")
"""What stands in place of an output layer in models that classify or reward."""


def _holds(when: str, config: Config, defaults: Mapping[str, Any]) -> bool:
    return all(_is_met(condition, config, defaults) for condition in when.split())


def _is_met(condition: str, config: Config, defaults: Mapping[str, Any]) -> bool:
    key, names_a_word, word = condition.removeprefix("!").partition("=")
    value = value_of(config, defaults, key)
    return (value == word if names_a_word else bool(value)) != condition.startswith("!")


def _active(row: Axis, experts: Axis, spellings: Mapping[str, str]) -> Axis:
    """The row of how many experts a token is sent to: the key and what fixes it follow from the row of the experts."""
    key = experts.least_key
    others = (other for other, own in spellings.items() if own == key)
    return replace(row, keys=(key, *others), fixed=row.fixed or experts.fixed)


Blocks = Sequence[Mapping[str, Any]]
"""One object a layer: what the config says of it alone."""


@dataclass(frozen=True)
class Family:
    """A family as one table."""

    name: str
    model_types: tuple[str, ...]
    """The `model_type`s of config.json that it reads."""

    letters: Mapping[str, str]
    """One letter a layer -> the layer's kind."""

    kind_labels: Mapping[str, str]
    """kind -> how reports call it."""

    rules: Mapping[str, tuple[Rule, ...]]
    """kind -> the tensors of a layer of that kind, a norm before the linears that read it; `model` -> the tensors
    outside layers; PROJECTOR and TOWER -> what stands beside the language model of a larger model."""

    axes: Mapping[str, Axis]
    """name -> the axis's row."""

    cache: Mapping[str, Cache]
    """kind -> what a layer of the kind keeps between tokens."""

    layout: Callable[[Config], str]
    """config -> one letter a layer."""

    edit_layout: Callable[[dict[str, Any], tuple[int, ...]], None]
    """Rewrites a config in place so that only the given layers stay, in the config's own dialect."""

    settle: Callable[[dict[str, Any]], None] = lambda config: None
    """Rewrites in place what a config with other sizes or layers says of parts that its model does not have, where
    transformers holds it against the sizes."""

    together: Callable[[Config], int] = lambda config: 1
    """config -> so many layers in a row go together where depth is cut: the config says by a period which layer is
    which, and what is left must have one."""

    elsewhere: Callable[[Config], Mapping[int, Mapping[str, int]]] = lambda config: {}
    """config -> layer -> `owner` and `use`: of a block that is stored with one layer and used by several, the layer
    that it is stored with and the number of this use, which stand in the names of what a use has of its own."""

    stays: Callable[[Config], frozenset[int]] = lambda config: frozenset()
    """config -> the layers that no choice of layers leaves out."""

    mtp_layout: Callable[[Config], str] = lambda config: ""
    """config -> one letter a layer of the multi-token-prediction block."""

    blocks: str = ""
    """The config key of a list with one object a layer, whose entries stand in for the config's own where that layer is
    built: layers of one kind may then differ in every size (minitron.model.blocks).  Empty where layers cannot."""

    mtp_blocks: str = ""
    """The same for the layers of the multi-token-prediction block."""

    by_layer: tuple[str, ...] = ()
    """The axes whose size may be cut to another number in each layer, as engines serve it; of experts also how many a
    token is sent to."""

    set_apart: Callable[[dict[str, Any], Blocks, Blocks], None] = lambda config, layers, ahead: None
    """Rewrites a config in place into one whose layers differ: the layers' own objects, and those of the
    multi-token-prediction block's layers.  What the objects say goes from the rest."""

    mtp_rules: tuple[Rule, ...] = ()
    """The tensors of the multi-token-prediction block outside its mixers."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """config key -> what its absence means: transformers' class default, where that is not a false value."""

    spellings: Mapping[str, str] = field(default_factory=dict)
    """config key -> the key of the rules of which it is another spelling: where a config has it, it counts."""

    older_names: Mapping[str, str] = field(default_factory=dict)
    """A regular expression of whole names that tensors once had -> the name in a rule, which they are written under."""

    storage: Mapping[str, str] = field(default_factory=dict)
    """A word for a way in which some checkpoints store what others store otherwise -> a regular expression that the
    name of some tensor holds in them alone."""

    equal: tuple[tuple[str, str], ...] = ()
    """Pairs of sizes, in axes and config keys, that must be equal or transformers refuses the config."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """config key -> what it would take to honour it: configs that set one to a true value are refused by name."""

    also: Mapping[str, str] = field(default_factory=dict)
    """model_type of another family -> the config key that, where it is set, makes a config of that type one of this
    family."""

    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """config key -> the values that transformers knows what to do with."""

    extras: tuple[Extra, ...] = ()
    """Tensors beside those that the rules name."""

    logits: Logits = PRODUCTS
    """What the models do to the output layer's products."""

    plain_head: bool = False
    """Whether vLLM 0.32 keeps the models' output layer plain, for its class of them hands no format on to that."""

    scaled_stream: bool = False
    """Whether the embedding enters the residual stream times sqrt(hidden): a cut of hidden then changes its share of
    the stream, which all that is written to the stream takes up."""

    scaled_stream_when: str = ""
    """As in a rule: where the config says whether it does."""

    beside_states: int = 0
    """How many things a layer returns beside the hidden states, in transformers."""

    nesting: Nesting | None = None
    """For a language model inside a larger model: where config.json says what it is; None where all of it does."""

    summary: str = ""
    """What layers it has, and in brackets which models are of it; for the table in README.md."""

    def __post_init__(self) -> None:
        if EXPERT in self.axes:
            # Every mixture has this row, so that no table can forget it, beside that of the experts.
            own = {**self.axes, ACTIVE: _active(self.axes.get(ACTIVE, AXES[ACTIVE]), self.axes[EXPERT], self.spellings)}
            names = [name for name in own if name != ACTIVE]
            names.insert(names.index(EXPERT) + 1, ACTIVE)
            object.__setattr__(self, "axes", {name: own[name] for name in names})
        spelled = set().union(*(rule.all_axes for rules in (*self.rules.values(), self.mtp_rules) for rule in rules))
        known = set(self.axes) | {"layer", "owner", "use", "mtp_layer", "mtp_last"}
        if unknown := spelled - known:
            raise ValueError(f"family {self.name}: no size is given for {', '.join(sorted(unknown))}")
        named = {other for axis in self.axes.values() for other in (axis.group, axis.multiple_of, axis.follows)} - {""}
        if unknown := named - set(self.axes):
            raise ValueError(f"family {self.name}: axes refer to {', '.join(sorted(unknown))}, which has no row")
        if set(self.kind_labels) != set(self.letters.values()):
            raise ValueError(f"family {self.name}: every kind of layer has a label, and nothing else has one")
        if unknown := set(self.cache) - set(self.rules):
            raise ValueError(f"family {self.name}: {', '.join(sorted(unknown))} keeps something and has no tensors")

    def scales_stream(self, config: Config) -> bool:
        """Whether the embedding of a model of this config enters the residual stream times sqrt(hidden)."""
        return self.scaled_stream and _holds(self.scaled_stream_when, config, self.defaults)

    def placed(self, config: Config, index: dict[str, int] | None) -> dict[str, int] | None:
        """The indices in a tensor's name, with the layer that it is of where it stands with another's (`elsewhere`)."""
        if index and "layer" not in index:
            for layer, other in self.elsewhere(config).items():
                if index.items() <= other.items():
                    return index | {"layer": layer}
        return index

    def text(self, config: Config) -> Config:
        """What a config.json document says of the language model."""
        return config if self.nesting is None else self.nesting.text(config)

    def place(self, config: dict[str, Any]) -> dict[str, Any]:
        """The object in a config.json document that says what the language model is, to be written in."""
        found: dict[str, Any] = config if self.nesting is None else self.nesting.place(config)
        return found

    def untie(self, config: dict[str, Any]) -> None:
        """Write into a config.json document that the output layer is one of its own."""
        place = self.place(config)
        other = {other for other, key in self.spellings.items() if key == TIES and other in place}
        place.update(dict.fromkeys((TIES, *other), False))
        if self.nesting is not None and self.nesting.ties != "inside":
            config[TIES] = False

    def of(self, names: Collection[str]) -> Family:
        """The family of a checkpoint with tensors of these `names`: without what stands beside a language model where
        none of it is there, for people take the language model out of a file and leave config.json as it is."""
        beside = [rule.pattern.expression for rule in self.rules.get(PROJECTOR, ())]
        found = re.compile("|".join([*beside, *(extra.pattern for extra in self.extras if extra.counted)]))
        if self.nesting is None or not names or any(found.fullmatch(name) for name in names):
            return self
        return replace(self, rules={kind: rules for kind, rules in self.rules.items() if kind not in ASIDE})

    @cached_property
    def grouped(self) -> dict[str, str]:
        """axis -> the axis in whose indices it is grouped: the same number of it is kept in each."""
        return {name: axis.group for name, axis in self.axes.items() if axis.group}

    @cached_property
    def followers(self) -> dict[str, str]:
        """axis -> the axis of which it is always the same multiple."""
        return {name: axis.follows for name, axis in self.axes.items() if axis.follows}

    @cached_property
    def multiples(self) -> dict[str, str]:
        """axis -> the axis of whose size its own must be a multiple."""
        return {name: axis.multiple_of for name, axis in self.axes.items() if axis.multiple_of}

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Axes that no plan may cut by their own: what fixes one stands in its row."""
        return frozenset(name for name, axis in self.axes.items() if axis.fixed or axis.follows)


__all__ = ["Axis", "Cache", "Config", "Constant", "Extra", "Family", "Norm", "Product", "Rule", "value_of"]
