"""Quantised folders for tests, made from plain ones a tensor at a time."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny_models
from safetensors.torch import load_file, save_file
from torch import Tensor

Pack = Callable[[str, Tensor], Mapping[str, Tensor]]
"""(name without `.weight`, a linear's weight) -> the tensors that stand for it, by what comes behind that name."""


def is_linear(name: str) -> bool:
    """A linear inside a block."""
    return name.endswith("_proj.weight")


def save_wide_llama(folder: Path) -> Path:
    """A Llama whose hidden size 32 alone divides, of the groups of int4, and whose MLP 128 does."""
    return tiny_models.save_llama(
        folder,
        hidden_size=96,
        intermediate_size=128,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
    )


def save_wide_hybrid(folder: Path, pattern: str = "MEM*M") -> Path:
    """A hybrid with routed experts whose widths groups divide."""
    return tiny_models.save_hybrid(
        folder,
        pattern=pattern,
        hidden_size=64,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=64,
    )


def in_bf16(folder: Path) -> Path:
    """The same checkpoint with numbers that bf16 has, so that what stays as it is stays to the bit."""
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return folder


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
