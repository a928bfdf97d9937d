"""Qwen 2, 2.5 and 3: rotary attention with a gated MLP in every layer."""

from collections.abc import Callable
from typing import Any

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    INSIDE,
    attention,
    gated_mlp,
    pre_norm,
    rotary_decoder,
)
from minitron.model.families.layer_lists import FULL, SLIDING


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
