"""OLMoE and FlexOlmo: rotary attention whose queries and keys are normalised over all heads at once, and a mixture of
experts in every layer."""

from minitron.model.axes import rows
from minitron.model.families.decoders import INSIDE, attention, mixture_decoder, post_norm, pre_norm, routed_experts

_ATTENTION = attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE, norms_over_heads=True)

OLMOE = mixture_decoder(
    "olmoe",
    moe=pre_norm(_ATTENTION, routed_experts()),
    axes=rows(
        *("hidden", "vocab", "query_head", "kv_head", "head_dim"),
        expert={"keys": ("num_experts", "num_local_experts"), "default": 64},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    # transformers takes the width of the norms over heads from hidden_size: a cut of one is a cut of the other.
    equal=(("query_head*head_dim", "hidden"),),
    defaults={"num_experts_per_tok": 8},
    summary="attention normalised over all heads, mixture of experts (OLMoE)",
)

FLEX_OLMO = mixture_decoder(
    "flex_olmo",
    moe=post_norm(_ATTENTION, routed_experts()),
    axes=rows(
        *("hidden", "vocab", "query_head", "kv_head", "head_dim"),
        expert={"default": 7},
        expert_ffn={"keys": ("intermediate_size",)},
    ),
    defaults={"num_experts_per_tok": 5},
    summary="as OLMo 2, with a mixture of experts (FlexOlmo)",
)
