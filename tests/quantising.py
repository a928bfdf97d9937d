"""Quantised folders for tests, made from plain ones a tensor at a time."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

Pack = Callable[[str, Tensor], Mapping[str, Tensor]]
"""(name without `.weight`, a linear's weight) -> the tensors that stand for it, by what comes behind that name."""


def is_linear(name: str) -> bool:
    """A linear inside a block."""
    return name.endswith("_proj.weight")


def quantise_folder(
    source: Path,
    target: Path,
    pack: Pack,
    section: Mapping[str, Any] | None,
    *,
    wanted: Callable[[str], bool] = is_linear,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """A copy of `source` with every wanted tensor packed; `beside`: file name -> JSON document."""
    shutil.copytree(source, target)
    found: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if wanted(name):
            stem = name.removesuffix(".weight")
            found |= {stem + suffix: value.contiguous() for suffix, value in pack(stem, tensor).items()}
        else:
            found[name] = tensor
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    if section is not None:
        config["quantization_config"] = dict(section)
    (target / "config.json").write_text(json.dumps(config))
    for name, document in (beside or {}).items():
        (target / name).write_text(json.dumps(document))
    return target
