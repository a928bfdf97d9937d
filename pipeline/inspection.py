"""Inspect: layers, sizes and parameters of a checkpoint, from config.json and the safetensors headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError

if TYPE_CHECKING:
    from minitron.model.spec import ModelSpec

_DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds."""

    spec: ModelSpec
    """Its layers, sizes and parameters."""

    mtp: int
    """Parameters of the multi-token-prediction block that is there."""

    extras: Mapping[str, int]
    """What stands beside the model's own tensors -> how many numbers: a copy of the embedding, a vision tower."""

    weight_bytes: int
    """Bytes of all tensors in the folder; of a config.json alone, those of all parameters in the config's dtype."""

    origin: str
    """A few words on where `weight_bytes` comes from."""

    def to_json(self) -> dict[str, Any]:
        """The document of the command."""
        parameters = self.spec.parameters()
        return {
            "model_type": self.spec.config["model_type"],
            "family": self.spec.family.name,
            "layers": self.spec.letters,
            "sizes": self.spec.sizes,
            "parameters": {
                "total": parameters.total,
                "active": parameters.active,
                "mtp": self.mtp,
                "by_component": parameters.by_component,
            },
            "extras": dict(self.extras),
            "weight_bytes": self.weight_bytes,
        }


def inspect(model: Path) -> Inspection:
    """What is in a checkpoint folder, or what a config.json says; reads no weights.

    Raises MinitronError where `model` is a folder whose safetensors headers do not fit its config.json."""
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import read_spec

    spec = read_spec(model)
    parameters = spec.parameters()
    if model.is_dir():
        checkpoint = Checkpoint(model)
        checkpoint.check(spec)
        # transformers drops the block when it saves a model, and its config.json goes on telling of it.
        extras: dict[str, int] = {}
        for name, extra in checkpoint.extras(spec).items():
            extras[extra.what] = extras.get(extra.what, 0) + checkpoint.headers[name].numel
        mtp = checkpoint.num_parameters - parameters.total - sum(extras.values())
        return Inspection(spec, mtp, extras, checkpoint.weight_bytes, "in the safetensors files")
    dtype = str(spec.config.get("dtype") or spec.config.get("torch_dtype") or "bfloat16")
    if dtype not in _DTYPE_BYTES:
        raise MinitronError(f"{model}: dtype is {dtype!r}; it must be one of {', '.join(_DTYPE_BYTES)}.")
    return Inspection(spec, parameters.mtp, {}, parameters.total * _DTYPE_BYTES[dtype], f"every parameter in {dtype}")
