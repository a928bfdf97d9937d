"""GLM-4: rotary attention and a gated MLP with joined projections, with a norm before and, since 0414, behind each."""

from minitron.model.axes import rows
from minitron.model.families.decoders import (
    AFTER,
    BEFORE,
    LAYER,
    attention,
    gain,
    joined_gated_mlp,
    pre_norm,
    rotary_decoder,
)

_AXES = rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 2}, head_dim={"default": 128})

GLM = rotary_decoder(
    "glm",
    layer=pre_norm(attention(bias="attention_bias"), joined_gated_mlp()),
    axes=_AXES,
    defaults={"attention_bias": True},
    summary="attention with biases and gated MLP (GLM-4-9B, GLM-Edge)",
)

GLM4 = rotary_decoder(
    "glm4",
    layer=(
        gain(LAYER + "input_layernorm", BEFORE),
        *attention(bias="attention_bias"),
        gain(LAYER + "post_self_attn_layernorm", AFTER),
        gain(LAYER + "post_attention_layernorm", BEFORE),
        *joined_gated_mlp(),
        gain(LAYER + "post_mlp_layernorm", AFTER),
    ),
    axes=_AXES,
    defaults={"attention_bias": True},
    summary="attention with biases and gated MLP, norms on both sides of each (GLM-4-0414, GLM-Z1)",
)
