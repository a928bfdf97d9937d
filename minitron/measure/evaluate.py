"""Evaluation of checkpoints, side by side: size, quality, speed and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from minitron.cut.companions import RECORD
from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.locks import resolved
from minitron.measure.benchmarks import Benchmarks, Results
from minitron.measure.caches import CacheQuality, measure_caches, require_kept
from minitron.measure.options import EvaluationOptions
from minitron.measure.quality import Quality, Teacher, measure_quality
from minitron.measure.speed import Speed, measure_speed
from minitron.measure.text import token_blocks
from minitron.model.checkpoint import Checkpoint
from minitron.model.configs import spec_if_known
from minitron.model.dequantised import open_as_plain
from minitron.model.loading import (
    DTYPES,
    find_device,
    load_model,
    load_tokenizer,
    require_embeddings,
    require_same_tokenizer,
)
from minitron.model.sources import title
from minitron.model.spec import ModelSpec
from minitron.model.stored import require_readable
from minitron.progress import Progress, silent


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one checkpoint; None where it was not asked for."""

    model: Path
    """The folder."""

    parameters: int
    """Numbers in all tensors, from the headers of the safetensors files."""

    weight_bytes: int
    """Bytes of all tensors, from the same headers."""

    quality: Quality
    """Perplexity on the text and, beside a teacher, KL divergence and top-1 agreement."""

    speed: Speed | None = None
    """Tokens per second and peak memory, from a process that held this model alone."""

    caches: tuple[CacheQuality, ...] = ()
    """What other formats of keys, values and states cost, a way of rounding each."""

    tasks: Results = field(default_factory=dict)
    """lm-eval's metrics by task."""

    promised: Mapping[str, int] | None = None
    """{"parameters", "weight_bytes"} that `minitron prune` promised; None for a folder that it did not write."""

    def to_json(self) -> dict[str, Any]:
        """One flat object; sizes are bytes."""
        return {
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "perplexity": self.quality.perplexity,
            "kl_to_teacher": self.quality.kl_to_teacher,
            "top1_agreement": self.quality.top1_agreement,
            "prefill_tokens_per_s": self.speed and self.speed.prefill_tokens_per_s,
            "decode_tokens_per_s": self.speed and self.speed.decode_tokens_per_s,
            "peak_memory": self.speed and self.speed.peak_memory,
            "caches": [cache.to_json() for cache in self.caches],
            "tasks": self.tasks,
            "promised": self.promised and dict(self.promised),
        }


def evaluate_folders(
    models: Sequence[Path],
    text: Path,
    options: EvaluationOptions | None = None,
    *,
    against: Path | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> list[Evaluation]:
    """Measure every folder of `models` on `text`, one model in memory at a time beside the teacher `against`.

    Speed is that of the first sequence.  Where it is asked for, a process of its own times every model before the first
    is loaded here, so a script that calls this needs the usual `if __name__ == "__main__":`.  `device` is as torch
    spells it, the first GPU where there is one unless given.  Raises MinitronError where a folder holds no such model,
    the text is too short, a tokenizer is not the teacher's, or there is no such device."""
    asked = options or EvaluationOptions()
    caches = asked.caches.simulated
    number, place = DTYPES[asked.dtype], find_device(device)
    require_readable(*models, *([] if against is None else [against]))
    checkpoints = [_opened(folder) for folder in models]
    promises = [_read_promise(folder) for folder in models]
    specs = [require_kept(folder, spec_if_known(folder), asked.caches) for folder in models] if caches else []
    benchmarks = Benchmarks(asked.tasks, limit=asked.task_limit) if asked.tasks else None
    if against is not None:
        for folder in models:
            require_same_tokenizer(folder, against)
    tokenizers = [load_tokenizer(folder) for folder in models]
    blocks = [
        token_blocks(item, text, sequence_length=asked.sequence_length, samples=asked.samples) for item in tokenizers
    ]
    for folder, ids in zip(models, blocks, strict=True):
        require_embeddings(folder, ids)
    if against is not None:
        require_embeddings(against, *blocks)

    speeds: list[Speed | None] = [None] * len(models)
    if asked.speed:
        speeds = _time(models, [item[0] for item in blocks], number, place, progress)
    teacher = None if against is None else Teacher(load_model(against, dtype=number, device=place))
    evaluations = []
    for i, folder in enumerate(models):
        model = _load_or_reuse(folder, against, teacher, number, place)
        with progress(f"evaluating {title(folder)}", blocks[i].size, "tokens") as advance:
            quality = measure_quality(model, blocks[i], teacher=teacher, batch_size=asked.batch_size, advance=advance)
        evaluations.append(
            Evaluation(
                model=folder,
                parameters=checkpoints[i].num_parameters,
                weight_bytes=checkpoints[i].stored_bytes,
                quality=quality,
                speed=speeds[i],
                caches=_decoded(model, folder, specs[i], blocks[i], asked, progress) if caches else (),
                tasks=benchmarks.run(model, tokenizers[i], batch_size=asked.batch_size) if benchmarks else {},
                promised=promises[i],
            )
        )
        # Otherwise this model would still be held while the next one is loaded.
        del model
    return evaluations


def _decoded(
    model: PreTrainedModel,
    folder: Path,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    asked: EvaluationOptions,
    progress: Progress,
) -> tuple[CacheQuality, ...]:
    passes = 1 + len(asked.caches.ways)
    with progress(f"decoding {title(folder)}", passes * blocks.size, "tokens") as advance:
        return tuple(
            measure_caches(model, folder, spec, blocks, asked.caches, batch_size=asked.batch_size, advance=advance)
        )


def _time(
    models: Sequence[Path],
    prompts: Sequence[NDArray[np.int64]],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> list[Speed | None]:
    speeds: list[Speed | None] = []
    with progress("timing", len(models), "models") as advance:
        for folder, prompt in zip(models, prompts, strict=True):
            speeds.append(measure_speed(folder, prompt, dtype=dtype, device=device))
            advance(1)
    return speeds


def _load_or_reuse(
    folder: Path, against: Path | None, teacher: Teacher | None, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    if teacher is not None and against is not None and resolved(folder) == resolved(against):
        return teacher.model
    return load_model(folder, dtype=dtype, device=device)


def _opened(folder: Path) -> Checkpoint:
    """The checkpoint, whose numbers are counted as those of the model however they are kept."""
    spec = spec_if_known(folder)
    return Checkpoint(folder) if spec is None else open_as_plain(folder, spec)[1]


def _read_promise(folder: Path) -> dict[str, int] | None:
    """What `minitron prune` wrote into the folder of the size it would have."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record = read_json(path)
    promised = record.get("promised") if isinstance(record, dict) else None
    if promised is None:
        return None
    if not isinstance(promised, dict) or not all(isinstance(value, int) for value in promised.values()):
        raise MinitronError(f"{path}: `promised` is not a table of whole numbers; prune again or remove the file.")
    return promised
