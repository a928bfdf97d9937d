"""What feedback leaves, improved: scales fitted to the numbers, and numbers chosen anew, each given all the others.

With E = the rounded weights less W and H = E[x x^T] the outputs change by the trace of E H E^T.  Of it one scale s,
whose numbers N stand in columns g, is best lowered by N . (E H)[g] / (N H[g, g] N), and the weight of column j by
(E H)[j] / H[j, j]: coordinate descent (for numbers: QuantEase, Behdin et al. 2023, arXiv 2309.01885).  Both go to the
nearest that the format has, so that no step makes it worse.

Shape letters: R rows (outputs) and C columns (inputs) of a matrix, G groups of a row, S columns of a group.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from minitron.memory.formats import Format
from minitron.quantise.grids import GRIDS
from minitron.quantise.packing import off_grid
from minitron.quantise.scales import Scales

SWEEPS: Final = 4
"""Times that every group is visited."""


@torch.no_grad()
def descended(
    form: Format, weight: Tensor, numbers: Tensor, scales: Scales, moments: Tensor, sweeps: int = SWEEPS
) -> tuple[Tensor, Scales]:
    """([R, C] fp32: numbers of the grid, their scales) nearer to `weight` [R, C] than `numbers` with `scales` are, by
    the damped second moments [C, C] of what is read.  The format's scales are those of groups."""
    size = form.group
    nearest = GRIDS[form.numbers].nearest
    # Columns as rows: a few are read and written at a time.
    wanted, kept = weight.float().T.contiguous(), numbers.T.contiguous()
    error = off_grid(numbers, scales).T.contiguous() - wanted
    slope = moments @ error
    steps = scales.step.T.contiguous()
    for _ in range(sweeps):
        for group, start in enumerate(range(0, len(wanted), size)):
            part = slice(start, start + size)
            own, near = kept[part], moments[part, part]
            before = error[part].clone()
            # The scale, given the numbers.
            bend = ((near @ own) * own).sum(0)
            move = torch.where(bend > 0, (own * slope[part]).sum(0) / bend, torch.zeros_like(bend))
            step = steps[group] = scales.nearest(steps[group] - move, steps[group])
            error[part] = own * step - wanted[part]
            local = slope[part] + near @ (error[part] - before)
            # The numbers, one after the other, given the scale.
            for place in range(size):
                column = start + place
                best = (own[place] * step) - local[place] / near[place, place]
                own[place] = nearest(best / step)
                changed = own[place] * step - wanted[column] - error[column]
                error[column] += changed
                local += near[:, place, None] * changed
            slope += moments[:, part] @ (error[part] - before)
    return kept.T.contiguous(), scales.at(steps.T.contiguous())
