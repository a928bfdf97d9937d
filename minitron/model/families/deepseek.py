"""DeepSeek-V3: attention over a latent that stands for the keys and values of all heads, and a mixture of experts with
shared ones in all but the first layers."""

from typing import Any

from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    INSIDE,
    MLP,
    gain,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Cache, Rule
from minitron.model.families.layer_lists import layer_count

_QUERIES = "query_head*(nope_dim + rope_dim)"


def _latent_attention() -> tuple[Rule, ...]:
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    at = ATTENTION
    return (
        Rule(at + "q_proj.weight", f"{_QUERIES}, hidden", "attention", when="!q_lora_rank"),
        Rule(at + "q_a_proj.weight", "q_rank, hidden", "attention", when="q_lora_rank"),
        Rule(at + "q_a_proj.bias", "q_rank", "attention", when="q_lora_rank attention_bias"),
        gain(at + "q_a_layernorm", INSIDE, "q_rank", "attention", when="q_lora_rank"),
        Rule(at + "q_b_proj.weight", f"{_QUERIES}, q_rank", "attention", when="q_lora_rank"),
        Rule(at + "kv_a_proj_with_mqa.weight", "kv_rank + rope_dim, hidden", "attention"),
        Rule(at + "kv_a_proj_with_mqa.bias", "kv_rank + rope_dim", "attention", when="attention_bias"),
        gain(at + "kv_a_layernorm", INSIDE, "kv_rank", "attention"),
        Rule(at + "kv_b_proj.weight", "query_head*(nope_dim + v_head_dim), kv_rank", "attention"),
        Rule(at + "o_proj.weight", "hidden, query_head*v_head_dim", "attention"),
        Rule(at + "o_proj.bias", "hidden", "attention", when="attention_bias"),
    )


LATENT = Cache(
    "kv_rank + rope_dim",
    attends="query_head*(kv_rank + rope_dim) + query_head*kv_rank",
    called="attention layers",
)
"""What a layer keeps: the latent and the keys' rotary part, which all heads share."""

_MEET = "the two parts of a query are scaled together"

LATENT_AXES = (
    Axis("kv_rank", "KV rank", ("kv_lora_rank",)),
    Axis("q_rank", "query rank", ("q_lora_rank",)),
    Axis("nope_dim", "head width without position", ("qk_nope_head_dim",), fixed=_MEET),
    Axis("rope_dim", "rotary head width", ("qk_rope_head_dim",), fixed=_MEET),
)


def shared_experts(counted_by: str) -> dict[str, Any]:
    """The row of shared experts that are so many times as wide as a routed one."""
    return {
        "keys": (),
        "follows": "expert_ffn",
        "default": lambda config: (
            number_of(config, "moe_intermediate_size") * number_of(config, counted_by, 1, least=1)
        ),
    }


def _mixtures(config: Config) -> str:
    """The first first_k_dense_replace layers have no experts."""
    dense = number_of(config, "first_k_dense_replace", 3)
    return "".join("-" if layer < dense else "E" for layer in range(layer_count(config)))


def _dense_layers(config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The dense layers come first, and so do those of them that stay."""
    dense = _mixtures(config).count("-")
    config["first_k_dense_replace"] = sum(layer < dense for layer in kept)


_ROUTER_BIAS = Rule(MLP + "gate.e_score_correction_bias", "expert", "moe_router", router=True)

DEEPSEEK_V3 = mixture_decoder(
    "deepseek_v3",
    moe=pre_norm(
        _latent_attention(),
        (
            *routed_experts(),
            _ROUTER_BIAS,
            *gated_mlp(MLP + "shared_experts.", axis="shared_ffn", component="moe_shared"),
        ),
    ),
    dense=pre_norm(_latent_attention(), gated_mlp()),
    layout=_mixtures,
    edit=_dense_layers,
    cache=LATENT,
    axes=rows(
        *("hidden", "vocab", "ffn", "expert_ffn"),
        query_head={"keys": ("num_attention_heads", "num_key_value_heads"), "group": ""},
        v_head_dim={"keys": ("v_head_dim",), "default": 128, "linear": False},
        expert={"keys": ("n_routed_experts", "num_local_experts"), "equal_groups_key": "n_group"},
        shared_ffn=shared_experts("n_shared_experts"),
        extra=LATENT_AXES,
    ),
    defaults={"num_experts_per_tok": 8, "n_group": 8, "q_lora_rank": 1536},
    summary="latent attention, mixture of experts with shared ones (DeepSeek-V3 in bf16)",
)
