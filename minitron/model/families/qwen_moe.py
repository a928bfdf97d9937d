"""Qwen's mixtures of experts: rotary attention in every layer, and behind it experts or a gated MLP."""

from typing import Any

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    INSIDE,
    MLP,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Rule
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, layer_count, layer_indices

SHARED_EXPERT: tuple[Rule, ...] = (
    *gated_mlp(MLP + "shared_expert.", axis="shared_ffn", component="moe_shared"),
    Rule(MLP + "shared_expert_gate.weight", "1, hidden", "moe_shared"),
)
"""The expert of all tokens, weighted by a gate of its own."""


def sparse_layers(config: Config) -> str:
    """Every decoder_sparse_step-th layer has experts (E) but for those in mlp_only_layers, which have an MLP (-)."""
    dense, step = layer_indices(config, "mlp_only_layers"), number_of(config, "decoder_sparse_step", 1, least=1)
    return "".join("-" if layer in dense or (layer + 1) % step else "E" for layer in range(layer_count(config)))


def say_sparse_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """What follows from a layer's number is said outright once the numbers change."""
    letters = sparse_layers(config)
    if kept != tuple(range(len(letters))):
        config["mlp_only_layers"] = [layer for layer, letter in enumerate(letters) if letter == "-"]
        config["decoder_sparse_step"] = 1


def _every_other(config: Config) -> list[str]:
    """Every other one of the first max_window_layers layers slides, where use_sliding_window says so."""
    windowed, first = bool(config.get("use_sliding_window")), number_of(config, "max_window_layers", 28)
    return attention_types(config, lambda layer: SLIDING if windowed and layer < first and (layer + 1) % 2 else FULL)


def _edit_every_other(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    if kept != tuple(range(layer_count(config))):
        config["layer_types"] = _every_other(config)
    say_sparse_layers(config, kept)


_QWEN2_ATTENTION = attention(bias="qkv_bias")

QWEN2_MOE = mixture_decoder(
    "qwen2_moe",
    moe=pre_norm(_QWEN2_ATTENTION, (*routed_experts(), *SHARED_EXPERT)),
    dense=pre_norm(_QWEN2_ATTENTION, gated_mlp()),
    layout=sparse_layers,
    types=_every_other,
    edit=_edit_every_other,
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn", "shared_ffn"),
        kv_head={"default": 16},
        expert={"default": 60},
    ),
    defaults={"num_experts_per_tok": 4, "qkv_bias": True, "sliding_window": 4096},
    summary="attention with biases, mixture of experts with a shared one or gated MLP (Qwen1.5-MoE, Qwen2-57B-A14B)",
)


def _all_or_none(config: Config) -> list[str]:
    """All layers slide, where use_sliding_window says so."""
    return [SLIDING if config.get("use_sliding_window") else FULL] * layer_count(config)


_QWEN3_ATTENTION = attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE)

QWEN3_MOE = mixture_decoder(
    "qwen3_moe",
    moe=pre_norm(_QWEN3_ATTENTION, routed_experts()),
    dense=pre_norm(_QWEN3_ATTENTION, gated_mlp()),
    layout=sparse_layers,
    types=_all_or_none,
    edit=say_sparse_layers,
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 4},
        expert={"keys": ("num_experts", "num_local_experts"), "default": 128},
    ),
    defaults={"num_experts_per_tok": 8, "sliding_window": 4096},
    summary="attention with normalised heads, mixture of experts or gated MLP (Qwen3-30B-A3B, Qwen3-235B-A22B)",
)
