"""OLMo 2: rotary attention and a gated MLP that read the stream as it is and write to it through a norm."""

from minitron.model.families.decoders import INSIDE, attention, gated_mlp, post_norm, rotary_decoder

OLMO2 = rotary_decoder(
    "olmo2",
    layer=post_norm(
        attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE, norms_over_heads=True),
        gated_mlp(),
    ),
    summary="attention with queries and keys normalised over all heads and gated MLP, norms behind them (OLMo 2)",
)
