"""Bamba: Mamba-2 or rotary attention, and a gated MLP, in every layer."""

from minitron.model.axes import Config, rows
from minitron.model.families.decoders import (
    BEFORE,
    INSIDE,
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gain,
    gated_mlp,
    outside,
)
from minitron.model.families.family import Family, Rule
from minitron.model.families.layer_lists import keep_listed, layer_count, layer_indices
from minitron.model.families.mamba import STATES, mamba2


def _layer(mixer: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        gain(LAYER + "input_layernorm", BEFORE),
        *mixer,
        gain(LAYER + "pre_ff_layernorm", BEFORE),
        *gated_mlp(LAYER + "feed_forward.", bias="mlp_bias"),
    )


def _layout(config: Config) -> str:
    indices = layer_indices(config, "attn_layer_indices")
    return "".join("*" if layer in indices else "M" for layer in range(layer_count(config)))


BAMBA = Family(
    name="bamba",
    model_types=("bamba",),
    letters={"M": "mamba", "*": "attention"},
    kind_labels={"mamba": "Mamba-2 + MLP", "attention": "attention + MLP"},
    rules={
        "model": outside(norm="model.final_layernorm"),
        "mamba": _layer(mamba2(LAYER + "mamba.", norm=INSIDE, bias="mamba_proj_bias", conv_bias="mamba_conv_bias")),
        "attention": _layer(attention(bias="attention_bias", output_bias="attention_bias")),
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim"),
        kv_head={"default": 8},
        mamba_head={"keys": ("mamba_n_heads",), "default": 128},
        mamba_head_dim={"keys": ("mamba_d_head",)},
        mamba_group={"keys": ("mamba_n_groups",), "default": 1},
        ssm_state={"keys": ("mamba_d_state",), "default": 256},
        conv_kernel={"keys": ("mamba_d_conv",), "default": 4},
    ),
    cache={"mamba": STATES, "attention": KEYS_AND_VALUES},
    layout=_layout,
    edit_layout=keep_listed,
    defaults={"mamba_conv_bias": True, "mamba_expand": 2},
    equal=(("mamba_head*mamba_head_dim", "mamba_expand*hidden"),),
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    beside_states=1,
    summary="Mamba-2 or attention, and gated MLP, in every layer (Bamba)",
)
