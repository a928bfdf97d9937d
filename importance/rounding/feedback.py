"""Rounding with feedback: each column, once rounded, hands its error on to those that are not yet.

GPTQ (Frantar et al. 2022, arXiv 2210.17323): of the weights W of a linear that reads x, with H = E[x x^T], columns are
rounded one by one; the error of column j, divided by U[j, j], times U[j, k], is taken from every later column k, where
U is the upper Cholesky factor of the inverse of H.  Columns go by falling H[j, j] (activation order); their scales are
those of the places where they stand, fixed before (static groups), so that groups stay in order on disk.  What rounding
costs in all is the sum over the columns of (error of j / U[j, j])^2: by 1 / U[j, j]^2 scales are searched.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from minitron.memory.formats import Format
from minitron.quantise.grids import GRIDS
from minitron.quantise.scales import Scales

DAMPING: Final = 0.03
"""Times the mean of H's diagonal, added to it."""

_BLOCK: Final = 128
"""Columns whose errors reach the rest of the matrix together."""


@dataclass(frozen=True)
class Curvature:
    """How much the outputs of a linear change with its weights: H, and what feedback needs of it."""

    moments: Tensor
    """[C, C] fp32: H, damped."""

    order: Tensor
    """[C]: columns by falling H[j, j]."""

    factor: Tensor
    """[C, C] fp32: U, in that order."""

    @classmethod
    def of(cls, moments: Tensor, damping: float = DAMPING) -> Curvature:
        """From the second moments [C, C] of what the linear reads."""
        found = damped(moments, damping)
        order = found.diagonal().argsort(descending=True)
        return cls(found, order, _factor(found[order][:, order]))

    @property
    def importance(self) -> Tensor:
        """[C]: what the squared error of each column costs, where those after it make up for it."""
        found = torch.empty_like(self.factor[0])
        found[self.order] = self.factor.diagonal() ** -2
        return found


@torch.no_grad()
def rounded_with_feedback(form: Format, weight: Tensor, scales: Scales, curvature: Curvature) -> Tensor:
    """[R, C] fp32: numbers of the grid for `weight` [R, C]."""
    count, order, factor = weight.shape[1], curvature.order, curvature.factor
    # Columns as rows: one is read and written at a time.
    left = weight.float().T[order].contiguous()
    step = scales.spread(count).float().T
    step = (step if len(step) == 1 else step[order]).expand(count, -1)
    numbers = torch.empty_like(left)
    nearest = GRIDS[form.numbers].nearest
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = torch.empty_like(left[start:stop])
        for place in range(start, stop):
            numbers[place] = nearest(left[place] / step[place])
            error = (left[place] - numbers[place] * step[place]) / factor[place, place]
            left[place + 1 : stop] -= factor[place, place + 1 : stop, None] * error
            errors[place - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    back = torch.empty_like(numbers)
    back[order] = numbers
    return back.T.contiguous()


def damped(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """[C, C] fp32 with `damping` of its mean diagonal added: inputs that were never seen then stand alone."""
    found = moments.float().clone()
    added = float(found.diagonal().mean()) * damping
    found.diagonal().add_(max(added, torch.finfo(torch.float32).tiny))
    return found


def _factor(moments: Tensor) -> Tensor:
    """[C, C]: the upper Cholesky factor of the inverse."""
    wide = moments.double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide))
    found: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return found.float()
