"""How large the inputs of every linear are over a text, layer by layer: what llama.cpp calls an importance matrix.

Shape letters: S sequences of T tokens; C inputs of a linear; E routed experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from importance.rounding.calibrated import BATCH_TOKENS
from importance.rounding.inputs import LayerInputs
from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS
from minitron.model.checkpoint import Checkpoint
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import LayerwiseModel
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp
from minitron.progress import Progress, silent
from minitron.quantise.assigned import Matrix, Unit


@torch.no_grad()
def input_squares(
    folder: Path,
    spec: ModelSpec,
    checkpoint: Checkpoint,
    blocks: NDArray[np.int64],
    device: torch.device,
    *,
    states: Path | None = None,
    progress: Progress = silent,
) -> dict[str, NDArray[np.float32]]:
    """Name of a linear's weight -> [C]: the mean of the squares of each input over the text `blocks` [S, T]; of routed
    experts [E, C] under their name without a number.

    The model is run in fp32, one layer in memory at a time; hidden states go into the folder `states`, or stay in
    memory.  An expert that no token was sent to counts as the mean of the others.  Raises MinitronError for a layer of
    experts that no token was sent to at all."""
    source = LayerwiseModel(folder, spec, dtype=torch.float32, device=device)
    size = max(1, BATCH_TOKENS // blocks.shape[1])
    walk = LayerByLayer(source, blocks, size, States(states))
    units: dict[int, list[Unit]] = {}
    for matrix in _linears(spec, checkpoint):
        units.setdefault(matrix.index["layer"], []).append((matrix,))
    found: dict[str, NDArray[np.float32]] = {}
    with progress("looking at inputs", len(spec.layers), "layers") as advance:
        for layer in range(len(spec.layers)):
            with source.resident(layer):
                inputs = LayerInputs(source.model, spec, tuple(units.get(layer, ())), pairs=False)
                with inputs.observing():
                    for _ in walk.go(layer):
                        pass
            _collect(inputs, found)
            advance(1)
    return found


def _linears(spec: ModelSpec, checkpoint: Checkpoint) -> Iterator[Matrix]:
    extras = checkpoint.extras(spec)
    for name in checkpoint.in_order():
        if name in extras:
            continue
        rule, index = spec.find(name)
        if "layer" in index and rule.is_projection and not rule.is_stacked and not rule.transposed:
            kind = spec.layers[index["layer"]]
            if not is_mtp(kind):
                yield Matrix(name, kind, rule, index, checkpoint.headers[name].shape, FORMATS["bf16"])


def _collect(inputs: LayerInputs, found: dict[str, NDArray[np.float32]]) -> None:
    experts: dict[str, dict[int, NDArray[np.float32] | None]] = {}
    for (matrix,) in inputs.units:
        seen = inputs.of((matrix,)).of(matrix.expert)
        mean = None if seen is None else seen.float().cpu().numpy()
        if matrix.expert is not None:
            together = matrix.name.replace(f".experts.{matrix.expert}.", ".experts.")
            experts.setdefault(together, {})[matrix.expert] = mean
        elif mean is not None:
            found[matrix.name] = mean
    for name, each in experts.items():
        known = [mean for mean in each.values() if mean is not None]
        if not known:
            raise MinitronError(f"no token of the text was sent to an expert of {name}; give more text with --data.")
        rest = np.mean(known, axis=0)
        found[name] = np.stack([rest if mean is None else mean for _, mean in sorted(each.items())])
