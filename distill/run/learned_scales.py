"""Scales that are trained beside the weights they belong to: each is the one of the beginning times e to a number that
is learned, so that a step of the optimiser changes large and small scales by the same share.

Learned step size quantisation (Esser et al. 2020, arXiv 1902.08153): of a weight w on a grid with the step s, q the
number it goes to, the derivative of q s by s is q - w / s within the grid's ends (equation 3) and q beyond them.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minitron.errors import MinitronError
from minitron.memory.formats import Format
from minitron.model.tensor_map import Held
from minitron.quantise.assigned import Assigned, Matrix
from minitron.quantise.grids import GRIDS
from minitron.quantise.packing import faked, on_grid
from minitron.quantise.scales import Scales


def require_learnable(assigned: Assigned) -> None:
    """Raise MinitronError where a format has one scale for a matrix."""
    for matrix in assigned.matrices:
        form = matrix.form
        if not form.group and not form.row_bytes:
            raise MinitronError(
                f"{form.name} has one scale for a whole matrix, which engines share among those they join, so that it "
                "is not learned; drop --scales."
            )


@dataclass(frozen=True)
class LearnedScales:
    """The scales of one parameter in memory, part by part."""

    held: Held
    attribute: str
    parts: tuple[Matrix | None, ...]
    scales: Mapping[str, Scales]

    def put_on(self, module: nn.Module) -> None:
        """Give the module a parameter for every matrix."""
        device = module.get_parameter(self.attribute).device
        for name, matrix in self._named:
            module.register_parameter(
                name, nn.Parameter(torch.zeros_like(self.scales[matrix.name].step, device=device))
            )

    def learned(self, module: nn.Module) -> dict[str, Scales]:
        """Matrix's name -> its scales as they are by now, on the CPU."""
        found = {}
        for name, matrix in self._named:
            factors = module.get_parameter(name).detach().float().cpu().exp()
            found[matrix.name] = self.scales[matrix.name].times(factors)
        return found

    def rounded(self, module: nn.Module, weight: nn.Parameter) -> Any:
        """The parameter as it is when it is read back, with gradients for itself and for its scales."""
        factors = [module._parameters[name] for name, _ in self._named]
        return _Learned.apply(weight, self, *factors)  # type: ignore[no-untyped-call]

    @property
    def _named(self) -> Iterator[tuple[str, Matrix]]:
        for number, matrix in enumerate(self.parts):
            if matrix is not None:
                yield f"{self.attribute}_scale_{number}", matrix

    def now(self, factors: Sequence[Tensor]) -> dict[str, Scales]:
        """Matrix's name -> its scales, on the device of what was learned."""
        pairs = zip(self._named, factors, strict=True)
        return {matrix.name: self.scales[matrix.name].times(factor.exp()) for (_, matrix), factor in pairs}


@torch.no_grad()
def as_read_back(held: Held, parts: Sequence[Matrix | None], weight: Tensor, scales: Mapping[str, Scales]) -> Tensor:
    """A parameter as it is when it is read back, matrix by matrix; a part without one stays as it is."""
    rounded = torch.empty_like(weight)
    for (_, before), (_, after), matrix in zip(held.split(weight), held.split(rounded), parts, strict=True):
        # In bf16, as readers decode it.
        after.copy_(before if matrix is None else faked(matrix.form, before, scales[matrix.name]).bfloat16())
    return rounded


class _Learned(torch.autograd.Function):
    """Rounded on the way forward; on the way back not there for the weights, and a step size for the scales."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, own: LearnedScales, *factors: Tensor) -> Tensor:
        ctx.own = own
        ctx.save_for_backward(weight, *factors)
        return as_read_back(own.held, own.parts, weight, own.now(factors))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        weight, *factors = ctx.saved_tensors
        own: LearnedScales = ctx.own
        scales, found = own.now(factors), []
        pairs = zip(own.held.split(weight), own.held.split(gradients[0]), own.parts, strict=True)
        for (_, before), (_, gradient), matrix in pairs:
            if matrix is not None:
                found.append(_of_factor(matrix.form, before, gradient, scales[matrix.name]))
        return (gradients[0], None, *found)


def _of_factor(form: Format, weight: Tensor, gradient: Tensor, scales: Scales) -> Tensor:
    """The gradient [R, 1 or G] for what e is raised to."""
    step = scales.spread(weight.shape[1])
    numbers = on_grid(form, weight, scales)
    low, high = GRIDS[form.numbers].nearest(torch.tensor([-1e9, 1e9], device=weight.device))
    scaled = weight / step
    inside = (scaled >= low) & (scaled <= high)
    moved = gradient * step * (numbers - torch.where(inside, scaled, 0.0))
    return moved.reshape(len(weight), scales.step.shape[1], -1).sum(-1)
