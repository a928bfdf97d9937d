"""A linear layer whose matmul runs in FP8: E4M3 weights with a scale an output channel, inputs with a scale a token.

Numerics are tested on a CPU, which multiplies the same numbers slowly, and on an H100.

Shape letters: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor, nn

from distill.teacher.e4m3 import quantise

_MULTIPLE: Final = 16
"""Of both features, for the FP8 matmuls of a GPU."""

_CAPABILITY: Final = (8, 9)
"""The first GPUs with FP8: Ada; then Hopper."""


def multiplies_in_fp8(linear: nn.Linear) -> bool:
    """Whether the device of `linear` has FP8 matmuls for its sizes."""
    device = linear.weight.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY:
        return False
    return takes_sizes(linear)


def takes_sizes(linear: nn.Linear) -> bool:
    """Whether FP8 matmuls can have the features of `linear`."""
    return not (linear.in_features | linear.out_features) % _MULTIPLE


@cache
def _fused() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`quantise` in one pass over its input, where Triton is there: one operation after the other takes as long as the
    product saves (benchmarks/RESULTS.md)."""
    return torch.compile(quantise, dynamic=True) if find_spec("triton") is not None else quantise


class Fp8Linear(nn.Module):
    """In the place of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        """Takes the weight [O, I] and the bias of `linear`."""
        super().__init__()
        numbers, scale = quantise(linear.weight.detach())
        self.weight_fp8 = nn.Parameter(numbers, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        # Its first factor goes by rows, its second by columns; scales are contiguous.
        fused = states.is_cuda and not torch.compiler.is_compiling()
        numbers, scale = (_fused() if fused else quantise)(states.flatten(0, -2).contiguous())
        product = torch._scaled_mm(
            numbers,
            self.weight_fp8.t(),
            scale_a=scale,
            scale_b=self.weight_scale.t().contiguous(),
            out_dtype=torch.bfloat16,
        )
        if self.bias is not None:
            product = product + self.bias
        return product.view(*states.shape[:-1], -1).to(states.dtype)
