"""Llama 2 and 3, SmolLM2, Mistral, Arcee: rotary attention and an MLP, gated but for Arcee's, in every layer."""

from minitron.model.axes import rows
from minitron.model.families.decoders import attention, gated_mlp, plain_mlp, pre_norm, rotary_decoder

_DECODER = "attention and gated MLP, tied or untied embeddings"

# LlamaConfig and ArceeConfig insist on whole heads in hidden_size even where head_dim is given and nothing needs it.
_AXES = rows("vocab", "ffn", "query_head", "kv_head", "head_dim", hidden={"multiple_of": "query_head"})

LLAMA = rotary_decoder(
    "llama",
    layer=pre_norm(attention(bias="attention_bias", output_bias="attention_bias"), gated_mlp(bias="mlp_bias")),
    axes=_AXES,
    summary=f"{_DECODER} (Llama 2 and 3, SmolLM2)",
)

ARCEE = rotary_decoder(
    "arcee",
    layer=pre_norm(attention(bias="attention_bias", output_bias="attention_bias"), plain_mlp(bias="mlp_bias")),
    axes=_AXES,
    summary="attention and MLP without a gate (Arcee's AFM-4.5B)",
)

MISTRAL = rotary_decoder(
    "mistral",
    layer=pre_norm(attention(), gated_mlp()),
    window="sliding_window",
    axes=rows("hidden", "vocab", "ffn", "query_head", "head_dim", kv_head={"default": 8}),
    defaults={"sliding_window": 4096},
    summary=f"{_DECODER}, a sliding window where the config sets one (Mistral)",
)
