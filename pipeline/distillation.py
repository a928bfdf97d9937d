"""Distill: train a smaller model on the logits of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.recipe_file import Stage
from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.progress import Note, Progress, no_note, silent

if TYPE_CHECKING:
    from distill.run.result import DistillResult


@dataclass(frozen=True)
class Distilled:
    """The results of a distillation."""

    stages: tuple[DistillResult, ...]
    """The result of each stage; of a single recipe there is one."""

    is_first: bool
    """Whether this is the first process of a torchrun, the only one that prints."""

    @property
    def result(self) -> DistillResult:
        """Of the last stage, whose student is the output."""
        return self.stages[-1]

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return self.result.to_json() | {"stages": [result.to_json() for result in self.stages[:-1]]}


def distill(
    request: Distillation,
    recipe: Recipe | Sequence[Stage],
    *,
    report: Path | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> Distilled:
    """Train the student by one recipe, or by the stages of a recipe file; called again, it goes on after a stop.

    Under torchrun every process calls it, and the first alone reports progress, makes remarks and adds the learning
    curve to the folder `report` that a plan was written into.  Raises MinitronError, before anything is loaded, where
    the inputs do not fit each other or there is no text."""
    from distill.processes import joined
    from distill.run.stages import distill_stages
    from distill.run.train import distill as train
    from importance.rounding.calibrated import Calibrated
    from minitron.cut.companions import DISTILLATION, companions
    from minitron.model.loading import find_device
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_plain, require_readable
    from minitron.report.document import add_part, require_report

    if isinstance(recipe, Recipe) and not request.sources:
        raise MinitronError("there is no text to train on; give some with --data.")
    if report is not None:
        require_report(report)
    with joined(request.device) as (processes, device):
        if request.teacher_device is not None and processes.world_size > 1:
            raise MinitronError("--teacher-device works with one process only; drop it.")
        require_plain(request.student)
        for folder in (request.teacher, *request.teachers.values()):
            require_readable(folder)
        first = processes.is_first
        seen, told = (progress, note) if first else (silent, no_note)
        student, teacher = (local_folder(model, seen, told) for model in (request.student, request.teacher))
        teachers = {name: local_folder(model, seen, told) for name, model in request.teachers.items()}
        companions(student)
        asked = replace(request, device=device, student=student, teacher=teacher, teachers=teachers)
        calibrate = partial(Calibrated, device=find_device(device))
        if isinstance(recipe, Recipe):
            results = [train(asked, recipe, processes=processes, calibrate=calibrate, progress=seen, note=told)]
        else:
            results = distill_stages(asked, recipe, processes=processes, calibrate=calibrate, progress=seen, note=told)
    if first and report is not None:
        add_part(report, "training", read_json(request.output / DISTILLATION))
    return Distilled(tuple(results), first)
