"""Phi-3 and Phi-4: rotary attention and a gated MLP whose projections stand in one tensor each."""

from minitron.model.families.decoders import ATTENTION, KEYS, QUERIES, joined_gated_mlp, pre_norm, rotary_decoder
from minitron.model.families.family import Rule

PHI3 = rotary_decoder(
    "phi3",
    layer=pre_norm(
        (
            Rule(ATTENTION + "qkv_proj.weight", f"{QUERIES} + {KEYS} + {KEYS}, hidden", "attention"),
            Rule(ATTENTION + "o_proj.weight", f"hidden, {QUERIES}", "attention"),
        ),
        joined_gated_mlp(),
    ),
    window="sliding_window",
    summary="attention and gated MLP with joined projections (Phi-3, Phi-4)",
)
