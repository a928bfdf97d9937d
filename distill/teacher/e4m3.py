"""The FP8 format E4M3: matrices as its numbers and one fp32 scale a row.

Shape letters: O rows, output channels of a weight, I columns.
"""

from typing import Final

import torch
from torch import Tensor

E4M3: Final = torch.float8_e4m3fn
E4M3_LARGEST: Final = 448.0
"""The largest finite E4M3 number (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., O, I] -> E4M3 numbers of the same shape and fp32 scales [..., O, 1]: weight is about number * scale."""
    wide = weight.float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / E4M3_LARGEST
    # A channel of zeros has no scale of its own.  The cast to E4M3 makes NaN of what rounding put beyond the range.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (wide / scale).clamp_(-E4M3_LARGEST, E4M3_LARGEST).to(E4M3), scale


def dequantise(numbers: Tensor, scale: Tensor) -> Tensor:
    """The bf16 weight [..., O, I] of `quantise`'s result."""
    if numbers.device.type != "cpu":
        return numbers.to(torch.bfloat16).mul_(scale)
    # torch converts E4M3 on a CPU one number at a time; looking the 256 values up takes a quarter of that.
    values = torch.arange(256, dtype=torch.uint8).view(E4M3).to(torch.bfloat16)
    codes = numbers.view(torch.uint8).flatten().int()
    return values.index_select(0, codes).view(numbers.shape).mul_(scale.bfloat16())
