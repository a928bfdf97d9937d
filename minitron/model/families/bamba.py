"""Bamba: Mamba-2 or rotary attention, and a gated MLP, in every layer."""

from typing import Any, Final

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    BEFORE,
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gain,
    gated_mlp,
    outside,
)
from minitron.model.families.family import Family, Norm, Rule
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


HEADS_FILL_THE_STREAM: Final = ("mamba_head*mamba_head_dim", "mamba_expand*hidden")
"""Of a config with other numbers transformers makes no model."""


def _head_dim(config: Config) -> int:
    inner = number_of(config, "mamba_expand", 2) * number_of(config, "hidden_size")
    return inner // number_of(config, "mamba_n_heads", 128, least=1)


def mamba_rows() -> dict[str, Any]:
    """The rows of a mixer's axes in Bamba's config keys."""
    return {
        "mamba_head": {"keys": ("mamba_n_heads",), "default": 128},
        "mamba_head_dim": {"keys": ("mamba_d_head",), "default": _head_dim},
        "mamba_group": {"keys": ("mamba_n_groups",), "default": 1},
        "ssm_state": {"keys": ("mamba_d_state",), "default": 256},
        "conv_kernel": {"keys": ("mamba_d_conv",), "default": 4},
    }


_MAMBA: Final = mamba2(
    LAYER + "mamba.",
    norm=Norm("inside", group="mamba_group"),
    bias="mamba_proj_bias",
    conv_bias="mamba_conv_bias",
)

BAMBA = Family(
    name="bamba",
    model_types=("bamba",),
    letters={"M": "mamba", "*": "attention"},
    kind_labels={"mamba": "Mamba-2 + MLP", "attention": "attention + MLP"},
    rules={
        "model": outside(norm="model.final_layernorm"),
        "mamba": _layer(_MAMBA),
        "attention": _layer(attention(bias="attention_bias", output_bias="attention_bias")),
    },
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim"),
        kv_head={"default": 8},
        **mamba_rows(),
    ),
    cache={"mamba": STATES, "attention": KEYS_AND_VALUES},
    layout=_layout,
    edit_layout=keep_listed,
    defaults={"mamba_conv_bias": True, "mamba_expand": 2},
    equal=(HEADS_FILL_THE_STREAM,),
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    beside_states=1,
    summary="Mamba-2 or attention, and gated MLP, in every layer (Bamba)",
)
