"""FP8 matmuls by Transformer Engine, where a GPU has it.  Written to its documentation and not yet run on a GPU: it is
used where it is asked for by name (`--teacher-precision fp8-te`) and never by default.
"""

from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minitron.errors import MinitronError

_MULTIPLE: Final = 16
"""Both features of an FP8 matmul are multiples of this; of its rows half as many."""


def transformer_engine(device: torch.device) -> ModuleType | None:
    """`transformer_engine.pytorch`, or None where it is absent, broken or the device has no FP8."""
    if device.type != "cuda":
        return None
    try:
        import transformer_engine.pytorch as engine
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        available, _ = FP8GlobalStateManager.is_fp8_available()
    except Exception:  # noqa: BLE001 -- without CUDA libraries its import raises RuntimeError, FileNotFoundError, OSError
        return None
    module: ModuleType = engine
    return module if available else None


def require_engine(device: torch.device) -> ModuleType:
    """`transformer_engine`'s module; raises MinitronError where there is none."""
    engine = transformer_engine(device)
    if engine is None:
        raise MinitronError(
            "--teacher-precision fp8-te needs Transformer Engine and a GPU with FP8, and one of them "
            "is missing; use --teacher-precision fp8, which runs everywhere."
        )
    return engine


class EngineLinear(nn.Module):
    """A linear layer whose weight and input are FP8."""

    def __init__(self, engine: Any, linear: nn.Linear) -> None:
        super().__init__()
        self.engine = engine
        with engine.fp8_model_init(enabled=True), torch.no_grad():
            self.layer = engine.Linear(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                params_dtype=linear.weight.dtype,
                device=linear.weight.device,
            )
            self.layer.weight.copy_(linear.weight)
            if linear.bias is not None:
                self.layer.bias.copy_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        flat = states.flatten(0, -2)
        missing = -flat.shape[0] % (_MULTIPLE // 2)
        with self.engine.fp8_autocast(enabled=True):
            out: Tensor = self.layer(nn.functional.pad(flat, (0, 0, 0, missing)))
        return out[: flat.shape[0]].reshape(*states.shape[:-1], -1)


def use_transformer_engine(model: PreTrainedModel, name: str, weight: str) -> bool:
    """Replace in place the linear `name` if Transformer Engine takes its sizes; returns whether it did.

    Experts, whose weights are fused, keep bf16.  Raises MinitronError where there is no Transformer Engine to use."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear) or (module.in_features | module.out_features) % _MULTIPLE:
        return False
    model.set_submodule(name, EngineLinear(require_engine(module.weight.device), module))
    return True
