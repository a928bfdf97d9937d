"""DeepSeek-V2 and V3: attention over a latent that stands for the keys and values of all heads, and a mixture of
experts with shared ones in all but the first layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from minitron.model.axes import Axis, Config, number_of, rows
from minitron.model.families.decoders import (
    ATTENTION,
    EXPERTS_IN_GROUPS,
    INSIDE,
    LAYERS_BEHIND,
    MLP,
    gain,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Cache, Rule
from minitron.model.families.layer_lists import layer_count
from minitron.model.steps import UNSCORED

_QUERIES = "query_head*(nope_dim + rope_dim)"


def latent_attention() -> tuple[Rule, ...]:
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
    Axis("kv_rank", "KV rank", ("kv_lora_rank",), scored_at_input=True),
    Axis("q_rank", "query rank", ("q_lora_rank",), scored_at_input=True),
    Axis("nope_dim", "head width without position", ("qk_nope_head_dim",), fixed=_MEET),
    Axis("rope_dim", "rotary head width", ("qk_rope_head_dim",), fixed=_MEET),
)


def shared_experts(counted_by: str, count: int = 1) -> dict[str, Any]:
    """The row of shared experts that are so many times as wide as a routed one; `count` where the config does not
    say."""
    return {
        "keys": (),
        "follows": "expert_ffn",
        "default": lambda config: (
            number_of(config, "moe_intermediate_size") * number_of(config, counted_by, count, least=1)
        ),
    }


def dense_first(config: Config, count: int = 0) -> str:
    """The first first_k_dense_replace layers have no experts; `count` of them where the config does not say."""
    dense = number_of(config, "first_k_dense_replace", count)
    return "".join("-" if layer < dense else "E" for layer in range(layer_count(config)))


def say_dense_first(layout: Callable[[Config], str], config: dict[str, Any], kept: tuple[int, ...]) -> None:
    """The dense layers come first, and so do those of them that stay."""
    letters = layout(config)
    config["first_k_dense_replace"] = sum(letters[layer] == "-" for layer in kept)


ROUTER_BIAS: Final = Rule(MLP + "gate.e_score_correction_bias", "expert", "moe_router", router=True)


def shared_mlp(bias: str | None = None) -> tuple[Rule, ...]:
    """The experts of all tokens, joined to one MLP."""
    return gated_mlp(MLP + "shared_experts.", axis="shared_ffn", component="moe_shared", bias=bias)


LATENT_HEADS: Final[dict[str, dict[str, Any]]] = {
    "query_head": {"keys": ("num_attention_heads",), "repeats": ("num_key_value_heads",), "group": ""},
    # Behind positions on one side and the latent on the other: no basis and no score.
    "v_head_dim": {"keys": ("v_head_dim",), "linear": False, "step": UNSCORED},
}
"""The rows of heads that have keys and values each, made from the latent."""

_V2_LAYERS = partial(dense_first, count=0)

DEEPSEEK_V2 = mixture_decoder(
    "deepseek_v2",
    moe=pre_norm(latent_attention(), (*routed_experts(), *shared_mlp("mlp_bias"))),
    dense=pre_norm(latent_attention(), gated_mlp(bias="mlp_bias")),
    layout=_V2_LAYERS,
    edit=partial(say_dense_first, _V2_LAYERS),
    cache=LATENT,
    axes=rows(
        *("vocab", "ffn", "expert_ffn"),
        hidden={"multiple_of": "query_head"},
        query_head=LATENT_HEADS["query_head"],
        v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": 128},
        expert=EXPERTS_IN_GROUPS | {"keys": ("n_routed_experts", "num_experts"), "default": 64, "least_in_group": 1},
        shared_ffn=shared_experts("n_shared_experts", 2),
        extra=LATENT_AXES,
    ),
    defaults={"q_lora_rank": 1536, "topk_method": "greedy"},
    known={"topk_method": ("greedy", "group_limited_greedy")},
    summary="latent attention, mixture of experts with shared ones (DeepSeek-V2, V2-Lite and Coder-V2)",
)

_V3_LAYERS = partial(dense_first, count=3)

DEEPSEEK_V3 = mixture_decoder(
    "deepseek_v3",
    moe=pre_norm(latent_attention(), (*routed_experts(), ROUTER_BIAS, *shared_mlp())),
    dense=pre_norm(latent_attention(), gated_mlp()),
    layout=_V3_LAYERS,
    edit=partial(say_dense_first, _V3_LAYERS),
    cache=LATENT,
    axes=rows(
        *("hidden", "vocab", "ffn", "expert_ffn"),
        query_head=LATENT_HEADS["query_head"],
        v_head_dim=LATENT_HEADS["v_head_dim"] | {"default": 128},
        expert=EXPERTS_IN_GROUPS,
        shared_ffn=shared_experts("n_shared_experts", 1),
        extra=LATENT_AXES,
    ),
    defaults={
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "q_lora_rank": 1536,
        "num_nextn_predict_layers": 1,
    },
    extras=(LAYERS_BEHIND,),
    summary="latent attention, mixture of experts with shared ones (DeepSeek-V3 and R1 in bf16)",
)
