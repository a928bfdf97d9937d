"""HunYuan v1: rotary attention with normalised heads, and a gated MLP or a mixture of experts with a shared one."""

from minitron.model.axes import number_of, rows
from minitron.model.families.decoders import (
    INSIDE,
    MLP,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    rotary_decoder,
    routed_experts,
)
from minitron.model.families.family import Rule

_ATTENTION = attention(
    bias="attention_bias",
    output_bias="attention_bias",
    head_norms=INSIDE,
    names=("query_layernorm", "key_layernorm"),
)

# The configs leave an absent head_dim at null, and the models then cannot be built.
_HEAD_DIM = {"default": None, "null": None}

HUNYUAN_DENSE = rotary_decoder(
    "hunyuan_v1_dense",
    layer=pre_norm(_ATTENTION, gated_mlp()),
    axes=rows("hidden", "vocab", "ffn", "query_head", "kv_head", head_dim=_HEAD_DIM),
    summary="attention with normalised heads and gated MLP (Hunyuan 0.5B to 7B)",
)

_EXPERTS = (
    Rule(MLP + "gate.wg.weight", "expert, hidden", "moe_router", router=True),
    *(rule for rule in routed_experts() if not rule.router),
    *gated_mlp(MLP + "shared_mlp.", axis="shared_ffn", component="moe_shared"),
)

HUNYUAN_MOE = mixture_decoder(
    "hunyuan_v1_moe",
    moe=pre_norm(_ATTENTION, _EXPERTS),
    axes=rows(
        *("hidden", "vocab", "query_head", "kv_head"),
        head_dim=_HEAD_DIM,
        expert={"keys": ("num_experts", "num_local_experts"), "default": 1, "least_key": "moe_topk"},
        # transformers reads the first key, vLLM the second, which gives the width of every layer.
        expert_ffn={"keys": ("intermediate_size", "moe_intermediate_size")},
        shared_ffn={
            "keys": (),
            "follows": "expert_ffn",
            "default": lambda config: number_of(config, "intermediate_size"),
        },
    ),
    defaults={"moe_topk": 1},
    spellings={"num_experts_per_tok": "moe_topk"},
    summary="attention with normalised heads and mixture of experts with a shared one (Hunyuan-A13B)",
)
