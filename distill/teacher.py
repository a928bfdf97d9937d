"""The teacher of a distillation: loaded once, kept in bf16 or FP8, its drift from bf16 measured."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from distill.fp8 import store_in_fp8, stored_bytes
from distill.transformer_engine import require_engine, use_transformer_engine
from minitron import quality
from minitron.errors import MinitronError
from minitron.loading import load_model
from minitron.progress import Progress, silent

PRECISIONS: Final[dict[str, Callable[[PreTrainedModel], list[str]]]] = {
    "bf16": lambda model: [],
    "fp8": store_in_fp8,
    "fp8-te": use_transformer_engine,
}
"""How a teacher's weights are kept: name -> what changes a bf16 model in place and returns the weights it changed."""


@dataclass(frozen=True)
class Drift:
    """How far a teacher's predictions are from those of the same teacher in bf16."""

    kl: float
    """Mean KL(bf16 || this) over tokens, in nats."""

    top1_agreement: float
    """Share of the tokens, from 0 to 1, after which both like the same next token best."""

    perplexity: float
    """This teacher's, on the same text."""

    tokens: int
    """Tokens measured on."""

    weights: int
    """Weights that are not kept in bf16."""

    stored_bytes: int
    """Bytes of the model as it is kept."""

    bf16_bytes: int
    """Bytes of the model before."""


@dataclass(frozen=True)
class Teacher:
    """A model to learn from, in eval mode and without gradients."""

    model: PreTrainedModel
    """The model; its output layer is in bf16 whatever the precision."""

    drift: Drift | None
    """Where it was measured: the precision is not bf16, and text was given."""


def require_precision(name: str, device: torch.device) -> None:
    """Raise MinitronError unless PRECISIONS knows the name and `device` can do it."""
    if name not in PRECISIONS:
        raise MinitronError(f"there is no teacher precision {name!r}; choose one of {', '.join(PRECISIONS)}.")
    if name == "fp8-te":
        require_engine(device)


def load_teacher(
    folder: Path,
    *,
    precision: str,
    device: torch.device,
    blocks: NDArray[np.int64] | None,
    batch_size: int = 1,
    progress: Progress = silent,
) -> Teacher:
    """The teacher in `folder`; its drift, where it is not kept in bf16, is measured on the held-out `blocks` [S, T], if
    any are given.

    What bf16 said of the blocks is kept as hidden states, S * T * H * 2 bytes on the CPU, so that there is one model in
    memory at a time and never the logits of all tokens.  Raises MinitronError where the precision cannot be had."""
    require_precision(precision, device)
    model = load_model(folder, dtype=torch.bfloat16, device=device)
    if precision == "bf16" or blocks is None:
        PRECISIONS[precision](model)
        return Teacher(model, None)
    before = stored_bytes(model)
    with progress("measuring the teacher's drift", 2 * blocks.size, "tokens") as advance:
        # The comparison below reads only what is remembered here: the weights behind it are about to change.
        reference = quality.Teacher(model, memory=sys.maxsize)
        with torch.no_grad():
            for start in range(0, len(blocks), batch_size):
                ids = torch.from_numpy(blocks[start : start + batch_size])
                reference.hidden_states(ids)
                advance(ids.numel())
        changed = PRECISIONS[precision](model)
        found = quality.measure_quality(model, blocks, teacher=reference, batch_size=batch_size, advance=advance)
    assert found.kl_to_teacher is not None and found.top1_agreement is not None  # there was a teacher
    drift = Drift(
        kl=found.kl_to_teacher,
        top1_agreement=found.top1_agreement,
        perplexity=found.perplexity,
        tokens=found.tokens,
        weights=len(changed),
        stored_bytes=stored_bytes(model),
        bf16_bytes=before,
    )
    return Teacher(model, drift)
