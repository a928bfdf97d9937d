"""Mixtral and those that took over its names: rotary attention and a mixture of experts in every layer, whose modules
transformers renames in memory."""

from dataclasses import replace

from minitron.model.axes import rows
from minitron.model.families.decoders import (
    INSIDE,
    LAYER,
    MLP,
    attention,
    gain,
    mixture_decoder,
    outside,
    pre_norm,
    routed_experts,
)
from minitron.model.families.family import Norm, Rule

ON_DISK = LAYER + "block_sparse_moe."
NAMES = ("w1", "w3", "w2")

MIXTRAL = mixture_decoder(
    "mixtral",
    moe=pre_norm(attention(), routed_experts(ON_DISK, names=NAMES)),
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "query_head", "head_dim"),
        kv_head={"default": 8},
        expert={"keys": ("num_local_experts", "num_experts"), "default": 8},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    defaults={"num_experts_per_tok": 2},
    summary="attention and mixture of experts (Mixtral 8x7B and 8x22B)",
)

_ROUTER_BIAS = Rule(
    ON_DISK + "e_score_correction_bias",
    "expert",
    "moe_router",
    memory=MLP + "e_score_correction_bias",
    router=True,
)

MINIMAX_M2 = mixture_decoder(
    "minimax_m2",
    moe=pre_norm(
        attention(head_norms=INSIDE, norms_over_heads=True),
        (*routed_experts(ON_DISK, names=NAMES), _ROUTER_BIAS),
    ),
    axes=rows(
        *("hidden", "vocab", "query_head"),
        kv_head={"default": 8},
        head_dim={"default": 128},
        expert={"keys": ("num_local_experts", "num_experts"), "default": 256},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    defaults={"num_experts_per_tok": 8},
    summary="attention normalised over all heads, mixture of experts (MiniMax-M2 in bf16)",
)


_BEFORE, _FINAL = Norm("before", kind="layer"), Norm("final", kind="layer")
_GATE, *_EXPERTS = routed_experts(ON_DISK, names=NAMES)


def _norm(name: str) -> tuple[Rule, ...]:
    return (gain(name, _BEFORE), Rule(f"{name}.bias", "hidden", "norm"))


PHI_MOE = mixture_decoder(
    "phimoe",
    model=(
        *outside(_FINAL),
        Rule("model.norm.bias", "hidden", "norm"),
        Rule("lm_head.bias", "vocab", "lm_head", when="lm_head_bias"),
    ),
    moe=(
        *_norm(LAYER + "input_layernorm"),
        *attention(bias="attention_bias", output_bias="attention_bias"),
        *_norm(LAYER + "post_attention_layernorm"),
        replace(_GATE, memory=MLP + "router.weight"),
        *_EXPERTS,
    ),
    window="sliding_window",
    axes=rows(
        *("hidden", "vocab", "query_head", "head_dim"),
        kv_head={"default": 8},
        expert={"keys": ("num_local_experts",), "default": 16, "least": 2},
        active_expert={"fixed": "its router takes the best and the best of the others, whatever the config says"},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    defaults={"num_experts_per_tok": 2},
    summary="attention and mixture of experts, LayerNorm (Phi-3.5-MoE)",
)
