"""Trinity: rotary attention in a sliding window in three of four layers, attention without positions in the fourth, all
gated, and behind it experts or a gated MLP; norms on both sides of each."""

from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    INSIDE,
    LAYER,
    MLP,
    QUERIES,
    attention,
    gain,
    gated_mlp,
    mixture_decoder,
    routed_experts,
)
from minitron.model.families.deepseek import shared_experts, shared_mlp
from minitron.model.families.family import Norm, Rule
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, layer_count

_GATED: Final = (
    *attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE),
    Rule(ATTENTION + "gate_proj.weight", f"{QUERIES}, hidden", "attention"),
)

_MIXTURE: Final = (
    *routed_experts(router="router.gate"),
    Rule(MLP + "expert_bias", "expert", "moe_router", router=True),
    *shared_mlp(),
)


def _layer(mlp: tuple[Rule, ...]) -> tuple[Rule, ...]:
    before, after = Norm("before"), Norm("after")
    return (
        gain(LAYER + "input_layernorm", before),
        *_GATED,
        gain(LAYER + "post_attention_layernorm", after),
        gain(LAYER + "pre_mlp_layernorm", before),
        *mlp,
        gain(LAYER + "post_mlp_layernorm", after),
    )


def _dense(config: Config) -> int:
    return number_of(config, "num_dense_layers", 1)


def _layout(config: Config) -> str:
    dense = _dense(config)
    return "".join("-" if layer < dense else "E" for layer in range(layer_count(config)))


def _types(config: Config) -> list[str]:
    """Every global_attn_every_n_layers-th layer attends to all tokens where layer_types does not say."""
    if config.get("sliding_window", 1024) is None:
        raise MinitronError(
            "config.json: sliding_window is null, and transformers requires one for afmoe models; give a number."
        )
    period = number_of(config, "global_attn_every_n_layers", 4, least=1)
    return attention_types(config, lambda layer: SLIDING if (layer + 1) % period else FULL)


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The dense layers come first, and so do those of them that stay; what else follows from a layer's number is said
    outright once the numbers change."""
    if kept != tuple(range(layer_count(config))):
        config["layer_types"] = _types(config)
        config["num_dense_layers"] = sum(layer < _dense(config) for layer in kept)


AFMOE: Final = mixture_decoder(
    "afmoe",
    moe=_layer(_MIXTURE),
    dense=_layer(gated_mlp()),
    layout=_layout,
    types=_types,
    edit=_edit,
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "kv_head", "expert_ffn"),
        head_dim={"default": 128},
        expert={"default": 64},
        shared_ffn=shared_experts("num_shared_experts", 2),
    ),
    defaults={"sliding_window": 1024, "num_experts_per_tok": 6},
    scaled_stream=True,
    scaled_stream_when="mup_enabled",
    plain_head=True,
    summary="gated attention with normalised heads, three of four layers in a sliding window, mixture of experts with "
    "shared ones or gated MLP, norms on both sides of each (Trinity)",
)
