"""Weight magnitude: the importance of what no activation was seen of."""

import numpy as np
from numpy.typing import NDArray

from minitron.cut.selection import Fallback, layer_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.dims import axes_of, rows
from minitron.model.spec import ModelSpec


def weight_magnitude(checkpoint: Checkpoint, spec: ModelSpec) -> Fallback:
    """(axis, layer) -> [size] L2 norm of all weights of that layer that go when an index goes; [expert, size] for an
    axis inside each expert.

    It serves the axes that calibration leaves out: SSM state, head widths, and the multi-token-prediction block, which
    transformers does not build.  Only the layer's own tensors are read."""
    placed: dict[int | None, list[tuple[str, dict[str, int]]]] = {}
    for name in checkpoint.headers:
        _, index = spec.find(name)
        placed.setdefault(layer_of(spec, index), []).append((name, index))

    def importance(axis: str, layer: int | None) -> NDArray[np.float64]:
        size = spec.sizes[axis]
        experts = spec.sizes.get("expert", 1)
        energy = np.zeros((experts, size))
        nested = True
        for name, index in placed.get(layer, []):
            rule, _ = spec.find(name)
            if axis in rule.axes or axis in index:
                nested = nested and "expert" in index and axis != "expert"
                energy[index.get("expert", 0) if axis != "expert" else 0] += _energy(
                    checkpoint, spec, name, axis, index
                )
        return np.sqrt(energy if nested else energy.sum(0))

    return importance


def _energy(
    checkpoint: Checkpoint, spec: ModelSpec, name: str, axis: str, index: dict[str, int]
) -> NDArray[np.float64]:
    """[size] sum of squares of one tensor's entries by index of the axis."""
    rule, _ = spec.find(name)
    squares = checkpoint.tensor(name).double().square().numpy()
    energy = np.zeros(spec.sizes[axis])
    if axis in index:
        energy[index[axis]] += squares.sum()
    for place, dim in enumerate(rule.dims):
        if axis in axes_of(dim):
            along = squares.sum(axis=tuple(other for other in range(squares.ndim) if other != place))
            # Rows of other parts of a stack come back for every index alike, which leaves the order as it is.
            for number in range(spec.sizes[axis]):
                energy[number] += along[rows(dim, spec.sizes, {axis: np.array([number])})].sum()
    return energy
