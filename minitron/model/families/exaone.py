"""EXAONE 4 and K-EXAONE: rotary attention with normalised heads; where three of four layers slide, the others have no
rotary embeddings.  EXAONE 4 has a gated MLP and norms behind the two, K-EXAONE experts and norms before the two."""

from collections.abc import Callable
from typing import Any

from minitron.errors import MinitronError
from minitron.model.axes import Config, number_of, rows
from minitron.model.families.decoders import (
    EXPERTS_IN_GROUPS,
    INSIDE,
    MLP,
    attention,
    gated_mlp,
    mixture_decoder,
    post_norm,
    pre_norm,
    rotary_decoder,
    routed_experts,
)
from minitron.model.families.deepseek import shared_experts, shared_mlp
from minitron.model.families.family import Extra, Rule
from minitron.model.families.glm_moe import sparse_words
from minitron.model.families.layer_lists import FULL, SLIDING, attention_types, layer_count


def _slides(config: Config) -> Callable[[int], str]:
    """Where layer_types says nothing all but every sliding_window_pattern-th layer slide."""
    if config.get("layer_types") is not None:
        return lambda layer: FULL
    if config.get("sliding_window", 4096) is None:
        raise MinitronError(
            "config.json: sliding_window is null and there is no layer_types, so that transformers refuses the "
            'config; add layer_types with "full_attention" for each layer.'
        )
    period = number_of(config, "sliding_window_pattern", 4, least=1)
    return lambda layer: SLIDING if (layer + 1) % period else FULL


EXAONE4 = rotary_decoder(
    "exaone4",
    layer=post_norm(attention(head_norms=INSIDE), gated_mlp()),
    window="sliding_window",
    slides=_slides,
    axes=rows("hidden", "vocab", "ffn", "query_head", "head_dim", kv_head={"default": 32}),
    defaults={"sliding_window": 4096},
    summary="attention with normalised heads and gated MLP, norms behind them, three of four layers in a sliding "
    "window where the config sets one (EXAONE 4)",
)


def _mixtures(config: Config) -> str:
    return sparse_words(config, dense=number_of(config, "first_k_dense_replace", 1))


def _types(config: Config) -> list[str]:
    return attention_types(config, _slides(config))


def _edit(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """What follows from a layer's number is said outright once the numbers change."""
    letters = _mixtures(config)
    if kept != tuple(range(layer_count(config))):
        config["layer_types"] = _types(config)
        config["mlp_layer_types"] = ["dense" if letter == "-" else "sparse" for letter in letters]
        config["first_k_dense_replace"] = sum(letters[layer] == "-" for layer in kept)


_ROUTER_BIAS = Rule(
    MLP + "e_score_correction_bias",
    "expert",
    "moe_router",
    router=True,
    memory=MLP + "gate.e_score_correction_bias",
)

EXAONE_MOE = mixture_decoder(
    "exaone_moe",
    moe=pre_norm(attention(head_norms=INSIDE), (*routed_experts(), _ROUTER_BIAS, *shared_mlp())),
    dense=pre_norm(attention(head_norms=INSIDE), gated_mlp()),
    layout=_mixtures,
    types=_types,
    edit=_edit,
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "head_dim", "expert_ffn"),
        kv_head={"default": 32},
        expert=EXPERTS_IN_GROUPS | {"keys": ("num_experts",), "default": 64},
        shared_ffn=shared_experts("num_shared_experts", 1),
    ),
    defaults={"sliding_window": 4096, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1},
    extras=(Extra(r"mtp\..*", "the multi-token-prediction block"),),
    plain_head=True,
    summary="attention with normalised heads, three of four layers in a sliding window, mixture of experts with shared "
    "ones (K-EXAONE)",
)
