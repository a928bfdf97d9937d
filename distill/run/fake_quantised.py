"""A student whose linears run as they will be written: rounded to a format's numbers, with gradients that pass straight
through the rounding.

Quantisation-aware training with a straight-through estimator (Bengio et al. 2013, arXiv 1308.3432, section 3.1) and a
teacher's logits is quantisation-aware distillation.  The scales are those before the first step and stay, unless they
are learned (distill.run.learned_scales): what is trained moves on a grid that does not move under it, and the same
scales are written.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.run.learned_scales import LearnedScales, as_read_back, require_learnable
from distill.run.rounded_start import RoundedStart
from minitron.model.checkpoint import Checkpoint
from minitron.model.output_layer import let_run_with
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import Held, held
from minitron.progress import Advance
from minitron.quantise.assigned import Assigned, Matrix, assign
from minitron.quantise.packing import on_grid
from minitron.quantise.scales import Scales, searched_scales
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import NEAREST, Rounded, Rounding, require_seen


class Calibrate(Protocol):
    """Makes a rounding that knows what the linears of a student read."""

    def __call__(self, folder: Path, blocks: NDArray[np.int64], *, feedback: bool) -> Rounding:
        """Of the sequences `blocks` [S, T], of the student in 16 bits in `folder`; with `feedback` columns make up for
        each other and scales are searched."""


@dataclass(frozen=True)
class FakeQuantised:
    """The formats of a student's linears and their scales, by the names of the matrices in its folder."""

    assigned: Assigned
    scales: Mapping[str, Scales]

    calibrate: Calibrate | None = None
    """Says what linears read; None where no format keeps that."""

    learns: bool = False
    """Whether scales are trained too."""

    @classmethod
    def of(
        cls,
        student: Path,
        spec: ModelSpec,
        wanted: Wanted,
        calibrate: Calibrate | None = None,
        *,
        start: RoundedStart | None = None,
        learns: bool = False,
    ) -> FakeQuantised:
        """Those of the checkpoint `student`, with the scales of `start`, or else of the least squared error.

        Raises MinitronError where a format keeps a scale of inputs and nothing can calibrate it, and where one `learns`
        scales that cannot be."""
        checkpoint = Checkpoint(student)
        assigned = assign(spec, checkpoint, wanted)
        if calibrate is None:
            require_seen(assigned, NEAREST)
        if learns:
            require_learnable(assigned)
        found: dict[str, Scales] = {} if start is None else dict(start.scales)
        for unit in assigned.units if start is None else ():
            weights = [checkpoint.tensor(matrix.name) for matrix in unit]
            scales = searched_scales(unit[0].form, weights)
            found |= {matrix.name: own for matrix, own in zip(unit, scales, strict=True)}
        return cls(assigned, found, calibrate if assigned.needs_inputs else None, learns)

    def put_on(
        self, model: PreTrainedModel, spec: ModelSpec, student: Path, *, start: RoundedStart | None = None
    ) -> None:
        """Let `model`, which was loaded from `student`, run with rounded weights from now on; its parameters stay what
        they are, or become those of `start`, and are trained.  The loss reads the weights of an output layer without
        running it, and is given the rounded ones."""
        for one, parts in self._held(spec, student):
            path, _, attribute = one.name.rpartition(".")
            module = model.get_submodule(path)
            if start is not None:
                _begin(one, parts, module.get_parameter(attribute), start)
            rounded: Callable[[nn.Module, nn.Parameter], Any]
            # Beside the weights that they divide at every step.
            device = module.get_parameter(attribute).device
            scales = {matrix.name: self.scales[matrix.name].to(device) for matrix in parts if matrix is not None}
            if self.learns:
                learned = LearnedScales(one, attribute, parts, scales)
                learned.put_on(module)
                rounded = learned.rounded
            else:
                rounded = _Rounding(one, parts, scales).rounded
            swap = _Swap(attribute, rounded)
            module.register_forward_pre_hook(swap.enter)
            module.register_forward_hook(swap.leave, always_call=True)
            if module is model.get_output_embeddings():
                let_run_with(module, partial(_of, module, attribute, rounded))

    def scales_of(self, model: PreTrainedModel, spec: ModelSpec, student: Path) -> Mapping[str, Scales]:
        """The scales by now, of a model that this was put on."""
        if not self.learns:
            return self.scales
        found: dict[str, Scales] = {}
        for one, parts in self._held(spec, student):
            path, _, attribute = one.name.rpartition(".")
            found |= LearnedScales(one, attribute, parts, self.scales).learned(model.get_submodule(path))
        return found

    def _held(self, spec: ModelSpec, student: Path) -> Iterator[tuple[Held, tuple[Matrix | None, ...]]]:
        """The parameters in memory that are rounded, and the matrix of each tensor on disk that they are made of."""
        names = Checkpoint(student).stored_names(spec)
        matrices = {matrix.name: matrix for matrix in self.assigned.matrices}
        for one in held(spec):
            parts = tuple(matrices.get(names[expected.name]) for expected in one.expected)
            if any(parts):
                yield one, parts


