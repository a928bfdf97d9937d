"""Qwen 2, 2.5 and 3: rotary attention with a gated MLP or a mixture of experts in every layer."""

from collections.abc import Callable
from typing import Any

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    INSIDE,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    rotary_decoder,
    routed_experts,
)
from minitron.model.families.layer_lists import FULL, SLIDING, layer_count, layer_indices


def _slides(config: Config) -> Callable[[int], str]:
    """Layers from max_window_layers on slide, where use_sliding_window says so."""
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window", 4096) is not None
    first = number_of(config, "max_window_layers", 28)
    return lambda layer: SLIDING if windowed and layer >= first else FULL


_WINDOWS: dict[str, Any] = {"window": "sliding_window", "slides": _slides, "defaults": {"sliding_window": 4096}}

QWEN2 = rotary_decoder(
    "qwen2",
    layer=pre_norm(attention(bias=""), gated_mlp()),
    axes=rows("hidden", "vocab", "ffn", "query_head", "head_dim", kv_head={"default": 32}),
    summary="attention with biases and gated MLP (Qwen2, Qwen2.5)",
    **_WINDOWS,
)

_QWEN3_ATTENTION = attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE)

QWEN3 = rotary_decoder(
    "qwen3",
    layer=pre_norm(_QWEN3_ATTENTION, gated_mlp()),
    axes=rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 32}, head_dim={"default": 128}),
    summary="attention with normalised heads and gated MLP (Qwen3)",
    **_WINDOWS,
)


def _mixtures(config: Config) -> str:
    """Every decoder_sparse_step-th layer has experts but for those in mlp_only_layers."""
    dense, step = layer_indices(config, "mlp_only_layers"), number_of(config, "decoder_sparse_step", 1, least=1)
    return "".join("-" if layer in dense or (layer + 1) % step else "E" for layer in range(layer_count(config)))


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """What follows from a layer's number is said outright once the numbers change."""
    letters = _mixtures(config)
    if kept != tuple(range(len(letters))):
        config["mlp_only_layers"] = [layer for layer, letter in enumerate(letters) if letter == "-"]
        config["decoder_sparse_step"] = 1


QWEN3_MOE = mixture_decoder(
    "qwen3_moe",
    moe=pre_norm(_QWEN3_ATTENTION, routed_experts()),
    dense=pre_norm(_QWEN3_ATTENTION, gated_mlp()),
    layout=_mixtures,
    edit=_edit,
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 4},
        expert={"keys": ("num_experts", "num_local_experts"), "default": 128},
    ),
    defaults={"num_experts_per_tok": 8},
    refused={"use_sliding_window": "sliding windows beside mixtures of experts"},
    summary="attention with normalised heads, mixture of experts or gated MLP (Qwen3-30B-A3B, Qwen3-235B-A22B)",
)
