"""Qwen3-Next: three gated delta nets (linear attention with a state) to one layer of gated attention, and a mixture of
experts with a shared one in every layer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    KEYS,
    KEYS_AND_VALUES,
    LAYER,
    MLP,
    QUERIES,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    edit_lists,
    gain,
    gated_mlp,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Cache, Extra, Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, attention_types

LINEAR: Final = "linear_attention"

_BEFORE: Final = Norm("before", plus_one=True)
_HEADS: Final = Norm("inside", plus_one=True)

_KEY: Final = "linear_key_head*linear_key_dim"
_VALUE: Final = "linear_value_head*linear_value_dim"
_OWN: Final = "values_per_key*linear_value_dim"
"""The value heads of one key head."""


def _delta_net(at: str) -> tuple[Rule, ...]:
    """A gated delta net (Yang et al. 2024, arXiv 2412.06464); the projections go key head by key head."""
    both = f"linear_key_dim + linear_key_dim + {_OWN} + {_OWN}"
    return (
        Rule(at + "in_proj_qkvz.weight", f"linear_key_head*({both}), hidden", "ssm"),
        Rule(at + "in_proj_ba.weight", "linear_key_head*(values_per_key + values_per_key), hidden", "ssm"),
        Rule(at + "conv1d.weight", f"{_KEY} + {_KEY} + {_VALUE}, 1, conv_kernel", "ssm"),
        Rule(at + "A_log", "linear_value_head", "ssm"),
        Rule(at + "dt_bias", "linear_value_head", "ssm"),
        gain(at + "norm", Norm("inside"), "linear_value_dim", "ssm"),
        Rule(at + "out_proj.weight", f"hidden, {_VALUE}", "ssm"),
    )


def _gated_attention(at: str) -> tuple[Rule, ...]:
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
        gain(at + "q_norm", _HEADS, "head_dim", "attention"),
        gain(at + "k_norm", _HEADS, "head_dim", "attention"),
    )


_EXPERTS: Final = (
    *routed_experts(),
    *gated_mlp(MLP + "shared_expert.", axis="shared_ffn", component="moe_shared"),
    Rule(MLP + "shared_expert_gate.weight", "1, hidden", "moe_shared"),
)

_STATES: Final = Cache(
    conv_channels=f"{_KEY} + {_KEY} + {_VALUE}",
    conv_taps="conv_kernel",
    state="linear_value_head*linear_key_dim*linear_value_dim",
    scans=f"{_KEY} + {_VALUE}",
    called="linear attention layers",
)

_SHARED: Final = "the recurrent state is their product"

_AXES: Final = (
    Axis("linear_key_head", "linear attention's key heads", ("linear_num_key_heads",), default=16),
    Axis(
        "linear_value_head",
        "linear attention's value heads",
        ("linear_num_value_heads",),
        default=32,
        group="linear_key_head",
        follows="linear_key_head",
    ),
    Axis("linear_key_dim", "linear attention's key width", ("linear_key_head_dim",), default=128, fixed=_SHARED),
    Axis("linear_value_dim", "linear attention's value width", ("linear_value_head_dim",), default=128, fixed=_SHARED),
    Axis(
        "values_per_key",
        "value heads of a key head",
        default=lambda config: (
            number_of(config, "linear_num_value_heads", 32) // number_of(config, "linear_num_key_heads", 16, least=1)
        ),
        fixed="it is the quotient of the numbers of heads",
    ),
)


def _interval(config: Config) -> Callable[[int], str]:
    period = number_of(config, "full_attention_interval", 4, least=1)
    return lambda layer: LINEAR if (layer + 1) % period else FULL


def _types(config: Config) -> list[str]:
    if config.get("decoder_sparse_step", 1) != 1:
        raise MinitronError(
            "config.json: decoder_sparse_step is not 1, and Minitron supports qwen3_next models only with experts in "
            "every layer; use a model with decoder_sparse_step 1."
        )
    return attention_types(config, _interval(config), known=(FULL, LINEAR))


def _layout(config: Config) -> str:
    return "".join("*" if word == FULL else "L" for word in _types(config))


def _lists(config: Config) -> Mapping[str, Any]:
    return {"layer_types": _types(config)}


QWEN3_NEXT = Family(
    name="qwen3_next",
    model_types=("qwen3_next",),
    letters={"L": "linear", "*": "attention"},
    kind_labels={
        "linear": "gated delta net + mixture of experts",
        "attention": "gated attention + mixture of experts",
    },
    rules={
        "model": outside(Norm("final", plus_one=True)),
        "linear": pre_norm(_delta_net(LAYER + "linear_attn."), _EXPERTS, _BEFORE),
        "attention": pre_norm(_gated_attention(ATTENTION), _EXPERTS, _BEFORE),
    },
    axes=rows(
        *("hidden", "vocab", "query_head", "expert_ffn", "shared_ffn"),
        kv_head={"default": 2},
        head_dim={"default": 256},
        conv_kernel={"keys": ("linear_conv_kernel_dim",), "default": 4},
        expert={"keys": ("num_experts", "num_local_experts"), "default": 512},
        extra=_AXES,
    ),
    cache={"linear": _STATES, "attention": KEYS_AND_VALUES},
    layout=_layout,
    edit_layout=partial(edit_lists, _lists),
    defaults={"num_experts_per_tok": 10},
    refused={"mlp_only_layers": "layers without experts"},
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD, Extra(r"mtp\..*", "the multi-token-prediction block")),
    summary="gated delta nets or gated attention, mixture of experts with a shared one (Qwen3-Next)",
)
