"""Weights that are not finite: found as they are read, and named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron.errors import NotFinite

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE: Final = 2**24
"""Numbers that are looked at one by one at a time."""


def require_finite(folder: Path, name: str, tensor: Tensor) -> Tensor:
    """The tensor; raises NotFinite where a number of it is NaN or infinite: a cut would spread it over the model, and
    nothing that is measured of such a model says anything."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1 and not _is_finite(tensor):
        raise NotFinite(
            f"{folder}: the tensor {name} holds numbers that are NaN or infinite; the file is damaged, or the model's "
            "training diverged; copy the checkpoint again, or choose another one."
        )
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    import torch

    # A sum is fifty times as fast as a look at every number, and finite only where all of them are.
    if bool(torch.isfinite(tensor.sum())):
        return True
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(flat[at : at + _AT_ONCE]).all()) for at in range(0, len(flat), _AT_ONCE))
