"""Mixtral: rotary attention and a mixture of experts in every layer, whose modules transformers renames in memory."""

from minitron.model.axes import rows
from minitron.model.families.decoders import LAYER, MLP, attention, mixture_decoder, pre_norm, routed_experts

_ON_DISK = LAYER + "block_sparse_moe."

MIXTRAL = mixture_decoder(
    "mixtral",
    moe=pre_norm(attention(), routed_experts(_ON_DISK, memory=MLP, names=("w1", "w3", "w2"))),
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
