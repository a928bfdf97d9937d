"""HunYuan v1: rotary attention with normalised heads, and a gated MLP or a mixture of experts with a shared one."""

from minitron.model.axes import rows
from minitron.model.families.decoders import INSIDE, attention, gated_mlp, pre_norm, rotary_decoder

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
