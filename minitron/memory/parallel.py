"""Tensor parallelism: what of each axis one of several GPUs holds.

Engines split heads, channels and the vocabulary, and hold a copy of the rest: norms, routers, latent projections.  Key
and value heads that are fewer than the GPUs are copied too, and so is Mamba's B and C where all heads share one group
(vLLM's rules)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from minitron.errors import MinitronError
from minitron.model.spec import ModelSpec

_SPLIT: Final = ("query_head", "mamba_head", "ffn", "expert_ffn", "shared_ffn")
"""Axes that must divide."""

_COPIED: Final = {"kv_head": "all", "mamba_group": "one"}
"""Axes that are copied where they do not divide: if the GPUs divide by them (`all`), or if there is but one (`one`)."""

_VOCAB_MULTIPLE: Final = 64
"""Engines pad the vocabulary to a multiple of this before they split it."""


def splits(sizes: Mapping[str, Any], gpus: int) -> Any:
    """Whether a model of these sizes can be split among `gpus`; an array where the sizes are arrays."""
    good: Any = True
    for axis in _SPLIT:
        if axis in sizes:
            good = good & (sizes[axis] % gpus == 0)
    for axis, when in _COPIED.items():
        if axis in sizes:
            copies = gpus % np.maximum(sizes[axis], 1) == 0 if when == "all" else sizes[axis] == 1
            good = good & ((sizes[axis] % gpus == 0) | copies)
    return good


def per_gpu(sizes: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """The sizes that one of `gpus` GPUs holds; meaningful where `splits` says so."""
    found = dict(sizes)
    if gpus == 1:
        return found
    for axis in (*_SPLIT, *_COPIED):
        if axis in found:
            found[axis] = (
                np.maximum(found[axis] // gpus, 1)
                if isinstance(found[axis], np.ndarray)
                else max(found[axis] // gpus, 1)
            )
    if "vocab" in found:
        found["vocab"] = -(-found["vocab"] // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE // gpus
    return found


def require_splits(spec: ModelSpec, gpus: int) -> None:
    """Raise MinitronError unless the model can be split among `gpus` GPUs."""
    for axis in (*_SPLIT, *_COPIED):
        if axis in spec.sizes and not splits({axis: spec.sizes[axis]}, gpus):
            raise MinitronError(
                f"{spec.key(axis)} = {spec.sizes[axis]} cannot be split among {gpus} GPUs; choose another --tp."
            )
