"""Llama 4: rotary attention in chunks, every fourth layer without rotary embeddings over all tokens, and a mixture of
experts with a shared one in some layers or all; a layer's experts are in one tensor, inputs before outputs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    KEYS_AND_VALUES,
    LAYER,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
)
from minitron.model.families.family import Rule
from minitron.model.families.layer_lists import FULL, attention_types, layer_count, layer_indices, rotary_layers

CHUNKED: Final = "chunked_attention"

_AT: Final = LAYER + "feed_forward."
_ATTENTION: Final = attention(bias="attention_bias", output_bias="attention_bias")
_MIXTURE: Final = (
    Rule(_AT + "router.weight", "expert, hidden", "moe_router", router=True),
    Rule(_AT + "experts.gate_up_proj", "expert, hidden, expert_ffn + expert_ffn", "moe_routed", transposed=True),
    Rule(_AT + "experts.down_proj", "expert, expert_ffn, hidden", "moe_routed", transposed=True),
    *gated_mlp(_AT + "shared_expert.", axis="shared_ffn", component="moe_shared"),
)


def _mixtures(config: Config) -> str:
    """The layers in moe_layers have experts, where it is absent every interleave_moe_layer_step-th."""
    if config.get("moe_layers") is None:
        step = number_of(config, "interleave_moe_layer_step", 1, least=1)
        return "".join("-" if (layer + 1) % step else "E" for layer in range(layer_count(config)))
    sparse = layer_indices(config, "moe_layers")
    return "".join("E" if layer in sparse else "-" for layer in range(layer_count(config)))


def _rotary(config: Config) -> list[int]:
    """An empty list says as little as none."""
    return rotary_layers({**config, "no_rope_layers": config.get("no_rope_layers") or None})


def _types(config: Config) -> list[str]:
    """Layers with rotary embeddings attend in chunks, where layer_types does not say."""
    if config.get("attention_chunk_size", 0) is None:
        raise MinitronError("config.json: attention_chunk_size is null, and transformers requires one; add it.")
    rotary = _rotary(config)
    return attention_types(config, lambda layer: CHUNKED if rotary[layer] else FULL, known=(FULL, CHUNKED))


def _lists(config: Config) -> Mapping[str, Any]:
    sparse = [layer for layer, letter in enumerate(_mixtures(config)) if letter == "E"]
    return {"layer_types": _types(config), "no_rope_layers": _rotary(config), "moe_layers": sparse}


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    if kept != tuple(range(layer_count(config))):
        config.update(_lists(config))


LLAMA4 = mixture_decoder(
    "llama4_text",
    moe=pre_norm(_ATTENTION, _MIXTURE),
    dense=pre_norm(_ATTENTION, gated_mlp(_AT)),
    layout=_mixtures,
    types=_types,
    edit=_edit,
    cache=replace(KEYS_AND_VALUES, chunked=True),
    window="attention_chunk_size",
    axes=rows(
        *("hidden", "vocab", "query_head"),
        kv_head={"default": 8},
        head_dim={"default": 128},
        ffn={"keys": ("intermediate_size_mlp",), "default": 16384},
        expert={"keys": ("num_local_experts",), "default": 16},
        expert_ffn={"keys": ("intermediate_size",)},
        # One key gives both widths.
        shared_ffn={
            "keys": (),
            "follows": "expert_ffn",
            "default": lambda config: number_of(config, "intermediate_size"),
        },
    ),
    defaults={"num_experts_per_tok": 1, "attention_chunk_size": 8192},
    summary="attention in chunks, every fourth layer over all tokens, and mixture of experts with a shared one or "
    "gated MLP (Llama 4 without vision)",
)
