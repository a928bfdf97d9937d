"""Seed-OSS: rotary attention, whose output has a bias of its own, and a gated MLP."""

from minitron.model.axes import rows
from minitron.model.families.decoders import attention, gated_mlp, pre_norm, rotary_decoder

SEED_OSS = rotary_decoder(
    "seed_oss",
    layer=pre_norm(attention(bias="attention_bias", output_bias="attention_out_bias"), gated_mlp(bias="mlp_bias")),
    axes=rows("hidden", "vocab", "ffn", "query_head", kv_head={"default": 8}, head_dim={"default": 128}),
    defaults={"attention_bias": True},
    summary="attention with biases and gated MLP (Seed-OSS)",
)
