"""What the tests of the planner plan: published configs, a tiny hybrid without weights, scores out of thin air."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from family_sizes.base import HYBRID_SIZES, LAYERS, PATTERN

from minitron.cut.scores import Scores
from minitron.memory.budget import Budget
from minitron.memory.gpus import find_gpu
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec, read_spec, spec_of
from minitron.units import GiB

MODELS = Path(__file__).parent / "reference" / "models"
LONG = 128 * 1024
WORKLOAD = Workload(64, 2, "fp32", "fp32", "fp32", "fp32")
AMPLE = Budget(GiB)

# NVIDIA's choice for Nemotron Nano 2: hidden x ffn / hidden x Mamba heads, 27 points at 56 layers.
NANO_2 = {
    "hidden_size": "4480,4800,5120",
    "mamba_num_heads": "112,120,128",
    "intermediate_size": "3x,3.5x,4x",
}


def published(name: str) -> ModelSpec:
    return read_spec(MODELS / f"{name}.json")


def nano_12b() -> ModelSpec:
    return published("Nemotron-Nano-12B-v2")


def tiny(pattern: str = PATTERN, **sizes: Any) -> ModelSpec:
    words = [LAYERS[letter] for letter in pattern]
    return spec_of({"model_type": "nemotron_h", "layers_block_type": words} | HYBRID_SIZES | sizes)


def a10g(workspace: int) -> Budget:
    return Budget(find_gpu("A10G").usable, 0.95, round(1.3 * GiB), workspace, find_gpu("A10G"))


def random_scores(spec: ModelSpec, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    size = Counter(spec.sizes)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "mamba": {"mamba_channel": (size["mamba_head"], size["mamba_head_dim"])},
        "attention": {"query_head": (size["query_head"],)},
        "mlp": {"ffn": (size["ffn"],)},
        "moe": {
            "expert": (size["expert"],),
            "expert_ffn": (size["expert"], size["expert_ffn"]),
            "shared_ffn": (size["shared_ffn"],),
        },
    }
    importance: dict[Any, Any] = {
        ("hidden", None): rng.random(size["hidden"]),
        ("layer", None): rng.random(len(spec.layers)),
    }
    for layer, kind in enumerate(spec.layers):
        importance |= {(axis, layer): rng.random(shape) ** 2 for axis, shape in shapes[kind].items()}
    return Scores(importance, {}, spec.fingerprint, "")


def left(spec: ModelSpec, kept: tuple[int, ...]) -> str:
    return "".join(spec.letters[layer] for layer in kept)
