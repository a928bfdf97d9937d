"""Mixtral and those that took over its names: rotary attention and a mixture of experts in every layer, whose modules
transformers renames in memory."""

from minitron.model.axes import rows
from minitron.model.families.decoders import INSIDE, LAYER, MLP, attention, mixture_decoder, pre_norm, routed_experts
from minitron.model.families.family import Rule

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
