"""The teacher of a distillation: loaded once, kept in bf16 or FP8, its drift from bf16 measured."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from distill.teacher.drift import Drift
from distill.teacher.fp8 import fp8_weights, store_in_fp8, stored_bytes
from distill.teacher.kept import DEFAULT, Kept
from distill.teacher.transformer_engine import require_engine, use_transformer_engine
from minitron.errors import MinitronError
from minitron.measure import quality
from minitron.model.layer_by_layer import LayerByLayer, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec
from minitron.progress import Advance, Progress, silent

Convert = Callable[[PreTrainedModel, str, str], bool]
"""Changes one weight of a module in place, given the module's name and the weight's; says whether it did."""

PRECISIONS: Final[dict[str, Convert | None]] = {
    "bf16": None,
    "fp8": store_in_fp8,
    "fp8-te": use_transformer_engine,
}
"""How a teacher's weights are kept."""


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
    keep: Kept = DEFAULT,
    device: torch.device,
    blocks: NDArray[np.int64] | None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress = silent,
) -> Teacher:
    """The teacher in `folder`; its drift, where it is not kept in bf16, is measured on the held-out `blocks` [S, T], if
    any are given.  One that is kept in bf16 computes in `dtype`, and its weights are in memory in that.

    Weights other than bf16 are changed one by one as they are read, so that the bf16 model is never in memory as a
    whole: what it says of the blocks is found layer by layer before, and kept as hidden states, S * T * H * 2 bytes on
    the CPU.  A model of a family that Minitron has no table for is loaded in bf16 first.  Raises MinitronError where
    the precision cannot be had."""
    require_precision(precision, device)
    convert = PRECISIONS[precision]
    if convert is None:
        return Teacher(load_model(folder, dtype=dtype, device=device), None)
    spec = known_spec(folder)
    parts: _Parts = _Whole(folder, device) if spec is None else _Layers(folder, spec, device)
    before = stored_bytes(parts.model)
    if blocks is None:
        parts.load(convert, keep)
        return Teacher(parts.model, None)
    with progress("measuring the teacher's drift", 2 * blocks.size, "tokens") as advance:
        # What follows compares with what is remembered here: the model in it is the changed one, whose output layer is
        # that of the bf16 one.
        reference = quality.Teacher(parts.model, memory=sys.maxsize)
        for ids, states in parts.hidden_states(blocks, batch_size, advance):
            reference.remember(ids, states)
        changed = parts.load(convert, keep)
        found = quality.measure_quality(parts.model, blocks, teacher=reference, batch_size=batch_size, advance=advance)
    assert found.kl_to_teacher is not None and found.top1_agreement is not None  # there was a teacher
    drift = Drift(
        kl=found.kl_to_teacher,
        top1_agreement=found.top1_agreement,
        perplexity=found.perplexity,
        tokens=found.tokens,
        weights=changed,
        stored_bytes=stored_bytes(parts.model),
        bf16_bytes=before,
    )
    return Teacher(parts.model, drift)


def known_spec(folder: Path) -> ModelSpec | None:
    """The model's spec where its family is in Minitron's tables."""
    try:
        return read_spec(folder)
    except MinitronError:
        return None


class _Layers:
    """A teacher that is read part by part."""

    def __init__(self, folder: Path, spec: ModelSpec, device: torch.device) -> None:
        self.source = LayerwiseModel(folder, spec, dtype=torch.bfloat16, device=device)
        self.model = self.source.model

    @torch.inference_mode()
    def hidden_states(
        self, blocks: NDArray[np.int64], batch_size: int, advance: Advance
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """([B, T] ids, [B, T, H] states) of the bf16 model, one layer's weights in memory at a time."""
        walk, count = LayerByLayer(self.source, blocks, batch_size, States()), len(self.source.spec.layers)
        for layer in range(count):
            with self.source.resident(layer):
                for _, tokens in walk.go(layer):
                    advance(tokens / count, f"bf16, layer {layer + 1} of {count}")
        with self.source.resident(OUTPUT):
            for batch in walk.batches:
                ids = torch.from_numpy(blocks[batch * batch_size : (batch + 1) * batch_size])
                yield ids, walk.norm(walk.state(batch))

    def load(self, convert: Convert, keep: Kept) -> int:
        """Read every weight and change it; returns how many were changed."""
        wanted = {
            f"{name}.{weight}": (name, weight) for name, _, weight in fp8_weights(self.model, keep, self.source.spec)
        }
        changed = []

        def placed(name: str) -> None:
            if name in wanted and convert(self.model, *wanted[name]):
                changed.append(name)

        self.source.load(placed, last=wanted)
        return len(changed)


class _Whole:
    """A teacher that transformers alone can read."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model = load_model(folder, dtype=torch.bfloat16, device=device)

    @torch.inference_mode()
    def hidden_states(
        self, blocks: NDArray[np.int64], batch_size: int, advance: Advance
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As that of _Layers."""
        for start in range(0, len(blocks), batch_size):
            ids = torch.from_numpy(blocks[start : start + batch_size])
            yield ids, quality.hidden_states(self.model, ids)
            advance(ids.numel(), "bf16")

    def load(self, convert: Convert, keep: Kept) -> int:
        """Change the weights; returns how many were changed."""
        return sum(convert(self.model, name, weight) for name, _, weight in list(fp8_weights(self.model, keep)))


_Parts = _Layers | _Whole
