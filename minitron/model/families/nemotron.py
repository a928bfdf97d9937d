"""Minitron and Nemotron-4: rotary attention and an MLP without a gate, between LayerNorms whose tensors hold the gain
less one."""

from minitron.model.families.decoders import LAYER, attention, gain, outside, plain_mlp, rotary_decoder
from minitron.model.families.family import Norm, Rule

_BEFORE = Norm("before", kind="layer", plus_one=True)
_FINAL = Norm("final", kind="layer", plus_one=True)


def _norm(name: str) -> tuple[Rule, ...]:
    return (gain(name, _BEFORE), Rule(f"{name}.bias", "hidden", "norm"))


NEMOTRON = rotary_decoder(
    "nemotron",
    layer=(
        *_norm(LAYER + "input_layernorm"),
        *attention(bias="attention_bias", output_bias="attention_bias"),
        *_norm(LAYER + "post_attention_layernorm"),
        *plain_mlp(bias="mlp_bias"),
    ),
    model=(*outside(_FINAL), Rule("model.norm.bias", "hidden", "norm")),
    summary="attention and MLP without a gate, LayerNorm (Minitron-4B and 8B, Nemotron-4)",
)
