"""Gated delta nets: linear attention whose heads keep a matrix each (Yang et al. 2024, arXiv 2412.06464), and the gated
attention that stands between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from minitron.model.axes import Axis, Config, number_of
from minitron.model.families.decoders import ATTENTION, KEYS, QUERIES, gain
from minitron.model.families.family import Cache, Norm, Rule
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types

KEY: Final = "linear_key_head*linear_key_dim"
VALUE: Final = "linear_value_head*linear_value_dim"

CONV: Final = f"{KEY} + {KEY} + {VALUE}"
"""One convolution runs over queries, keys and values."""

STATES: Final = Cache(
    conv_channels=CONV,
    conv_taps="conv_kernel",
    state="linear_value_head*linear_key_dim*linear_value_dim",
    scans=f"{KEY} + {VALUE}",
    called="linear attention layers",
)
"""What a layer keeps between tokens."""

_PRODUCT: Final = "the recurrent state is their product"

WIDTHS: Final = (
    Axis("linear_key_head", "linear attention's key heads", ("linear_num_key_heads",), default=16, split="even"),
    Axis("linear_key_dim", "linear attention's key width", ("linear_key_head_dim",), default=128, fixed=_PRODUCT),
    Axis("linear_value_dim", "linear attention's value width", ("linear_value_head_dim",), default=128, fixed=_PRODUCT),
)
"""The rows of all of its axes but the value heads'."""

VALUE_HEADS: Final = Axis(
    "linear_value_head",
    "linear attention's value heads",
    ("linear_num_value_heads",),
    default=32,
    group="linear_key_head",
    split="even",
)
"""The value heads of a key head share its queries and keys, as query heads share those of a KV head."""


def inside_delta_net(at: str) -> tuple[Rule, ...]:
    """What lies between the projections into and out of a gated delta net."""
    return (
        Rule(at + "conv1d.weight", f"{CONV}, 1, conv_kernel", "ssm"),
        Rule(at + "A_log", "linear_value_head", "ssm"),
        Rule(at + "dt_bias", "linear_value_head", "ssm"),
        gain(at + "norm", Norm("inside"), "linear_value_dim", "ssm"),
        Rule(at + "out_proj.weight", f"hidden, {VALUE}", "ssm"),
    )


def gated_attention(head_norms: Norm, at: str = ATTENTION) -> tuple[Rule, ...]:
    """Attention whose query projection makes a gate beside each head's query."""
    return (
        Rule(at + "q_proj.weight", "query_head*2*head_dim, hidden", "attention"),
        Rule(at + "k_proj.weight", f"{KEYS}, hidden", "attention"),
        Rule(at + "v_proj.weight", f"{KEYS}, hidden", "attention"),
        Rule(at + "o_proj.weight", f"hidden, {QUERIES}", "attention"),
        Rule(at + "q_proj.bias", "query_head*2*head_dim", "attention", when="attention_bias"),
        Rule(at + "k_proj.bias", KEYS, "attention", when="attention_bias"),
        Rule(at + "v_proj.bias", KEYS, "attention", when="attention_bias"),
        Rule(at + "o_proj.bias", "hidden", "attention", when="attention_bias"),
        gain(at + "q_norm", head_norms, "head_dim", "attention"),
        gain(at + "k_norm", head_norms, "head_dim", "attention"),
    )


def _interval(config: Config) -> Callable[[int], str]:
    period = number_of(config, "full_attention_interval", 4, least=1)
    return lambda layer: LINEAR if (layer + 1) % period else FULL


def layer_words(config: Config) -> list[str]:
    """`linear_attention` or `full_attention` for every layer: every full_attention_interval-th one is of the latter
    kind where layer_types does not say."""
    return attention_types(config, _interval(config), known=(FULL, LINEAR))


def layer_letters(config: Config) -> str:
    """L for linear attention, * for attention."""
    return "".join("*" if word == FULL else "L" for word in layer_words(config))


def layer_list(config: Config) -> Mapping[str, Any]:
    """The config entry that says outright what would follow from the number of a layer."""
    return {"layer_types": layer_words(config)}
