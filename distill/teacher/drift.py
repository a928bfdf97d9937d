"""Drift of a quantised teacher: its KL from the same teacher in bf16, and the layers that cause it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.teacher.e4m3 import dequantise, quantise
from distill.teacher.fp8 import fp8_weights
from distill.teacher.kept import Kept
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import LayerwiseModel
from minitron.model.spec import read_spec
from minitron.model.tensor_map import held
from minitron.progress import Progress, silent

DRIFT_LIMIT: Final = 0.01
"""Nats: above it, or above DRIFT_SHARE of the student's own distance, the layers that drift most are named."""

DRIFT_SHARE: Final = 0.1


@dataclass(frozen=True)
class Drift:
    """How far a teacher's predictions are from those of the same teacher in bf16."""

    kl: float
    """Mean KL(bf16 || this) over tokens, in nats."""

    top1_agreement: float
    """Share of the tokens, from 0 to 1, after which both like the same next token best."""

    perplexity: float
    """This teacher's, on the same text."""

    tokens: int
    """Tokens measured on."""

    weights: int
    """Weights that are not kept in bf16."""

    stored_bytes: int
    """Bytes of the model as it is kept."""

    bf16_bytes: int
    """Bytes of the model in bf16."""


def is_large(drift: Drift, distance: float) -> bool:
    """Whether a layer or two had better stay in bf16, for a student at a KL of `distance`."""
    return drift.kl > DRIFT_LIMIT or drift.kl > DRIFT_SHARE * distance


def warning(drift: Drift, distance: float, found: dict[int, float], keep: Kept) -> str:
    """What to tell of a large drift: its share of the student's distance and, of the change by layer (`drift_by_layer`;
    may be empty), the fewest layers that make up half."""
    share = f"Warning: the teacher's drift is {drift.kl / max(distance, 1e-12):.1%} of the student's KL."
    if not found:
        return share
    order = sorted(found, key=lambda layer: -found[layer])
    shares = np.cumsum([found[layer] for layer in order]) / max(sum(found.values()), 1e-30)
    worst = order[: int(np.searchsorted(shares, 0.5)) + 1]
    better = replace(keep, layers=keep.layers | frozenset(worst))
    return (
        f"{share} Layers {', '.join(map(str, sorted(worst)))} cause {shares[len(worst) - 1]:.0%} of "
        f"the drift; keep them in bf16 with --fp8-keep {better}."
    )


@torch.inference_mode()
def drift_by_layer(
    folder: Path,
    *,
    keep: Kept,
    device: torch.device,
    blocks: NDArray[np.int64],
    batch_size: int = 1,
    progress: Progress = silent,
) -> dict[int, float]:
    """layer -> how much FP8 changes what it puts out: sum over tokens of |change|^2 / |output|^2, its input the bf16
    model's.  Only layers that are not kept in bf16.  Raises MinitronError for a family without a table."""
    source = LayerwiseModel(folder, read_spec(folder), dtype=torch.bfloat16, device=device)
    walk = LayerByLayer(source, blocks, batch_size, States())
    weights: dict[int, list[tuple[str, str]]] = {}
    layers = {one.name: one.expected[0].index.get("layer", -1) for one in held(source.spec)}
    for name, _, weight in fp8_weights(source.model, keep, source.spec):
        weights.setdefault(layers[f"{name}.{weight}"], []).append((name, weight))
    found: dict[int, float] = {}
    count = len(source.spec.layers)
    with progress("finding the layers that drift", float(blocks.size * count), "tokens") as advance:
        for layer in range(count):
            with source.resident(layer):
                inputs = [walk.state(batch) for batch in walk.batches] if layer in weights else []
                for _, tokens in walk.go(layer):
                    advance(tokens, f"layer {layer + 1} of {count}")
                for name, weight in weights.get(layer, []):
                    parameter = source.model.get_submodule(name).get_parameter(weight)
                    parameter.copy_(dequantise(*quantise(parameter)))
                if layer in weights:
                    found[layer] = sum(
                        _change(walk.state(batch), walk.step(layer, batch, inputs[batch])) for batch in walk.batches
                    )
    return found


def _change(before: Tensor, after: Tensor) -> float:
    difference = (after.float() - before.float()).square().sum(-1)
    return float((difference / before.float().square().sum(-1).clamp_min(1e-20)).double().sum())
