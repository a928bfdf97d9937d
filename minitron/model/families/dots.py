"""dots.llm1: rotary attention with normalised heads; DeepSeek-V3's mixture of experts in all but the first layers."""

from functools import partial
from typing import Any

from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    EXPERTS_IN_GROUPS,
    INSIDE,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.deepseek import ROUTER_BIAS, dense_first, say_dense_first, shared_experts, shared_mlp
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, layer_count

_LAYERS = partial(dense_first, count=0)


def _types(config: Config) -> list[str]:
    """Layers from max_window_layers on slide, where there is a window."""
    windowed, first = config.get("sliding_window", 4096) is not None, number_of(config, "max_window_layers", 62)
    return attention_types(config, lambda layer: SLIDING if windowed and layer >= first else FULL)


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    if kept != tuple(range(layer_count(config))):
        config["layer_types"] = _types(config)
    say_dense_first(_LAYERS, config, kept)


_ATTENTION = attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE)

DOTS1 = mixture_decoder(
    "dots1",
    moe=pre_norm(_ATTENTION, (*routed_experts(), ROUTER_BIAS, *shared_mlp())),
    dense=pre_norm(_ATTENTION, gated_mlp()),
    layout=_LAYERS,
    types=_types,
    edit=_edit,
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 32},
        expert=EXPERTS_IN_GROUPS,
        shared_ffn=shared_experts("n_shared_experts"),
    ),
    defaults={"sliding_window": 4096, "n_group": 1, "topk_group": 1},
    summary="attention with normalised heads, mixture of experts with shared ones (dots.llm1)",
)
