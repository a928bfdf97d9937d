"""The folders that a run leaves: the student that was selected, and beside it the other where the two differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.card import model_card
from distill.checkpoints import read_weights
from distill.mtp import PREFIX, Predictor
from distill.output import write_student
from distill.request import beside
from distill.result import DistillResult
from distill.trainer import Trainer
from minitron.loading import load_model
from minitron.report_training import training_document


def write_outputs(
    trainer: Trainer,
    result: DistillResult,
    student: Path,
    *,
    teacher: Path,
    source: Mapping[str, Any],
    origin: Path,
    earlier: Sequence[DistillResult],
    overwrite: bool,
    note: Callable[[str], None],
) -> None:
    """Write `result.output`, and first the folder beside it: where the output is there, all is.

    `student` is the folder that was trained, `origin` the one that the first of several stages began with, `source` the
    text as distill.data.Text tells it."""
    for point, folder in reversed(_written(trainer, result.output)):
        step = int(point["step"])
        written = replace(result, selected_step=step)
        model, mtp = _weights_of(trainer, step, student)
        write_student(
            model,
            student,
            folder,
            mtp=mtp,
            card=model_card(origin, teacher, source, written, earlier),
            training=training_document(written.to_json(), written.losses),
            overwrite=overwrite,
        )
        if folder != result.output:
            note(f"Written beside it: {folder}, the student after step {step:,}, KL {point['kl']:.4f}.")


def _written(trainer: Trainer, output: Path) -> list[tuple[dict[str, Any], Path]]:
    """(validation, folder) of the weights to write: those selected, and the others where they differ."""
    last, best, chosen = trainer.curve[-1], trainer.best, trainer.selected
    other = last if chosen is best else best
    found = [(chosen, output)]
    return found if chosen["step"] == other["step"] else [*found, (other, beside(output, trainer.recipe))]


def _weights_of(trainer: Trainer, step: int, folder: Path) -> tuple[PreTrainedModel, Predictor | None]:
    """The student of `folder` and its multi-token-prediction block, where that was trained, as they were after a step,
    the last one's or the best one's, in one piece."""
    if step != trainer.step:
        weights = trainer.checkpoints.best_weights(step)
    elif trainer.processes.world_size == 1:
        return trainer.student, trainer.objective.mtp
    else:
        newest = trainer.checkpoints.newest()
        assert newest is not None  # the last step is always saved
        weights = read_weights(newest)
    whole = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    mtp = None if trainer.objective.mtp is None else Predictor(folder, whole)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(weights[name])
        for name, parameter in () if mtp is None else mtp.named_parameters():
            parameter.copy_(weights[f"{PREFIX}{name}"])
    return whole, mtp
