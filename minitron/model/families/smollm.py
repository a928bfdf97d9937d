"""SmolLM3: Llama's layers, every fourth without rotary embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

from minitron.model.axes import Config, rows
from minitron.model.families.decoders import attention, gated_mlp, pre_norm, rotary_decoder
from minitron.model.families.layer_lists import FULL, SLIDING, rotary_layers


def _slides(config: Config) -> Callable[[int], str]:
    """Layers without rotary embeddings slide, where use_sliding_window says so."""
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    rotary = rotary_layers(config)
    return lambda layer: SLIDING if windowed and not rotary[layer] else FULL


def _lists(config: Config) -> Mapping[str, Any]:
    return {"no_rope_layers": rotary_layers(config)}


SMOLLM3 = rotary_decoder(
    "smollm3",
    layer=pre_norm(attention(bias="attention_bias", output_bias="attention_bias"), gated_mlp(bias="mlp_bias")),
    window="sliding_window",
    slides=_slides,
    lists=_lists,
    axes=rows("hidden", "vocab", "ffn", "query_head", "head_dim", kv_head={"default": 4}),
    defaults={"tie_word_embeddings": True},
    summary="attention, every fourth layer without rotary embeddings, and gated MLP (SmolLM3)",
)
