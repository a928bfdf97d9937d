"""Qwen3-Next and Qwen3.5: three gated delta nets to one layer of gated attention, and in every layer an MLP or a
mixture of experts with a shared one."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STACKED,
    STACKED_EXPERTS,
    STORED_TIED_HEAD,
    Lists,
    edit_lists,
    gated_mlp,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.delta_nets import (
    CONV,
    STATES,
    VALUE,
    VALUE_HEADS,
    WIDTHS,
    gated_attention,
    inside_delta_net,
    layer_letters,
    layer_list,
)
from minitron.model.families.family import Extra, Family, Norm, Rule
from minitron.model.families.qwen_moe import SHARED_EXPERT, sparse_layers

_BEFORE: Final = Norm("before", plus_one=True)

_NET: Final = LAYER + "linear_attn."
_ATTENTION: Final = gated_attention(Norm("inside", plus_one=True))

_OWN: Final = "values_per_key*linear_value_dim"
"""The value heads of one key head."""

_BOTH: Final = f"linear_key_dim + linear_key_dim + {_OWN} + {_OWN}"

_BY_KEY_HEAD: Final = (
    Rule(_NET + "in_proj_qkvz.weight", f"linear_key_head*({_BOTH}), hidden", "ssm"),
    Rule(_NET + "in_proj_ba.weight", "linear_key_head*(values_per_key + values_per_key), hidden", "ssm"),
    *inside_delta_net(_NET),
)
"""Qwen3-Next's delta net: the projections go key head by key head, so that each keeps all of its value heads."""

_VALUES_PER_KEY: Final = Axis(
    "values_per_key",
    "value heads of a key head",
    default=lambda config: (
        number_of(config, "linear_num_value_heads", 32) // number_of(config, "linear_num_key_heads", 16, least=1)
    ),
    fixed="it is the quotient of the numbers of heads",
)

_APART: Final = (
    Rule(_NET + "in_proj_qkv.weight", f"{CONV}, hidden", "ssm"),
    Rule(_NET + "in_proj_z.weight", f"{VALUE}, hidden", "ssm"),
    Rule(_NET + "in_proj_b.weight", "linear_value_head, hidden", "ssm"),
    Rule(_NET + "in_proj_a.weight", "linear_value_head, hidden", "ssm"),
    *inside_delta_net(_NET),
)
"""Qwen3.5's delta net."""


def _decoder(
    model_type: str, net: tuple[Rule, ...], mlp: tuple[Rule, ...], rest: str, lists: Lists = layer_list, **more: Any
) -> Family:
    """A family whose layers hold `net` or attention, and `mlp`, which reports call `rest`."""
    return Family(
        name=model_type,
        model_types=(model_type,),
        letters={"L": "linear", "*": "attention"},
        kind_labels={"linear": f"gated delta net + {rest}", "attention": f"gated attention + {rest}"},
        rules={
            "model": outside(Norm("final", plus_one=True)),
            "linear": pre_norm(net, mlp, _BEFORE),
            "attention": pre_norm(_ATTENTION, mlp, _BEFORE),
        },
        cache={"linear": STATES, "attention": KEYS_AND_VALUES},
        edit_layout=partial(edit_lists, lists),
        extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD, Extra(r"mtp\..*", "the multi-token-prediction block")),
        **more,
    )


_HEAD_DIM: Final = {"default": 256}
_TAPS: Final = {"keys": ("linear_conv_kernel_dim",), "default": 4}


_DENSE: Final = {"L": "l", "*": "-"}
"""Letter of a layer with experts -> that of one with an MLP in their place."""


def _next_letters(config: Config) -> str:
    """L and * for delta net and attention with experts, l and - for those with an MLP."""
    pairs = zip(layer_letters(config), sparse_layers(config), strict=True)
    return "".join(letter if sparse == "E" else _DENSE[letter] for letter, sparse in pairs)


def _next_lists(config: Config) -> Mapping[str, Any]:
    dense = [layer for layer, letter in enumerate(sparse_layers(config)) if letter == "-"]
    return {**layer_list(config), "mlp_only_layers": dense, "decoder_sparse_step": 1}


_NEXT: Final = _decoder(
    "qwen3_next",
    _BY_KEY_HEAD,
    (*routed_experts(), *SHARED_EXPERT),
    "mixture of experts",
    lists=_next_lists,
    layout=_next_letters,
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "expert_ffn", "shared_ffn"),
        kv_head={"default": 2},
        head_dim=_HEAD_DIM,
        conv_kernel=_TAPS,
        expert={"keys": ("num_experts", "num_local_experts"), "default": 512},
        extra=(*WIDTHS, replace(VALUE_HEADS, follows="linear_key_head"), _VALUES_PER_KEY),
    ),
    defaults={"num_experts_per_tok": 10},
    summary="gated delta nets or gated attention, mixture of experts with a shared one or gated MLP (Qwen3-Next)",
)

QWEN3_NEXT = replace(
    _NEXT,
    letters={**_NEXT.letters, "l": "linear_dense", "-": "attention_dense"},
    kind_labels={
        **_NEXT.kind_labels,
        "linear_dense": "gated delta net + MLP",
        "attention_dense": "gated attention + MLP",
    },
    rules={
        **_NEXT.rules,
        "linear_dense": pre_norm(_BY_KEY_HEAD, gated_mlp(), _BEFORE),
        "attention_dense": pre_norm(_ATTENTION, gated_mlp(), _BEFORE),
    },
    cache={**_NEXT.cache, "linear_dense": STATES, "attention_dense": KEYS_AND_VALUES},
    plain_head=True,
)

QWEN3_5 = _decoder(
    "qwen3_5_text",
    _APART,
    gated_mlp(),
    "MLP",
    layout=layer_letters,
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head"),
        kv_head={"default": 4},
        head_dim=_HEAD_DIM,
        conv_kernel=_TAPS,
        extra=(*WIDTHS, VALUE_HEADS),
    ),
    summary="gated delta nets or gated attention, and gated MLP (Qwen3.5, the text part)",
)

QWEN3_5_MOE = _decoder(
    "qwen3_5_moe_text",
    _APART,
    (*routed_experts(stacked=STACKED), *SHARED_EXPERT),
    "mixture of experts",
    layout=layer_letters,
    axes=rows(
        *("hidden", "vocab", "query_head", "expert_ffn", "shared_ffn"),
        kv_head={"default": 2},
        head_dim=_HEAD_DIM,
        conv_kernel=_TAPS,
        expert={"keys": ("num_experts", "num_local_experts"), "default": 256},
        extra=(*WIDTHS, VALUE_HEADS),
    ),
    defaults={"num_experts_per_tok": 8},
    storage=STACKED_EXPERTS,
    summary="gated delta nets or gated attention, mixture of experts with a shared one (Qwen3.5-MoE, the text part)",
)
