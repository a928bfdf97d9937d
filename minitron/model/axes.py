"""Axes: all that any module must know of one, in one row.

A word in a family's rules is an axis: a dimension whose size the model's config names.  The rows below say what holds
of an axis wherever it stands: how people call it, how it is searched, scored and split among GPUs.  A family takes
them over and says what is its own: the config keys, what an absent key means, what it is grouped in, what fixes it.

Code that treats an axis specially asks its row, not its name.  Three names stand for mathematics of their own: HIDDEN,
the residual stream, EXPERT, the routed experts of a layer, and ACTIVE, how many of them a token is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.model.steps import HEAD_STEP, LATENT_STEP, STATE_STEP, UNSCORED, UNSEARCHED, Step

Config = Mapping[str, Any]


LARGEST: Final = 2**18
"""The largest size of an axis unless its row says otherwise: what is larger is a mistake, and would take all memory or
days before it showed."""

_LARGEST_NUMBER: Final = 2**40


def shown(value: Any) -> str:
    """A config value, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def whole(key: str, value: Any) -> int:
    """The number that a config gives under `key`; raises MinitronError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MinitronError(f"config.json: {key} is {shown(value)}; it must be a whole number.")
    if abs(value) > _LARGEST_NUMBER:
        raise MinitronError(f"config.json: {key} is {shown(value)}, which no model has; correct it.")
    return value


def entry(config: Config, key: str) -> Any:
    """What a config says under `key`, None where it says nothing; `one.other` is a key of the object under `one`."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def has_entry(config: Config, key: str) -> bool:
    """Whether a config says something under `key`, null too."""
    outer, _, last = key.rpartition(".")
    found = entry(config, outer) if outer else config
    return isinstance(found, Mapping) and last in found


def write_entry(config: dict[str, Any], key: str, value: Any) -> None:
    """Write `value` under `key`, in objects that are made where they are absent."""
    *outer, last = key.split(".")
    for part in outer:
        config = config.setdefault(part, {})
    config[last] = value


def number_of(config: Config, key: str, default: int | None = None, *, least: int = 0) -> int:
    """The number under `key`, `default` where the key is absent or null; raises MinitronError for less than `least`."""
    value = entry(config, key)
    number = whole(key, default if value is None else value)
    if number < least:
        raise MinitronError(f"config.json: {key} is {number}; give at least {least}.")
    return number


AUTO: Final = "auto"
"""What configs write under a key whose number follows from others."""

HIDDEN: Final = "hidden"
"""The residual stream, which all layers share."""

EXPERT: Final = "expert"
"""The routed experts of a layer."""

ACTIVE: Final = "active_expert"
"""The routed experts of a layer that a token is sent to.  No tensor has it: fewer are less work, not less memory."""

VOCAB: Final = "vocab"
"""The tokens that a model knows."""

LAYER: Final = "layer"
"""The layers as wholes."""

Split = Literal["whole", "even", "copied", "one", "padded"]
"""What one of several GPUs holds of an axis under tensor parallelism, as engines do it: all of it; an equal share, and
the size must divide; an equal share, or a copy where the GPUs divide by the size; an equal share, or a copy where the
size is one; an equal share once padded to a multiple of 64."""


