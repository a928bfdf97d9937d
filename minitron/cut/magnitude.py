"""Weight magnitude: the importance of axes for which there are no activation scores."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from minitron.cut.selection import Fallback, layer_of
from minitron.model.axes import EXPERT
from minitron.model.checkpoint import Checkpoint
from minitron.model.dims import axes_of, rows
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec


def weight_magnitude(checkpoint: Checkpoint, spec: ModelSpec) -> Fallback:
    """(axis, layer) -> [size] L2 norm of all weights of that layer that go when an index goes; [expert, size] for an
    axis inside each expert.

    It serves the axes that calibration leaves out: SSM state, head widths, and the multi-token-prediction block, which
    transformers does not build.  Only the layer's own tensors are read."""
    placed: dict[int | None, list[tuple[str, dict[str, int]]]] = {}
    for name, _, index in checkpoint.named_tensors(spec):
        placed.setdefault(layer_of(spec, index), []).append((name, index))

    def importance(axis: str, layer: int | None) -> NDArray[np.float64]:
        sizes = spec.sizes_in(layer)
        energy = np.zeros((sizes.get(EXPERT, 1), sizes[axis]))
        nested = True
        for name, index in placed.get(layer, []):
            rule, _ = spec.find(name)
            if axis not in rule.axes and axis not in index:
                continue
            nested = nested and rule.per_expert and axis != EXPERT
            for expert, sums in _sums(checkpoint, name, rule).items():
                place = dict(index) | ({EXPERT: expert} if rule.is_stacked else {})
                row = place.get(EXPERT, 0)
                energy[0 if axis == EXPERT else row] += _energy(sizes, rule, sums, axis, place)
        return np.sqrt(energy if nested else energy.sum(0))

    return importance


Sums = dict[int, NDArray[np.float64]]
"""Dimension of a matrix -> [length] sums of its squared entries by index; under -1 the sum of all of them."""


def _sums(checkpoint: Checkpoint, name: str, rule: Rule) -> dict[int, Sums]:
    """Expert -> sums of one tensor, which is read in slabs; 0 where not all experts are in one."""
    found: dict[int, Sums] = {}
    for slab in checkpoint.slabs(name):
        squares = slab.read().double().square().numpy()
        if rule.is_stacked:
            found |= {expert: _add({}, own, 0, len(own)) for expert, own in enumerate(squares, slab.start)}
        else:
            length = checkpoint.headers[name].shape[0] if squares.ndim else 1
            _add(found.setdefault(0, {}), squares, slab.start, length)
    return found


def _add(sums: Sums, squares: NDArray[np.float64], start: int, length: int) -> Sums:
    """Add the rows from `start` on of a matrix of `length` rows."""
    for place in range(squares.ndim):
        along = squares.sum(axis=tuple(other for other in range(squares.ndim) if other != place))
        if place == 0:
            sums.setdefault(0, np.zeros(length))[start : start + len(along)] += along
        else:
            sums[place] = sums.get(place, 0.0) + along
    sums[-1] = sums.get(-1, 0.0) + squares.sum()
    return sums


def _energy(sizes: Mapping[str, int], rule: Rule, sums: Sums, axis: str, index: dict[str, int]) -> NDArray[np.float64]:
    """[size] sum of the squared entries of one expert's tensor, or of one that none has, by index of the axis."""
    energy = np.zeros(sizes[axis])
    if axis in index:
        energy[index[axis]] += sums[-1]
    for place, dim in enumerate(rule.matrix):
        if axis in axes_of(dim):
            # Rows of other parts of a stack come back for every index alike, which leaves the order as it is.
            for number in range(sizes[axis]):
                energy[number] += sums[place][rows(dim, sizes, {axis: np.array([number])})].sum()
    return energy
