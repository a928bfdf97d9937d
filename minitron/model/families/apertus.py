"""Apertus: rotary attention with normalised heads and an MLP without a gate, whose activation function is learned."""

from minitron.model.axes import rows
from minitron.model.families.decoders import BEFORE, INSIDE, LAYER, MLP, attention, gain, plain_mlp, rotary_decoder
from minitron.model.families.family import Rule


def _xielu(at: str) -> tuple[Rule, ...]:
    """xIELU (Huang and Schlag 2024, arXiv 2411.13010): two learned slopes and two constants, which checkpoints hold."""
    learned = [Rule(f"{at}alpha_{side}", "1", "mlp", when="hidden_act=xielu") for side in "pn"]
    constants = [Rule(f"{at}{name}", "", "mlp", when="hidden_act=xielu") for name in ("beta", "eps")]
    return (*learned, *constants)


APERTUS = rotary_decoder(
    "apertus",
    layer=(
        gain(LAYER + "attention_layernorm", BEFORE),
        *attention(bias="attention_bias", output_bias="attention_bias", head_norms=INSIDE),
        gain(LAYER + "feedforward_layernorm", BEFORE),
        *plain_mlp(),
        *_xielu(MLP + "act_fn."),
    ),
    axes=rows("hidden", "vocab", "ffn", "query_head", "kv_head", "head_dim"),
    defaults={"hidden_act": "xielu"},
    summary="attention with normalised heads and MLP with a learned activation function (Apertus)",
)
