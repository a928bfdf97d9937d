"""A model's large weights kept in FP8 E4M3, one scale an output channel, and made bf16 while their layer runs.

Shape letters: O output channels, I input channels, E experts.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

E4M3: Final = torch.float8_e4m3fn
E4M3_LARGEST: Final = 448.0
"""The largest finite E4M3 number (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""

_ATTENTION: Final = ("q_proj", "qkv_proj")
"""Linears by which a module is known as attention: it alone makes queries."""

_ROUTERS: Final = ("gate", "router")
"""Names of a router that is a linear layer; in a gated MLP the linear is called gate_proj."""


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


def store_in_fp8(model: PreTrainedModel) -> list[str]:
    """Replace the weights of `fp8_weights` in place, one at a time; returns their names.

    A layer's bf16 weight exists while the layer's forward runs and at no other time."""
    stored = []
    for name, module, weight in list(fp8_weights(model)):
        numbers, scale = quantise(getattr(module, weight).detach())
        delattr(module, weight)
        module.register_parameter(f"{weight}_fp8", nn.Parameter(numbers, requires_grad=False))
        module.register_parameter(f"{weight}_scale", nn.Parameter(scale, requires_grad=False))
        module.register_forward_pre_hook(_Materialise(weight))
        module.register_forward_hook(_Forget(weight), always_call=True)
        stored.append(f"{name}.{weight}")
    return stored


class _Materialise:
    """Gives a layer its bf16 weight before it runs."""

    def __init__(self, weight: str) -> None:
        self.weight = weight

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        numbers, scale = getattr(module, f"{self.weight}_fp8"), getattr(module, f"{self.weight}_scale")
        setattr(module, self.weight, dequantise(numbers, scale))


class _Forget:
    """Takes it away after."""

    def __init__(self, weight: str) -> None:
        self.weight = weight

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        # Absent where another hook failed before ours ran.
        if hasattr(module, self.weight):
            delattr(module, self.weight)


def fp8_weights(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str]]:
    """(module's name, module, weight's name) of what goes to FP8: linears, and the fused weights of experts [E, O, I].

    What stays as it is: embedding, output layer, router, conv1d, norms, attention and the linears of the last Mamba
    layer before each attention layer, on which attention is most sensitive (the choice of NVIDIA's FP8 checkpoints of
    Nemotron 3 Nano)."""
    kept = {id(module) for module in _kept_modules(model)}
    for name, module in model.named_modules():
        if id(module) in kept or name.rpartition(".")[2] in _ROUTERS:
            continue
        if isinstance(module, nn.Linear):
            yield name, module, "weight"
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for weight, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    yield name, module, weight


def _kept_modules(model: PreTrainedModel) -> Iterator[nn.Module]:
    yield model.get_output_embeddings()
    mamba: list[nn.Module] = []
    for layer in model.base_model.layers:
        attention = [module for module in layer.modules() if any(hasattr(module, name) for name in _ATTENTION)]
        for module in attention + (mamba if attention else []):
            yield from module.modules()
        mamba = [module for module in layer.modules() if hasattr(module, "conv1d")] or mamba


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())
