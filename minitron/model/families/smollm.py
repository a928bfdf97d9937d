"""SmolLM3: Llama's layers, every fourth without rotary embeddings."""

from collections.abc import Callable, Mapping
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import attention, gated_mlp, pre_norm, rotary_decoder
from minitron.model.families.layer_lists import FULL, SLIDING, layer_count


def _rotary_layers(config: Config) -> list[int]:
    """1 for every layer with rotary embeddings, 0 for every one without; raises MinitronError for a list too short."""
    given, count = config.get("no_rope_layers"), layer_count(config)
    if given is None:
        interval = number_of(config, "no_rope_layer_interval", 4, least=1)
        return [int((layer + 1) % interval != 0) for layer in range(count)]
    if not isinstance(given, list | tuple) or len(given) < count:
        raise MinitronError(
            f"config.json: no_rope_layers does not have one entry for each of the {count} layers; correct it."
        )
    return list(given)


def _slides(config: Config) -> Callable[[int], str]:
    """Layers without rotary embeddings slide, where use_sliding_window says so."""
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    rotary = _rotary_layers(config)
    return lambda layer: SLIDING if windowed and not rotary[layer] else FULL


def _lists(config: Config) -> Mapping[str, Any]:
    return {"no_rope_layers": _rotary_layers(config)}


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
