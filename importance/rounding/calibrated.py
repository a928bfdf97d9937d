"""A checkpoint rounded over a text, layer by layer: each layer reads what the rounded ones before it make.

Shapes: S sequences of T tokens; R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from importance.rounding.descent import descended
from importance.rounding.feedback import Curvature, rounded_with_feedback
from importance.rounding.inputs import LayerInputs, Seen, largest_kv
from minitron.errors import MinitronError, NotFinite
from minitron.memory.formats import Format
from minitron.model.checkpoint import Checkpoint
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import weight_of
from minitron.progress import Advance
from minitron.quantise.assigned import Assigned, Unit
from minitron.quantise.packing import off_grid, on_grid
from minitron.quantise.scales import Scales, plain_scales, searched_scales
from minitron.quantise.writing import Rounded

BATCH_TOKENS: Final = 2048
"""Tokens that run through a layer at a time."""

_ROWS: Final = 2048
"""Rows of a matrix that are rounded at a time."""


@dataclass
class Calibrated:
    """Rounds by what a text makes linears read."""

    folder: Path
    blocks: NDArray[np.int64]
    """[S, T]: the text."""

    device: torch.device
    feedback: bool = True
    """Whether columns make up for each other and scales are searched; else each number goes to the nearest, with scales
    by the largest, and the text gives the scales of inputs alone."""

    states: Path | None = None
    """A folder for hidden states; None is in memory."""

    dtype: torch.dtype = torch.bfloat16
    _kv: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """In a few words, for the record."""
        how = "with feedback in activation order, scales searched" if self.feedback else "to nearest"
        return f"{how}, on {len(self.blocks)} sequences of {self.blocks.shape[1]} tokens"

    @property
    def sees_inputs(self) -> bool:
        """It runs the model."""
        return True

    def largest_kv(self, module: str) -> float:
        """The largest size of a number among the keys or values that a module makes."""
        if module not in self._kv:
            raise MinitronError(
                f"the attention of this model does not run as one that could be watched, so {module} gets no scale; "
                "leave out --kv fp8."
            )
        return self._kv[module]

    @torch.no_grad()
    def rounded(
        self, spec: ModelSpec, checkpoint: Checkpoint, assigned: Assigned, advance: Advance
    ) -> Iterator[Rounded]:
        """Layer by layer."""
        source = LayerwiseModel(self.folder, spec, dtype=self.dtype, device=self.device)
        layers: dict[int | None, list[Unit]] = {}
        for unit in assigned.units:
            layers.setdefault(unit[0].layer, []).append(unit)
        size = max(1, BATCH_TOKENS // self.blocks.shape[1])
        walk = LayerByLayer(source, self.blocks, size, States(self.states))
        for layer in range(len(spec.layers)):
            with source.resident(layer):
                inputs = LayerInputs(source.model, spec, tuple(layers.get(layer, ())), self.feedback)
                self._look(walk, layer, inputs, assigned)
                for unit in inputs.units:
                    yield from self._unit(source, checkpoint, unit, inputs.of(unit), advance)
                for _ in walk.go(layer):
                    pass
        with source.resident(OUTPUT):
            outside = LayerInputs(source.model, spec, tuple(layers.get(None, ())), self.feedback)
            for batch in walk.batches if outside.units else ():
                outside.look_at_head(walk.norm(walk.state(batch)))
            for unit in outside.units:
                yield from self._unit(None, checkpoint, unit, outside.of(unit), advance)

    def _look(self, walk: LayerByLayer, layer: int, inputs: LayerInputs, assigned: Assigned) -> None:
        """Run all batches through a layer as it is, for what its linears read."""
        kv: dict[str, float] = {}
        with inputs.observing(), largest_kv(kv):
            for batch in walk.batches:
                walk.step(layer, batch, walk.state(batch))
        if layer in assigned.attention and kv:
            keys, values = assigned.attention[layer]
            self._kv |= {keys: kv["keys"], values: kv["values"]}

    def _unit(
        self, source: LayerwiseModel | None, checkpoint: Checkpoint, unit: Unit, seen: Seen, advance: Advance
    ) -> Iterator[Rounded]:
        """The matrices of a unit; in memory they become what a decoder makes of them."""
        form = unit[0].form
        weights = [checkpoint.tensor(matrix.name).to(self.device) for matrix in unit]
        moments = seen.of(unit[0].expert)
        if moments is not None and not bool(moments.isfinite().all()):
            raise NotFinite(
                f"{unit[0].name} reads numbers that are no longer finite on this text, so the layers before it hold "
                "weights that are too large; choose another checkpoint, or quantise without --data."
            )
        curvature = None
        if self.feedback and moments is not None and moments.ndim == 2:
            curvature = Curvature.of(moments)
        importance = moments if curvature is None else curvature.importance
        scales = searched_scales(form, weights, importance) if self.feedback else plain_scales(form, weights)
        for matrix, weight, own in zip(unit, weights, scales, strict=True):
            if curvature is None:
                numbers = on_grid(form, weight, own)
            else:
                numbers, own = fed_back(form, weight, own, curvature)
            if source is not None:
                place = weight_of(source.model, source.spec, matrix.rule, matrix.layer)
                (place if matrix.expert is None else place[matrix.expert]).copy_(off_grid(numbers, own))
            yield Rounded(matrix, numbers.cpu(), own.cpu(), seen.largest)
            advance(weight.nbytes)


def fed_back(form: Format, weight: Tensor, scales: Scales, curvature: Curvature) -> tuple[Tensor, Scales]:
    """([R, C] fp32: numbers of the grid for `weight` [R, C], their scales).  Rows do not know of each other: some go at
    a time, for the memory."""
    numbers = torch.empty_like(weight, dtype=torch.float32)
    step = scales.step.clone()
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        own = scales.of_rows(rows)
        found = rounded_with_feedback(form, weight[rows], own, curvature)
        if form.group:
            found, own = descended(form, weight[rows], found, own, curvature.moments)
            step[rows] = own.step
        numbers[rows] = found
    return numbers, scales.at(step) if form.group else scales
