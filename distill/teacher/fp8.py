"""A model's large weights kept in FP8 E4M3, one scale an output channel; made bf16 while their layer runs, where it
cannot multiply in FP8.

Shape letters: O output channels, I input channels, E experts.
"""

from collections.abc import Iterator
from typing import Any, Final

from torch import nn
from transformers import PreTrainedModel

from distill.teacher.e4m3 import dequantise, quantise
from distill.teacher.fp8_linear import Fp8Linear, multiplies_in_fp8
from distill.teacher.kept import DEFAULT, Kept
from minitron.model.backbone import backbone
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import held

_ATTENTION: Final = ("q_proj", "qkv_proj")
"""Linears by which a module is known as attention: it alone makes queries."""

ROUTERS: Final = ("gate", "router")
"""Names of a router that is a linear layer; in a gated MLP the linear is called gate_proj."""


def store_in_fp8(model: PreTrainedModel, name: str, weight: str) -> bool:
    """Replace one weight of the module `name` in place.  A linear layer multiplies in FP8 where its device does; the
    bf16 weight of another exists while its forward runs and at no other time.  Returns whether it did, which is always.
    """
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear) and multiplies_in_fp8(module):
        model.set_submodule(name, Fp8Linear(module))
        return True
    numbers, scale = quantise(getattr(module, weight).detach())
    delattr(module, weight)
    module.register_parameter(f"{weight}_fp8", nn.Parameter(numbers, requires_grad=False))
    module.register_parameter(f"{weight}_scale", nn.Parameter(scale, requires_grad=False))
    module.register_forward_pre_hook(_Materialise(weight))
    module.register_forward_hook(_Forget(weight), always_call=True)
    return True


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


def fp8_weights(
    model: PreTrainedModel, keep: Kept = DEFAULT, spec: ModelSpec | None = None
) -> Iterator[tuple[str, nn.Module, str]]:
    """(module's name, module, weight's name) of what goes to FP8: linears and fused experts' [E, O, I].

    `spec` says which linears are attention, state space or a router; of a model of a family without a table, whose spec
    is None, that is guessed from the names of its modules."""
    if spec is not None:
        for name, weight in _named_weights(spec, keep):
            yield name, model.get_submodule(name), weight
        return
    kept = {id(module) for module in _kept_modules(model, keep)}
    for name, module in model.named_modules():
        if id(module) in kept or name.rpartition(".")[2] in ROUTERS:
            continue
        if isinstance(module, nn.Linear):
            yield name, module, "weight"
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for weight, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    yield name, module, weight


def _named_weights(spec: ModelSpec, keep: Kept) -> Iterator[tuple[str, str]]:
    """(module's name, weight's name) of what goes to FP8, by the family's table."""
    before = _before_attention(spec) if keep.before_attention else frozenset()
    for one in held(spec):
        rule, layer = one.expected[0].rule, one.expected[0].index.get("layer")
        stays = {
            "a tensor that no block multiplies with": not rule.is_projection or layer is None,
            "a layer by its number": layer in keep.layers,
            "attention": keep.attention and rule.component == "attention",
            "state space before attention": layer in before and rule.component == "ssm",
        }
        if not any(stays.values()):
            module, _, weight = one.name.rpartition(".")
            yield module, weight


def _before_attention(spec: ModelSpec) -> frozenset[int]:
    """The last layer with a state before each layer of attention."""
    found, last = set(), None
    for layer, kind in enumerate(spec.layers):
        cache = spec.cache(kind)
        if cache is not None and cache.keys_values and last is not None:
            found.add(last)
        if cache is not None and cache.keeps_state:
            last = layer
    return frozenset(found)


def _kept_modules(model: PreTrainedModel, keep: Kept) -> Iterator[nn.Module]:
    yield model.get_output_embeddings()
    mamba: list[nn.Module] = []
    for number, layer in enumerate(backbone(model).layers):
        if number in keep.layers:
            yield from layer.modules()
        attention = [module for module in layer.modules() if any(hasattr(module, name) for name in _ATTENTION)]
        before = mamba if attention and keep.before_attention else []
        for module in (attention if keep.attention else []) + before:
            yield from module.modules()
        mamba = [module for module in layer.modules() if hasattr(module, "conv1d")] or mamba


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())
