"""HunYuan v1 and Hy 3: rotary attention with normalised heads, and a gated MLP or a mixture of experts with a shared
one."""

from dataclasses import replace

from minitron.model.axes import number_of, rows
from minitron.model.families.decoders import (
    INSIDE,
    LAYERS_BEHIND,
    MLP,
    attention,
    gated_mlp,
    mixture_decoder,
    pre_norm,
    rotary_decoder,
    routed_experts,
)
from minitron.model.families.deepseek import shared_experts
from minitron.model.families.family import Rule
from minitron.model.families.glm_moe import say_sparse_words, sparse_words

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

_HY3_ATTENTION = attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE)

_SHARED = gated_mlp(MLP + "shared_mlp.", axis="shared_ffn", component="moe_shared", bias="mlp_bias")

_HY3_EXPERTS = (
    Rule(MLP + "router.gate.weight", "expert, hidden", "moe_router", memory=MLP + "gate.weight", router=True),
    Rule(MLP + "expert_bias", "expert", "moe_router", memory=MLP + "e_score_correction_bias", router=True),
    *(rule for rule in routed_experts() if not rule.router),
    *(replace(rule, memory=rule.name.replace("shared_mlp", "shared_experts")) for rule in _SHARED),
)

HY3 = mixture_decoder(
    "hy_v3",
    moe=pre_norm(_HY3_ATTENTION, _HY3_EXPERTS),
    dense=pre_norm(_HY3_ATTENTION, gated_mlp(bias="mlp_bias")),
    layout=sparse_words,
    edit=say_sparse_words,
    axes=rows(
        *("hidden", "vocab", "ffn", "query_head", "expert_ffn"),
        kv_head={"default": 8},
        head_dim={"default": 128},
        expert={"keys": ("num_experts", "num_local_experts"), "default": 192},
        shared_ffn=shared_experts("num_shared_experts", 1),
    ),
    defaults={"num_experts_per_tok": 8},
    extras=(LAYERS_BEHIND,),
    summary="attention with normalised heads, mixture of experts with shared ones in all but the first layer (Hy3)",
)
