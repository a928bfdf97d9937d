"""The result of a run as a Hugging Face folder: the student's own files with trained weights, and a model card."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.mtp import Predictor
from minitron.checkpoint import Checkpoint, ShardWriter
from minitron.files import new_folder, write_json, write_text
from minitron.prune import DISTILLATION, RECORD, copy_companions

DTYPES: Final = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F64": torch.float64}


def write_student(
    model: PreTrainedModel,
    student: Path,
    output: Path,
    *,
    card: str,
    mtp: Predictor | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the trained `model` of the folder `student` to `output` under the names and in the types `student` has.

    transformers turns its in-memory weights back into the names of a checkpoint, but loses parts of the config, drops
    multi-token-prediction blocks (`mtp` is the trained one) and writes the type it trained in.  So only the tensors are
    taken from what it saves; everything else, and every tensor that it does not build, comes from `student`.  `card`
    becomes README.md, `training` distillation.json."""
    source = Checkpoint(student)
    with new_folder(output, overwrite=overwrite) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            model.save_pretrained(scratch)
            trained = Checkpoint(Path(scratch))
            drafts = {} if mtp is None else dict(mtp.stored(student))
            if strangers := trained.headers.keys() - source.headers.keys():
                raise RuntimeError(f"{student} has no {sorted(strangers)[0]}, which transformers saved")
            with ShardWriter(folder) as writer:
                for name, header in source.headers.items():
                    tensor = drafts[name] if name in drafts else _trained_tensor(model, name, source, trained)
                    if tuple(tensor.shape) != header.shape:
                        raise RuntimeError(f"{name} has the shape {tuple(tensor.shape)}, in {student} {header.shape}")
                    writer.add(name, tensor.to(DTYPES.get(header.dtype, tensor.dtype)))
        copy_companions(student, folder)
        for name in ("config.json", RECORD):
            if (student / name).is_file():
                shutil.copy2(student / name, folder / name)
        write_text(folder / "README.md", card)
        if training is not None:
            write_json(folder / DISTILLATION, dict(training))


def _trained_tensor(model: PreTrainedModel, name: str, source: Checkpoint, trained: Checkpoint) -> Tensor:
    if name in trained.headers:
        return trained.tensor(name)
    if name == "lm_head.weight":
        # A tied output layer that the student's folder spells out: transformers saves the embedding alone.
        tied: Tensor = model.get_output_embeddings().weight.detach().cpu()
        return tied
    if name.startswith("mtp."):
        return source.tensor(name)
    raise RuntimeError(f"transformers did not save {name}")
