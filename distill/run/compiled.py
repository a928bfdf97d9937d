"""Layers compiled by torch.compile: norms, activations and casts fused into one pass, with fewer activations kept for
the backward pass.  Only training steps run compiled layers; measurements run the model uncompiled.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch._functorch.config
from transformers import PreTrainedModel

from minitron.errors import MinitronError
from minitron.model.backbone import backbone

_BUDGET: Final = 0.9
"""Of the activations that a compiled layer would store for the backward pass: below it, recomputing costs time
(benchmarks/RESULTS.md)."""

_COMPILERS: Final = ("g++", "clang++")


class Compiled:
    """The layers of some models, compiled where that is switched on."""

    def __init__(self, models: Iterable[PreTrainedModel]) -> None:
        """Each layer is compiled when it first runs, for every shape anew: a run that goes on computes what it would
        have."""
        self._on = False
        layers = [layer for model in models if _can_be(model) for layer in backbone(model).layers]
        # All layers of a kind share one function, and each of them counts as another version of it.
        limit = 8 + 4 * len(layers)
        if layers:
            torch._functorch.config.activation_memory_budget = _BUDGET
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, limit)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * limit)
        for layer in layers:
            layer.forward = self._either(layer.forward)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Compiled until the block ends."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _either(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        fast: Callable[..., Any] = torch.compile(plain, dynamic=False)

        def forward(*given: Any, **named: Any) -> Any:
            return (fast if self._on else plain)(*given, **named)

        return forward


def require_compiler(device: torch.device) -> None:
    """Raise MinitronError where torch.compile finds no compiler for a CPU; for a GPU it brings its own."""
    if device.type != "cpu":
        return
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else _COMPILERS)):
        raise MinitronError(
            f"--compile needs a C++ compiler, {wanted or ' or '.join(_COMPILERS)}; install one or drop --compile."
        )


def _can_be(model: PreTrainedModel) -> bool:
    """Weights in FP8 come and go with hooks, which a compiled layer would not see."""
    plain = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return all(parameter.dtype in plain for parameter in model.parameters())