def _of(module: nn.Module, attribute: str, rounded: Callable[[nn.Module, nn.Parameter], Any]) -> Tensor:
    """[R, C]: a module's weights, rounded."""
    found: Tensor = rounded(module, module.get_parameter(attribute))
    return found


@torch.no_grad()
def _begin(one: Held, parts: Sequence[Matrix | None], parameter: Tensor, start: RoundedStart) -> None:
    for (_, place), matrix in zip(one.split(parameter), parts, strict=True):
        if matrix is not None:
            place.copy_(start.weight(matrix.name))


@dataclass(frozen=True)
class _Rounding:
    """How a parameter is rounded: matrix by matrix."""

    held: Held
    parts: tuple[Matrix | None, ...]
    """One for every tensor on disk; None where that stays as it is."""

    scales: Mapping[str, Scales]

    def rounded(self, module: nn.Module, weight: nn.Parameter) -> Any:
        """The same with a gradient that passes straight through."""
        return _Straight.apply(weight, self)  # type: ignore[no-untyped-call]

    def __call__(self, weight: Tensor) -> Tensor:
        """The parameter as it is when it is read back."""
        return as_read_back(self.held, self.parts, weight, self.scales)


class _Straight(torch.autograd.Function):
    """Rounded on the way forward, and not there on the way back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


class _Swap:
    """Stands the rounded weight in the place of a parameter while its module runs.

    The entry of the parameter is overwritten and not removed: the order of parameters, by which sums are made, stays.
    """

    def __init__(self, attribute: str, rounded: Callable[[nn.Module, nn.Parameter], Any]) -> None:
        self.attribute, self.rounded = attribute, rounded
        self._parameter: nn.Parameter | None = None

    def enter(self, module: nn.Module, arguments: Any) -> None:
        """Before the module runs."""
        parameter = module._parameters[self.attribute]
        assert parameter is not None
        self._parameter = parameter
        module._parameters[self.attribute] = self.rounded(module, parameter)

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """After it ran, or failed."""
        if self._parameter is not None:
            module._parameters[self.attribute] = self._parameter
            self._parameter = None


@dataclass(frozen=True)
class Frozen:
    """A rounding for minitron.quantise.writing: to nearest on the grids on which a student was trained."""

    scales: Mapping[str, Scales]
    weights: Mapping[str, Tensor]
    """Matrix's name in the student's folder -> [R, C] as trained: files in 16 bits would round them before."""

    calibrated: Rounding | None = None
    """What is known of the inputs of linears, where formats keep a scale of them; None where none does."""

    @property
    def told(self) -> str:
        """In a few words, for the record."""
        return "as trained"

    @property
    def sees_inputs(self) -> bool:
        """Whether what linears read is known."""
        return self.calibrated is not None

    def rounded(
        self, spec: ModelSpec, checkpoint: Checkpoint, assigned: Assigned, advance: Advance
    ) -> Iterator[Rounded]:
        """Matrix by matrix."""
        if self.calibrated is not None:
            for one in self.calibrated.rounded(spec, checkpoint, assigned, advance):
                yield replace(self._of(one.matrix), inputs=one.inputs)
            return
        for matrix in assigned.matrices:
            yield self._of(matrix)
            advance(checkpoint.headers[matrix.name].num_bytes)

    def _of(self, matrix: Matrix) -> Rounded:
        weight, scales = self.weights[matrix.name].float().cpu(), self.scales[matrix.name]
        return Rounded(matrix, on_grid(matrix.form, weight, scales), scales)

    def largest_kv(self, module: str) -> float:
        """The largest size of a number among the keys or values that a module makes."""
        assert self.calibrated is not None
        return self.calibrated.largest_kv(module)
