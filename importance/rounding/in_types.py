"""Rounds a loaded model as its GGUF file would be: for trials of candidates, which are never written.

How large the inputs of each linear are is looked at in one pass over a text; then ggml's own quantiser rounds every
matrix by it, as `minitron export` does, and its decoder reads it back.

Shape letters: S sequences of T tokens; R rows (outputs) and C columns (inputs) of a matrix; E routed experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.rounding.squares import numberless, squares_in_memory
from minitron.gguf.rows import quantised, read_back
from minitron.memory.ggml import TYPES
from minitron.memory.gguf import types_of
from minitron.model.axes import EXPERT
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import held


@torch.no_grad()
def round_in_types(
    model: PreTrainedModel,
    spec: ModelSpec,
    mixture: str,
    own_types: Mapping[str, str],
    blocks: NDArray[np.int64],
    *,
    batch_size: int = 1,
) -> None:
    """Let the matrices of `model`, whose spec is `spec`, hold what a GGUF file keeps of them in a mixture and the
    types of some components, by what the text `blocks` [S, T] makes them read.  Parameters that change are replaced,
    not written into: a cut shares them with its parent.

    Raises MinitronError without the extra `gguf`, and where a layer's experts read nothing."""
    importance = squares_in_memory(model, spec, blocks, batch_size=batch_size)
    types = types_of(spec, mixture, own_types)
    for one in held(spec):
        kinds = {expected.name: types(expected.rule, expected.shape) for expected in one.expected}
        if all(kind is None for kind in kinds.values()):
            continue
        path, _, attribute = one.name.rpartition(".")
        module = model.get_submodule(path)
        fresh = nn.Parameter(module.get_parameter(attribute).detach().clone(), requires_grad=False)
        for expected, place in one.split(fresh.data):
            kind, squares = kinds[expected.name], importance.get(numberless(expected.name, expected.index))
            if kind is not None:
                each = squares[expected.index[EXPERT]] if squares is not None and squares.ndim == 2 else squares
                place.copy_(_rounded(kind, place, each))
        setattr(module, attribute, fresh)
    model.tie_weights()


def _rounded(kind: str, weight: Tensor, importance: NDArray[np.float32] | None) -> Tensor:
    """[R, C]: what is read back."""
    if not TYPES[kind].instead:
        return weight.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind])
    rows = np.ascontiguousarray(weight.float().cpu().numpy()).reshape(-1, weight.shape[-1])
    found = read_back(kind, quantised(kind, rows, importance), weight.shape[-1])
    return torch.from_numpy(found).view(weight.shape)
