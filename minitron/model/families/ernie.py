"""ERNIE 4.5: rotary attention and a gated MLP, or a mixture of experts with shared ones in all but the first layers."""

from dataclasses import replace
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    MLP,
    attention,
    gated_mlp,
    mixture_decoder,
    outside,
    pre_norm,
    rotary_decoder,
    routed_experts,
)
from minitron.model.families.deepseek import shared_experts
from minitron.model.families.family import Extra, Rule
from minitron.model.families.layer_lists import layer_count

ERNIE = rotary_decoder(
    "ernie4_5",
    layer=pre_norm(attention(bias="use_bias", output_bias="use_bias"), gated_mlp(bias="use_bias")),
    axes=rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 2}, head_dim={"default": 128}),
    defaults={"tie_word_embeddings": True},
    summary="attention and gated MLP (ERNIE-4.5-0.3B)",
)


def _mixtures(config: Config) -> str:
    """The layers from moe_layer_start_index to moe_layer_end_index have experts; -1 is the last."""
    if number_of(config, "moe_layer_interval", 1) != 1:
        raise MinitronError(
            "config.json: moe_layer_interval is not 1, and Minitron supports ernie4_5_moe models only with experts in "
            "every layer from moe_layer_start_index to moe_layer_end_index; use a model with moe_layer_interval 1."
        )
    count = layer_count(config)
    first = number_of(config, "moe_layer_start_index", 1)
    last = number_of(config, "moe_layer_end_index", -1, least=-1)
    last = count - 1 if last == -1 else last
    return "".join("E" if first <= layer <= last else "-" for layer in range(count))


def _range(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The layers with experts stand together, and so do those of them that stay."""
    letters = _mixtures(config)
    left = "".join(letters[layer] for layer in kept)
    config["moe_layer_start_index"] = left.find("E") if "E" in left else len(left)
    config["moe_layer_end_index"] = left.rfind("E") if "E" in left else len(left)


_ROUTER_BIAS = Rule(
    MLP + "moe_statics.e_score_correction_bias",
    "1, expert",
    "moe_router",
    router=True,
    memory=MLP + "gate.moe_statics.e_score_correction_bias",
)

_SHARED = tuple(
    replace(rule, when=f"moe_num_shared_experts {rule.when}".strip())
    for rule in gated_mlp(MLP + "shared_experts.", axis="shared_ffn", component="moe_shared", bias="use_bias")
)

_ATTENTION = attention(bias="use_bias", output_bias="use_bias")

ERNIE_MOE = mixture_decoder(
    "ernie4_5_moe",
    model=(*outside(), Rule("lm_head.bias", "vocab", "lm_head", when="use_bias")),
    moe=pre_norm(
        _ATTENTION,
        (
            *routed_experts(),
            _ROUTER_BIAS,
            *(replace(rule, when=f"moe_num_shared_experts {rule.when}".strip()) for rule in _SHARED),
        ),
    ),
    dense=pre_norm(_ATTENTION, gated_mlp(bias="use_bias")),
    layout=_mixtures,
    edit=_range,
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 4},
        expert={"keys": ("moe_num_experts", "num_experts"), "default": 64, "least_key": "moe_k"},
        shared_ffn=shared_experts("moe_num_shared_experts", 2),
    ),
    defaults={"tie_word_embeddings": True, "moe_k": 6, "moe_num_shared_experts": 2},
    spellings={"num_experts_per_tok": "moe_k"},
    extras=(Extra(r"(model\.)?mtp_.*", "the multi-token-prediction block"),),
    summary="attention, mixture of experts with shared ones (ERNIE-4.5-21B-A3B and 300B-A47B without vision)",
)
