"""Training stages: several distillations in sequence, each starting from the student of the one before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.compiled import require_compiler
from distill.run.distillation import Distillation
from distill.run.recipe_file import Stage
from distill.run.request import Request
from distill.run.result import DistillResult
from distill.run.trackers import require_tracker
from distill.run.train import distill
from distill.teacher.drift import Drift
from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.measure.records import Source
from minitron.model.loading import find_device
from minitron.progress import Note, Progress, no_note, silent

STAGES: Final = "stages.json"


def distill_stages(
    asked: Distillation,
    stages: Sequence[Stage],
    *,
    processes: Processes | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> list[DistillResult]:
    """Every stage's result; `asked.data` is the text of stages that name none.

    Each stage is a run of its own, with its own warm-up and optimiser, in the folder of checkpoints, and goes on where
    it stopped; a stage that is done is not run again.  Raises MinitronError where a stage has no text, and where the
    folder was begun with another recipe."""
    processes, folder, own = processes or Processes(), asked.work_folder, find_device(asked.device)
    requests = [
        Request(replace(asked, data=_text(stage, number, asked.sources)), stage.recipe)
        for number, stage in enumerate(stages, 1)
    ]
    # A stage's mistake is told now, not when the stages before it are done.
    for request in requests:
        request.check()
        processes.require_share(request.recipe.sequences_per_step)
        if request.recipe.compile:
            require_compiler(own)
    require_tracker(asked.track)
    if processes.is_first:
        _begin(folder, [request.fingerprint for request in requests], overwrite=asked.overwrite)
    processes.wait()
    results: list[DistillResult] = []
    for number, request in enumerate(requests, 1):
        place = _Place(number, len(stages), asked)
        if place.record.is_file():
            results.append(_read(place.record))
            continue
        note(f"Stage {number} of {len(stages)}: {request.recipe.total_tokens:,} tokens.")
        found = distill(
            place.request(request.asked),
            request.recipe,
            processes=processes,
            earlier=results,
            origin=asked.student,
            tracked=place.name,
            progress=progress,
            note=note,
        )
        results.append(found)
        if processes.is_first and not place.is_last:
            write_json(place.record, _written(found))
        processes.wait()
    if processes.is_first:
        shutil.rmtree(folder)
    processes.wait()
    return results


@dataclass(frozen=True)
class _Place:
    """Where one of several stages stands in the folders of them all."""

    number: int
    count: int
    asked: Distillation

    @property
    def is_last(self) -> bool:
        """Whether its student is the output."""
        return self.number == self.count

    @property
    def record(self) -> Path:
        """The file that says that it is done."""
        return self.asked.work_folder / f"stage-{self.number}.json"

    @property
    def name(self) -> Path:
        """What trackers call it."""
        output = self.asked.output
        return output if self.count == 1 else output.with_name(f"{output.name}.stage-{self.number}")

    def request(self, asked: Distillation) -> Distillation:
        """What is asked of this stage alone: its student is that of the stage before."""
        folder, cache = self.asked.work_folder, self.asked.cache
        return replace(
            asked,
            student=self.asked.student if self.number == 1 else folder / f"stage-{self.number - 1}",
            output=self.asked.output if self.is_last else folder / f"stage-{self.number}",
            work=folder / f"stage-{self.number}.work",
            cache=None if cache is None else cache / f"stage-{self.number}",
            # A student without a record is one whose stage died between the two.
            overwrite=self.asked.overwrite if self.is_last else True,
        )


def _text(stage: Stage, number: int, data: Sequence[Source]) -> tuple[Source, ...]:
    """A stage's own text, or the one given beside the recipe."""
    found = stage.data or tuple(data)
    if not found:
        raise MinitronError(f"stage {number} of the recipe names no data; add some to it, or give --data.")
    return found


def _begin(folder: Path, plan: list[dict[str, Any]], *, overwrite: bool) -> None:
    path = folder / STAGES
    if path.is_file():
        if read_json(path) == json.loads(json.dumps(plan)):
            return
        if not overwrite:
            raise MinitronError(
                f"{folder} holds a run with another recipe, model or text; use those of that run, or pass --overwrite."
            )
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MinitronError(
            f"{folder} exists and is not the working folder of a distillation; move it or give another --work."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def _written(result: DistillResult) -> dict[str, Any]:
    """A result as JSON, whole."""
    losses = [None if loss != loss else loss for loss in result.losses]
    values = {name: value for name, value in vars(result).items() if name not in ("output", "recipe", "losses")}
    drift = None if result.drift is None else asdict(result.drift)
    return values | {"output": str(result.output), "recipe": result.recipe.to_json(), "losses": losses, "drift": drift}


def _read(path: Path) -> DistillResult:
    found = read_json(path)
    return DistillResult(
        **found
        | {
            "output": Path(found["output"]),
            "recipe": Recipe.of(found["recipe"]),
            "losses": [float("nan") if loss is None else loss for loss in found["losses"]],
            "drift": None if found["drift"] is None else Drift(**found["drift"]),
        }
    )
