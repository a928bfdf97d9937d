"""Mamba-2 mixers (Dao and Gu 2024, arXiv 2405.21060): the tensors of one, and what a layer keeps."""

from __future__ import annotations

from typing import Final

from minitron.model.families.decoders import gain
from minitron.model.families.family import Cache, Norm, Rule

X: Final = "mamba_head*mamba_head_dim"
BC: Final = "mamba_group*ssm_state"

IN_PROJ: Final = f"{X} + {X} + {BC} + {BC} + mamba_head"
"""in_proj stacks the gate z, then x, B and C, then one time step a head."""

CONV: Final = f"{X} + {BC} + {BC}"

STATES: Final = Cache(
    conv_channels=CONV,
    conv_taps="conv_kernel",
    state="mamba_head*mamba_head_dim*ssm_state",
    scans=f"{X} + {BC}",
    called="Mamba layers",
)
"""What a layer keeps between tokens."""


def mamba2(at: str, *, norm: Norm | None, bias: str, conv_bias: str) -> tuple[Rule, ...]:
    """The tensors of a mixer under the prefix `at`; `norm` is that of its output, before out_proj."""
    norms = () if norm is None else (gain(at + "norm", norm, X, "ssm"),)
    return (
        Rule(at + "in_proj.weight", f"{IN_PROJ}, hidden", "ssm", scan_input=1),
        Rule(at + "in_proj.bias", IN_PROJ, "ssm", when=bias),
        Rule(at + "conv1d.weight", f"{CONV}, 1, conv_kernel", "ssm"),
        Rule(at + "conv1d.bias", CONV, "ssm", when=conv_bias),
        Rule(at + "A_log", "mamba_head", "ssm"),
        Rule(at + "D", "mamba_head", "ssm"),
        Rule(at + "dt_bias", "mamba_head", "ssm"),
        *norms,
        Rule(at + "out_proj.weight", f"hidden, {X}", "ssm"),
        Rule(at + "out_proj.bias", "hidden", "ssm", when=bias),
    )
