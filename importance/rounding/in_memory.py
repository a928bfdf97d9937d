"""Rounds a loaded model as its files would be: for trials of candidates, which are never written.

What each linear reads is looked at in one pass over a text with the model as it is; then every matrix is rounded with
feedback, and becomes what a decoder makes of it.  Files are rounded layer by layer, each after those before it, and
improved by descent (importance.rounding.calibrated), which takes several times as long and ends a little better.

Shape letters: S sequences of T tokens; R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.rounding.feedback import Curvature, rounded_with_feedback
from importance.rounding.inputs import LayerInputs, Seen
from minitron.measure.quality import hidden_states
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import Held, held
from minitron.quantise.assigned import Matrix, Unit, units_of
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import Scales, searched_scales
from minitron.quantise.wanted import Wanted

AT_ONCE: Final = 2**28
"""Numbers of second moments that are held at a time: 1 GiB in fp32.  The text is read once for each so many."""


@torch.no_grad()
def round_in_memory(
    model: PreTrainedModel, spec: ModelSpec, wanted: Wanted, blocks: NDArray[np.int64], *, batch_size: int = 1
) -> None:
    """Let the linears of `model`, whose spec is `spec`, hold what `wanted` keeps of them, by what the text `blocks`
    [S, T] makes them read.  Parameters that change are replaced, not written into: a cut shares them with its parent.

    Raises MinitronError where the model cannot be kept so."""
    units = units_of(spec, wanted)
    parts = _held(spec)
    for layers in _in_turn(units):
        inputs = {layer: LayerInputs(model, spec, tuple(own)) for layer, own in layers.items()}
        with ExitStack() as watched:
            for one in inputs.values():
                watched.enter_context(one.observing())
            for start in range(0, len(blocks), batch_size):
                states = hidden_states(model, torch.from_numpy(blocks[start : start + batch_size]))
                if None in inputs:
                    inputs[None].look_at_head(states)
        for layer, own in layers.items():
            _round(model, own, inputs[layer], parts)


def _held(spec: ModelSpec) -> dict[str, Held]:
    """Name of a tensor on disk -> where it is in memory."""
    return {expected.name: one for one in held(spec) for expected in one.expected}


def _in_turn(units: Sequence[Unit]) -> Iterator[dict[int | None, list[Unit]]]:
    """layer -> its units, None -> the output layer's, for as many layers at a time as AT_ONCE allows."""
    layers: dict[int | None, list[Unit]] = {}
    for unit in units:
        layers.setdefault(unit[0].layer, []).append(unit)
    some: dict[int | None, list[Unit]] = {}
    numbers = 0
    for layer, own in layers.items():
        more = sum(unit[0].shape[1] ** 2 for unit in own)
        if some and numbers + more > AT_ONCE:
            yield some
            some, numbers = {}, 0
        some[layer] = own
        numbers += more
    if some:
        yield some


def _round(model: PreTrainedModel, units: Sequence[Unit], inputs: LayerInputs, parts: Mapping[str, Held]) -> None:
    """The units of one layer."""
    fresh: dict[str, dict[str, Tensor]] = {}
    curvatures: dict[int, Curvature | None] = {}
    for unit in units:
        places = [_place(model, parts[matrix.name], matrix, fresh) for matrix in unit]
        seen = inputs.of(unit)
        key = hash((id(seen), unit[0].expert if seen.apart else None))
        if key not in curvatures:
            curvatures[key] = _curvature(seen, unit[0])
        curvature = curvatures[key]
        weights = [place.float() for place in places]
        scales = searched_scales(unit[0].form, weights, None if curvature is None else curvature.importance)
        for place, weight, own in zip(places, weights, scales, strict=True):
            place.copy_(_rounded(unit[0], weight, own, curvature))


def _rounded(matrix: Matrix, weight: Tensor, scales: Scales, curvature: Curvature | None) -> Tensor:
    """[R, C]: what is read back."""
    if curvature is None:
        return off_grid(on_grid(matrix.form, weight, scales), scales)
    return off_grid(rounded_with_feedback(matrix.form, weight, scales, curvature), scales)


def _curvature(seen: Seen, matrix: Matrix) -> Curvature | None:
    """None for an expert that no token was sent to, and for inputs of which too many are there for pairs."""
    moments = seen.of(matrix.expert)
    return Curvature.of(moments) if moments is not None and moments.ndim == 2 else None


def _place(model: PreTrainedModel, one: Held, matrix: Matrix, fresh: dict[str, dict[str, Tensor]]) -> Tensor:
    """The part of a parameter in memory that a matrix is, in a copy that stands in the parameter's place."""
    if one.name not in fresh:
        path, _, attribute = one.name.rpartition(".")
        module = model.get_submodule(path)
        copy = nn.Parameter(module.get_parameter(attribute).detach().clone(), requires_grad=False)
        setattr(module, attribute, copy)
        fresh[one.name] = {expected.name: place for expected, place in one.split(copy.data)}
    return fresh[one.name][matrix.name]
