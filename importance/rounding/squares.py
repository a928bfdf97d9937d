"""How large the inputs of every linear are over a text, layer by layer: what llama.cpp calls an importance matrix.

An output layer that shares the embedding's numbers stands there under the embedding's name: as what makes logits it is
read by every token, as an embedding a row at a time.

Shape letters: S sequences of T tokens; C inputs of a linear; E routed experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from importance.rounding.calibrated import BATCH_TOKENS
from importance.rounding.inputs import LayerInputs
from minitron.errors import MinitronError
from minitron.measure.quality import hidden_states
from minitron.memory.formats import FORMATS
from minitron.model.axes import EXPERT
from minitron.model.checkpoint import Checkpoint
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import held
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
    with source.resident(OUTPUT):
        inputs = LayerInputs(source.model, spec, ((_head(spec),),), pairs=False)
        for batch in walk.batches:
            inputs.look_at_head(walk.norm(walk.state(batch)))
    _collect(inputs, found)
    return found


@torch.no_grad()
def squares_in_memory(
    model: PreTrainedModel, spec: ModelSpec, blocks: NDArray[np.int64], *, batch_size: int = 1
) -> dict[str, NDArray[np.float32]]:
    """The same of a model in memory, whose spec is `spec`, with the model as it is."""
    layers: dict[int | None, list[Unit]] = {None: [(_head(spec),)]}
    for one in held(spec):
        for expected in one.expected:
            rule, layer = expected.rule, expected.index.get("layer")
            if layer is not None and rule.is_projection and not rule.is_stacked and not rule.transposed:
                matrix = Matrix(expected.name, expected.kind, rule, expected.index, expected.shape, FORMATS["bf16"])
                layers.setdefault(layer, []).append((matrix,))
    inputs = [LayerInputs(model, spec, tuple(own), pairs=False) for own in layers.values()]
    with ExitStack() as watched:
        for seen in inputs:
            watched.enter_context(seen.observing())
        for start in range(0, len(blocks), batch_size):
            states = hidden_states(model, torch.from_numpy(blocks[start : start + batch_size]))
            inputs[0].look_at_head(states)
    found: dict[str, NDArray[np.float32]] = {}
    for seen in inputs:
        _collect(seen, found)
    return found


def _head(spec: ModelSpec) -> Matrix:
    """What makes the logits: the output layer, or the embedding that it shares its numbers with."""
    tied = {rule.tied_to for rule in spec.family.rules["model"] if rule.tied_to}
    own = [rule for rule in spec.rules["model"] if rule.is_linear and rule.tied_to]
    rule = next(iter(own or (one for one in spec.rules["model"] if one.name in tied)))
    name = rule.pattern.format({})
    shape = next(one.shape for one in spec.expected() if one.name == name)
    return Matrix(name, "model", rule, {}, shape, FORMATS["bf16"])


def numberless(name: str, index: Mapping[str, int]) -> str:
    """The name of a linear's weight; of a routed expert's without its number."""
    return name if EXPERT not in index else name.replace(f".experts.{index[EXPERT]}.", ".experts.")


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
            experts.setdefault(numberless(matrix.name, matrix.index), {})[matrix.expert] = mean
        elif mean is not None:
            found[matrix.name] = mean
    for name, each in experts.items():
        known = [mean for mean in each.values() if mean is not None]
        if not known:
            raise MinitronError(f"no token of the text was sent to an expert of {name}; give more text with --data.")
        rest = np.mean(known, axis=0)
        found[name] = np.stack([rest if mean is None else mean for _, mean in sorted(each.items())])
