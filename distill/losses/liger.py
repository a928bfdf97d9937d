"""The fused loss of liger-kernel, for requests to which it is exact.  Written to its documentation and not yet run on a
GPU: it is used where it is asked for by name (`--loss-kernel liger`) and never by default; ours is the reference.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from distill.losses.chunked import compute_dtype
from distill.losses.divergences import Loss

BETAS: Final[dict[str, float | None]] = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": None}
"""Divergence -> the beta under which liger knows it; None: the divergence's own parameter."""


def liger_loss(
    loss: Loss,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    mask: Tensor | None,
    divisor: float,
) -> Tensor:
    """As distill.losses.chunked.chunked_loss: the loss of N tokens from last hidden states and output layers, summed
    and divided by `divisor`; a scalar."""
    engine = _liger()
    assert engine is not None  # require_liger was asked
    if mask is not None:
        kept = mask.nonzero().squeeze(-1)
        student_hidden, teacher_hidden = student_hidden[kept], teacher_hidden[kept]
    dtype = compute_dtype(student_hidden)
    beta = BETAS[loss.name]
    # Its weight gradient is summed in fp32, as ours is.
    fused = engine.LigerFusedLinearJSD(jsd_beta=loss.parameter if beta is None else beta, accum_dtype=torch.float32)
    mean: Tensor = fused(
        student_hidden.to(dtype), student_head.to(dtype), teacher_hidden.to(dtype), teacher_head.to(dtype), None
    )
    return mean * (len(student_hidden) / divisor)


def is_usable() -> bool:
    """Whether liger-kernel and a GPU are here."""
    return _liger() is not None


def _liger() -> ModuleType | None:
    if not torch.cuda.is_available():
        return None
    try:
        import liger_kernel.transformers as engine
    except Exception:  # noqa: BLE001 -- without a driver its import of triton raises what it likes
        return None
    module: ModuleType = engine
    return module
