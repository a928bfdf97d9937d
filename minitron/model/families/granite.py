"""Granite 3 and 4: numbers of the config, which no cut changes, scale the embedding, what is added to the stream, and
the logits.  Granite 4 has Mamba-2 or attention in its layers, and an MLP or a mixture of experts with a shared one."""

from math import gcd
from typing import Any, Final

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.bamba import HEADS_FILL_THE_STREAM, mamba_rows
from minitron.model.families.decoders import (
    KEYS_AND_VALUES,
    LAYER,
    ROTARY_FREQUENCIES,
    STORED_TIED_HEAD,
    attention,
    gated_mlp,
    mixture_decoder,
    outside,
    pre_norm,
    rotary_decoder,
)
from minitron.model.families.family import Family, Norm, Rule
from minitron.model.families.layer_lists import FULL, LINEAR, attention_types, keep_listed
from minitron.model.families.logits import Logits
from minitron.model.families.mamba import STATES, mamba2

_LOGITS: Final = Logits(divisor="logits_scaling")
_ATTENTION: Final = attention(bias="attention_bias", output_bias="attention_bias")
_BLOCK: Final = LAYER + "block_sparse_moe."
_MIXTURE: Final = (
    Rule(
        _BLOCK + "router.layer.weight",
        "expert, hidden",
        "moe_router",
        memory=_BLOCK + "router.weight",
        router=True,
    ),
    Rule(
        _BLOCK + "input_linear.weight",
        "expert, expert_ffn + expert_ffn, hidden",
        "moe_routed",
        memory=_BLOCK + "experts.gate_up_proj",
    ),
    Rule(
        _BLOCK + "output_linear.weight",
        "expert, hidden, expert_ffn",
        "moe_routed",
        memory=_BLOCK + "experts.down_proj",
    ),
)
_EXPERTS: Final[dict[str, Any]] = {
    "expert": {"keys": ("num_local_experts",), "default": 8},
    "expert_ffn": {"keys": ("intermediate_size",)},
}
_DEFAULTS: Final[dict[str, Any]] = {"logits_scaling": 1.0, "num_experts_per_tok": 2}

GRANITE = rotary_decoder(
    "granite",
    layer=pre_norm(_ATTENTION, gated_mlp(bias="mlp_bias")),
    logits=_LOGITS,
    defaults={"logits_scaling": 1.0},
    summary="attention and gated MLP (Granite 3)",
)

GRANITE_MOE = mixture_decoder(
    "granitemoe",
    moe=pre_norm(_ATTENTION, _MIXTURE),
    axes=rows("hidden", "vocab", "query_head", "kv_head", "head_dim", **_EXPERTS),
    logits=_LOGITS,
    defaults=_DEFAULTS,
    summary="attention and mixture of experts (Granite 3 A400M and A800M)",
)


def _shared_mlp(axis: str, component: str, when: str = "") -> tuple[Rule, ...]:
    """Gate and up in one tensor, and down."""
    at = LAYER + "shared_mlp."
    return (
        Rule(at + "input_linear.weight", f"{axis} + {axis}, hidden", component, when=when),
        Rule(at + "output_linear.weight", f"hidden, {axis}", component, when=when),
    )


GRANITE_MOE_SHARED = mixture_decoder(
    "granitemoeshared",
    moe=pre_norm(_ATTENTION, (*_MIXTURE, *_shared_mlp("shared_ffn", "moe_shared", when="shared_intermediate_size"))),
    axes=rows(
        *("hidden", "vocab", "query_head", "kv_head", "head_dim"),
        shared_ffn={"keys": ("shared_intermediate_size",)},
        **_EXPERTS,
    ),
    logits=_LOGITS,
    defaults=_DEFAULTS,
    summary="attention and mixture of experts, also with a shared one (Granite 3 with shared experts)",
)


def _words(config: Config) -> list[str]:
    key = "layers_block_type"
    said = {"layer_types": config[key]} if config.get(key) is not None else {}
    return attention_types({**config, **said}, lambda layer: LINEAR, known=(FULL, LINEAR))


def _layout(config: Config) -> str:
    letters = "ma" if number_of(config, "num_local_experts", 8) else "M*"
    return "".join(letters[word != LINEAR] for word in _words(config))


def _settle(config: dict[str, Any]) -> None:
    """transformers holds the sizes of Mamba heads against hidden_size in models without one too."""
    if LINEAR in _words(config):
        return
    inner = number_of(config, "mamba_expand", 2) * number_of(config, "hidden_size")
    width, heads = config.get("mamba_d_head"), number_of(config, "mamba_n_heads", 128, least=1)
    if inner % heads:
        config["mamba_n_heads"] = heads = gcd(inner, heads)
    if isinstance(width, int) and width * heads != inner:
        config["mamba_d_head"] = inner // heads


_MAMBA: Final = mamba2(
    LAYER + "mamba.",
    norm=Norm("inside", group="mamba_group"),
    bias="mamba_proj_bias",
    conv_bias="mamba_conv_bias",
)
_DENSE: Final = _shared_mlp("ffn", "mlp")
_SHARED: Final = (*_MIXTURE, *_shared_mlp("shared_ffn", "moe_shared"))
_SHARED_WIDTH: Final[dict[str, Any]] = {"keys": ("shared_intermediate_size",), "default": 1024}

GRANITE_HYBRID = Family(
    name="granitemoehybrid",
    model_types=("granitemoehybrid",),
    letters={"M": "mamba", "*": "attention", "m": "mamba_moe", "a": "attention_moe"},
    kind_labels={
        "mamba": "Mamba-2 + MLP",
        "attention": "attention + MLP",
        "mamba_moe": "Mamba-2 + mixture of experts",
        "attention_moe": "attention + mixture of experts",
    },
    rules={
        "model": outside(),
        "mamba": pre_norm(_MAMBA, _DENSE),
        "attention": pre_norm(_ATTENTION, _DENSE),
        "mamba_moe": pre_norm(_MAMBA, _SHARED),
        "attention_moe": pre_norm(_ATTENTION, _SHARED),
    },
    axes=rows(
        *("hidden", "vocab", "query_head", "kv_head", "head_dim"),
        ffn=_SHARED_WIDTH,
        shared_ffn=_SHARED_WIDTH,
        **_EXPERTS,
        **mamba_rows(),
    ),
    cache={
        "mamba": STATES,
        "attention": KEYS_AND_VALUES,
        "mamba_moe": STATES,
        "attention_moe": KEYS_AND_VALUES,
    },
    layout=_layout,
    edit_layout=keep_listed,
    settle=_settle,
    defaults=_DEFAULTS | {"mamba_conv_bias": True, "mamba_expand": 2},
    equal=(HEADS_FILL_THE_STREAM,),
    logits=_LOGITS,
    extras=(ROTARY_FREQUENCIES, STORED_TIED_HEAD),
    summary="Mamba-2 or attention, and gated MLP or mixture of experts with a shared one, in every layer (Granite 4)",
)