@dataclass(frozen=True)
class Axis:
    """One axis of a family."""

    name: str
    """The word in the rules."""

    label: str
    """How reports call it."""

    keys: tuple[str, ...] = ()
    """The config keys that dialects give its size, `one.other` for a key of the object under `one`; the first present
    one counts, all present ones are written.  Empty for a size that follows from others (`default`, `follows`)."""

    repeats: tuple[str, ...] = ()
    """Config keys that must say the same number: never read, and all written with a new size."""

    from_key: Callable[[Config, int], int] | None = None
    """(config, the number under the key) -> the size, where that is another number: a share of it, rounded up."""

    beside: Mapping[str, Any] = field(default_factory=dict)
    """Config entries to write beside a new size, with which the number under the key is the size."""

    default: int | Callable[[Config], int] | None = None
    """What transformers assumes where the keys are absent or say AUTO; None where one must be there."""

    null: Callable[[Config], int] | None = None
    """What transformers assumes where a key is there and null, if that is not what it assumes of absent keys."""

    follows: str = ""
    """The axis of which this one is always the same multiple: a shared expert of n times the routed width, channels of
    expand times hidden, the value heads of key heads.  A cut of that axis cuts it along; its own keys, where it has
    some, are written anew."""

    aliases: tuple[str, ...] = ()
    """Other names that people type for it."""

    group: str = ""
    """The axis in whose indices it is grouped: the same number of it is kept in each."""

    multiple_of: str = ""
    """The axis of whose size its own must be a multiple, or transformers refuses the config."""

    nested_in: str = ""
    """The axis inside each index of which its own indices are chosen: an expert's channels."""

    joint: str = ""
    """The score that it shares with the axis it makes a product with: heads and their channels."""

    joint_place: int = 0
    """Its place in that product: 0 for the heads, 1 for the channels, which are chosen first."""

    least_key: str = ""
    """The config key of the fewest that may be left: experts a token is sent to."""

    least: int = 1
    """The fewest that may be left, whatever that key says."""

    equal_groups_key: str = ""
    """The config key of the number of groups that must stay of one size: a router's groups of experts."""

    chosen_groups_key: str = ""
    """The config key of how many of those groups a token's experts may come from, all where it says nothing: what is
    left of so few groups must still be the fewest of `least_key`."""

    least_in_group: int = 1
    """The fewest that each of those groups may be left with: routers rank groups by their best experts, some by two."""

    step: Step = UNSEARCHED
    """How it is searched by default."""

    scored_at_input: bool = False
    """Whether its indices are scored one by one by what passes into the linear whose inputs they are."""

    estimator: str = "activation"
    """The name in ESTIMATORS of what measured best for it of all that need no backward pass
    (benchmarks/estimators.py); `activation` where no second moments are taken."""

    split: Split = "whole"
    """What one of several GPUs holds of it."""

    linear: bool = False
    """Whether nothing but linears is on either side of it, no activation function, norm or convolution, so that it can
    be cut to directions as well as to indices."""

    fixed: str = ""
    """Why no plan may cut it; empty where plans may."""

    largest: int = LARGEST
    """The largest size that is read in a config."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"{self.name!r} is no word for an axis")
        if not (self.keys or self.default is not None or self.follows):
            raise ValueError(f"axis {self.name}: nothing says how large it is")
        if self.joint_place not in (0, 1):
            raise ValueError(f"axis {self.name}: a product of two has no place {self.joint_place}")
        if self.from_key and not self.beside:
            raise ValueError(f"axis {self.name}: nothing says how a config gives a size as it stands")

    def key(self, config: Config) -> str:
        """The key that gives the size in a config's dialect; the axis's own name where it has none."""
        keys = self.keys or (self.name,)
        return next((key for key in keys if has_entry(config, key)), keys[0])

    def write(self, config: dict[str, Any], size: int) -> None:
        """Write a new size into a config, under every key of it that is there, for every layer of those it lists, and
        under those that repeat it."""
        own = self.key(config)
        for key in self.keys:
            if key == own or has_entry(config, key):
                listed = entry(config, key)
                write_entry(config, key, [size] * len(listed) if isinstance(listed, list) else size)
        config.update({**self.beside, **dict.fromkeys(self.repeats, size)})


def as_many_as_queries(config: Config) -> int:
    """As many heads as queries have."""
    return number_of(config, "num_attention_heads")


def shared_out(config: Config) -> int:
    """The width of heads that share hidden_size out."""
    return number_of(config, "hidden_size") // number_of(config, "num_attention_heads", least=1)


_ROTARY: Final = "rotary embeddings pair the channels of a head by position"

_ROWS: Final = (
    Axis(
        LAYER,
        "layers",
        ("num_hidden_layers",),
        aliases=("depth",),
        largest=512,
        step=Step(1, 1, 1 / 6, "62 -> 52 layers ended 6.6 points below 62 -> 56 in Nemotron Nano 2's ablation"),
    ),
    Axis(
        HIDDEN,
        "hidden",
        ("hidden_size",),
        step=Step(128, 8, 0.25, "a dimension of every matmul: full tensor-core tiles; a cut affects all layers"),
    ),
    Axis(
        VOCAB,
        "vocabulary",
        ("vocab_size",),
        split="padded",
        fixed="the tokenizer uses all of its ids",
        largest=2**24,
    ),
    Axis(
        "ffn",
        "FFN",
        ("intermediate_size",),
        step=Step(
            256, 8, 0.5, "full tensor-core tiles, also when split over 2 GPUs; the widest and most redundant axis"
        ),
        scored_at_input=True,
        estimator="surgeon",
        split="even",
    ),
    Axis(
        "query_head",
        "query heads",
        ("num_attention_heads",),
        group="kv_head",
        step=Step(reason="attention is a small part of these models, and recall depends on it"),
        estimator="surgeon",
        split="even",
    ),
    Axis(
        "kv_head",
        "KV heads",
        ("num_key_value_heads",),
        default=as_many_as_queries,
        null=as_many_as_queries,
        step=Step(reason="recall over a long context depends on it"),
        split="copied",
    ),
    Axis(
        "head_dim",
        "head width",
        ("head_dim",),
        default=shared_out,
        null=shared_out,
        fixed=f"{_ROTARY}, and no choice of channels keeps the pairs' frequencies",
    ),
    Axis("qk_head_dim", "head width", ("head_dim",), step=HEAD_STEP, linear=True),
    Axis("v_head_dim", "head width", ("head_dim",), step=HEAD_STEP, linear=True),
    Axis(
        "mamba_head",
        "Mamba heads",
        ("mamba_num_heads",),
        group="mamba_group",
        joint="mamba_channel",
        step=Step(8, 1, 0.25, "whole warps of the scan; too few heads x width lost most in published cuts"),
        split="even",
    ),
    Axis(
        "mamba_head_dim",
        "Mamba head width",
        ("mamba_head_dim",),
        joint="mamba_channel",
        joint_place=1,
        step=Step(16, 8, reason="published candidates at or below 0.8 of the width lost most"),
    ),
    Axis(
        "inner_channel",
        "Mamba channels",
        ("intermediate_size",),
        step=Step(256, 8, 0.25, "full tensor-core tiles, also when split over 2 GPUs; kernels want multiples of 8"),
        split="even",
    ),
    Axis(
        "time_step_rank",
        "rank of time steps",
        ("time_step_rank",),
        default=lambda config: -(-number_of(config, "hidden_size") // 16),
        step=UNSCORED,
    ),
    Axis("mamba_group", "Mamba groups", ("n_groups",), split="one", fixed="all heads of a group share B and C"),
    Axis(
        "ssm_state",
        "SSM state",
        ("ssm_state_size",),
        step=STATE_STEP,
    ),
    Axis("conv_kernel", "convolution taps", ("conv_kernel",), fixed="each tap reads a different token"),
    Axis(
        EXPERT,
        "experts",
        ("num_experts",),
        largest=2**14,
        least_key="num_experts_per_tok",
        step=Step(8, 1, 0.5, "equal shares on up to 8 GPUs; routed experts are redundant"),
    ),
    Axis(
        ACTIVE,
        "active experts",
        ("num_experts_per_tok",),
        step=Step(
            4,
            1,
            0.5,
            "only where the work for a token is limited (`--active-params`, `--max-latency`, `--min-throughput`), as "
            "fewer take no less memory",
            fewest=4,
        ),
    ),
    Axis(
        "expert_ffn",
        "expert FFN",
        ("moe_intermediate_size",),
        nested_in=EXPERT,
        step=Step(64, 8, 0.5, "full tiles of the grouped matmul"),
        estimator="surgeon",
        split="even",
    ),
    Axis(
        "shared_ffn",
        "shared FFN",
        ("shared_expert_intermediate_size",),
        step=Step(128, 8, 0.5, "full tensor-core tiles"),
        scored_at_input=True,
        estimator="surgeon",
        split="even",
    ),
    Axis(
        "latent_in",
        "latent",
        ("moe_latent_size",),
        aliases=("latent",),
        step=LATENT_STEP,
        scored_at_input=True,
        linear=True,
    ),
    Axis(
        "latent_out",
        "latent",
        ("moe_latent_size",),
        step=LATENT_STEP,
        scored_at_input=True,
        linear=True,
    ),
)

AXES: Final[dict[str, Axis]] = {row.name: row for row in _ROWS}
"""name -> what holds of the axis unless a family says otherwise."""


def rows(*names: str, extra: tuple[Axis, ...] = (), **own: Mapping[str, Any]) -> dict[str, Axis]:
    """name -> row of a family: those of AXES called `names` as they stand, those in `own` with the given fields in the
    place of theirs, in the order of AXES; and behind them rows that only this family has."""
    if unknown := (set(names) | set(own)) - set(AXES):
        raise ValueError(f"no row of AXES is called {', '.join(sorted(unknown))}")
    found = {name: replace(row, **own.get(name, {})) for name, row in AXES.items() if name in names or name in own}
    return found | {row.name: row for row in extra}
