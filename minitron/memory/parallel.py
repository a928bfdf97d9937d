"""Tensor parallelism: the share of each axis that one GPU holds.

Engines split heads, channels and the vocabulary, and hold a copy of the rest: norms, routers, latent projections.  Key
and value heads that are fewer than the GPUs are copied too, and so is Mamba's B and C where all heads share one group
(vLLM's rules)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from minitron.engines.keeping import larger
from minitron.errors import MinitronError
from minitron.model.spec import ModelSpec

_VOCAB_MULTIPLE: Final = 64
"""Engines pad the vocabulary to a multiple of this before they split it."""


def splits(spec: ModelSpec, sizes: Mapping[str, Any], gpus: int) -> Any:
    """Whether a model with these sizes, of some or all axes, can be split among `gpus`; an array where they are."""
    good: Any = True
    for axis, size in {**_own(spec), **sizes}.items():
        good = good & _divides(spec, axis, size, gpus)
    return good


def _divides(spec: ModelSpec, axis: str, size: Any, gpus: int) -> Any:
    even = size % gpus == 0
    match spec.axis(axis).split:
        case "even":
            return even
        case "copied":
            return even | (gpus % np.maximum(size, 1) == 0)
        case "one":
            return even | (size == 1)
        case _:
            return True


def per_gpu(spec: ModelSpec, sizes: Mapping[str, Any], gpus: Any) -> dict[str, Any]:
    """The sizes that one of `gpus` GPUs holds; meaningful where `splits` says so.  Sizes that one kind of layers has
    for itself are under `kind.axis` (ModelSpec.at)."""
    if isinstance(gpus, int) and gpus == 1:
        return dict(sizes)
    return {axis: _share(spec, axis, size, gpus) for axis, size in {**sizes, **_own(spec)}.items()}


def _own(spec: ModelSpec) -> dict[str, int]:
    return {f"{kind}.{axis}": size for kind, own in spec.own_sizes.items() for axis, size in own.items()}


def _share(spec: ModelSpec, axis: str, size: Any, gpus: Any) -> Any:
    match spec.axis(axis).split:
        case "whole":
            return size
        case "padded":
            padded = -(-size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE // gpus
            return padded if isinstance(gpus, int) else np.where(gpus == 1, size, padded)
        case _:
            return larger(size // gpus, 1)


def require_splits(spec: ModelSpec, gpus: int) -> None:
    """Raise MinitronError unless the model can be split among `gpus` GPUs."""
    for axis, size in {**spec.sizes, **_own(spec)}.items():
        if not _divides(spec, axis, size, gpus):
            raise MinitronError(f"{spec.key(axis)} = {size} cannot be split among {gpus} GPUs; choose another --tp.")
