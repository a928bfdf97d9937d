"""Mamba-2 mixers (Dao and Gu 2024, arXiv 2405.21060) and those of the first Mamba (Gu and Dao 2023, arXiv 2312.00752):
the tensors of one, and what a layer keeps."""

from __future__ import annotations

from typing import Final

from minitron.model.families.decoders import INSIDE, gain
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
    checkpoints=1,
    called="Mamba layers",
)
"""What a layer keeps between tokens."""


def mamba2(
    at: str,
    *,
    norm: Norm | None,
    bias: str,
    conv_bias: str,
    output_bias: str | None = None,
    normalises: str = "",
) -> tuple[Rule, ...]:
    """The tensors of a mixer under the prefix `at`; `norm` is that of its output, before out_proj, where the config key
    `normalises` says so.  `output_bias` is out_proj's own key where it is not `bias`."""
    norms = () if norm is None else (gain(at + "norm", norm, X, "ssm", when=normalises),)
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
        Rule(at + "out_proj.bias", "hidden", "ssm", when=bias if output_bias is None else output_bias),
    )


STATES_1: Final = Cache(
    conv_channels="inner_channel",
    conv_taps="conv_kernel",
    state="inner_channel*ssm_state",
    called="Mamba layers",
)
"""What a layer of the first Mamba keeps between tokens."""


def mamba1(at: str, *, bias: str, conv_bias: str, norms: bool = False) -> tuple[Rule, ...]:
    """The tensors of a mixer of the first Mamba under the prefix `at`: every channel has a state and a time step of its
    own.  `norms` of time steps, B and C are Jamba's."""
    found = [
        # x, then the gate z.
        Rule(at + "in_proj.weight", "inner_channel + inner_channel, hidden", "ssm", scan_input=0),
        Rule(at + "in_proj.bias", "inner_channel + inner_channel", "ssm", when=bias),
        Rule(at + "conv1d.weight", "inner_channel, 1, conv_kernel", "ssm"),
        Rule(at + "conv1d.bias", "inner_channel", "ssm", when=conv_bias),
        # Time steps, B and C are made of x behind the convolution; out_proj reads what the scan made of it.
        Rule(at + "x_proj.weight", "time_step_rank + ssm_state + ssm_state, inner_channel", "ssm", inputs="convolved"),
        Rule(at + "dt_proj.weight", "inner_channel, time_step_rank", "ssm", called=False),
        Rule(at + "dt_proj.bias", "inner_channel", "ssm"),
        Rule(at + "A_log", "inner_channel, ssm_state", "ssm"),
        Rule(at + "D", "inner_channel", "ssm"),
        Rule(at + "out_proj.weight", "hidden, inner_channel", "ssm"),
        Rule(at + "out_proj.bias", "hidden", "ssm", when=bias),
    ]
    if norms:
        found += [
            gain(at + "dt_layernorm", INSIDE, "time_step_rank", "ssm"),
            gain(at + "b_layernorm", INSIDE, "ssm_state", "ssm"),
            gain(at + "c_layernorm", INSIDE, "ssm_state", "ssm"),
        ]
    return tuple(found)
