"""Training stages: several distillations in sequence, each starting from the student of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.compiled import require_compiler
from distill.run.distillation import Distillation
from distill.run.fake_quantised import Calibrate
from distill.run.recipe_file import Stage
from distill.run.request import Request, beside
from distill.run.result import DistillResult
from distill.run.trackers import require_tracker
from distill.run.train import Among, distill
from distill.run.work import STAGES, Work, run_folder
from distill.teacher.drift import Drift
from minitron.errors import MinitronError
from minitron.files import read_sealed, sole, write_sealed
from minitron.measure.records import Source
from minitron.model.loading import find_device
from minitron.progress import Note, Progress, no_note, silent
from minitron.run_folder import Begun


def distill_stages(
    asked: Distillation,
    stages: Sequence[Stage],
    *,
    processes: Processes | None = None,
    calibrate: Calibrate | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> list[DistillResult]:
    """Every stage's result; `asked.data` is the text of stages that name none.

    Each stage is a run of its own, with its own warm-up and optimiser, in the folder of checkpoints, and goes on where
    it stopped; a stage that is done is not run again.  Raises MinitronError where a stage has no text, where the
    folder was begun with another recipe, and where another process writes it or the output."""
    processes = processes or Processes()
    # What stands beside the output is the last stage's, and is held with it: what a killed run left there goes too.
    outputs = asked.output, beside(asked.output, stages[-1].recipe)
    with sole(*outputs, asked.work_folder, first=processes.is_first):
        return _distill_stages(asked, stages, processes, calibrate, progress, note)


def _distill_stages(
    asked: Distillation,
    stages: Sequence[Stage],
    processes: Processes,
    calibrate: Calibrate | None,
    progress: Progress,
    note: Note,
) -> list[DistillResult]:
    work, own = Work(asked.work_folder), find_device(asked.device)
    requests = [
        Request(replace(asked, data=_text(stage, number, asked.sources)), stage.recipe)
        for number, stage in enumerate(stages, 1)
    ]
    if asked.student_scales == "learned" and len(stages) > 1:
        raise MinitronError(
            "stages pass weights in 16 bits on, without the scales that were learned; drop --scales, or train "
            "in one stage."
        )
    # A stage's mistake is told now, not when the stages before it are done.
    for request in requests:
        request.check()
        processes.require_share(request.recipe.sequences_per_step)
        if request.recipe.compile:
            require_compiler(own)
    require_tracker(asked.track)
    if processes.is_first:
        _begin(work.folder, requests, overwrite=asked.overwrite)
    processes.wait()
    results: list[DistillResult] = []
    for number, request in enumerate(requests, 1):
        place = _Place(number, len(stages), asked)
        if place.is_done:
            results.append(_read(place.record))
            continue
        note(f"Stage {number} of {len(stages)}: {request.recipe.total_tokens:,} tokens.")
        found = distill(
            place.request(request.asked),
            request.recipe,
            processes=processes,
            among=Among(tuple(results), place.is_last, asked.student, place.name, work.rounded),
            calibrate=calibrate,
            done=place.write_record,
            progress=progress,
            note=note,
        )
        results.append(found)
        processes.wait()
    if processes.is_first:
        work.close()
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
        """The file that tells its result."""
        return self.asked.work_folder / f"stage-{self.number}.json"

    @property
    def is_done(self) -> bool:
        """Whether its student is there.  The record is, then: it is written first."""
        if self.is_last:
            return Work(self.asked.work_folder).has_written(self.asked.output)
        return self.record.is_file() and self.output.is_dir()

    @property
    def output(self) -> Path:
        """Its student."""
        return self.asked.output if self.is_last else self.asked.work_folder / f"stage-{self.number}"

    def write_record(self, result: DistillResult, partial: Path) -> None:
        """Keep what came of it; its student, whole in `partial`, gets its name next."""
        write_sealed(self.record, _written(result))
        if self.is_last:
            Work(self.asked.work_folder).write_written(partial, self.output)

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
            output=self.output,
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


def _begin(folder: Path, requests: Sequence[Request], *, overwrite: bool) -> None:
    def asked(begun: Begun) -> dict[str, Any]:
        before = list((begun or {}).values())
        known = before if len(before) == len(requests) else [None] * len(requests)
        found = [request.fingerprint(each) for request, each in zip(requests, known, strict=True)]
        return {f"stage {number}": each for number, each in enumerate(found, 1)}

    inputs = tuple(path for request in requests for path in request.inputs)
    run_folder(folder, STAGES).open(asked, overwrite=overwrite, inputs=inputs)


def _written(result: DistillResult) -> dict[str, Any]:
    """A result as JSON, whole."""
    losses = [None if loss != loss else loss for loss in result.losses]
    values = {name: value for name, value in vars(result).items() if name not in ("output", "recipe", "losses")}
    drift = None if result.drift is None else asdict(result.drift)
    return values | {"output": str(result.output), "recipe": result.recipe.to_json(), "losses": losses, "drift": drift}


def _read(path: Path) -> DistillResult:
    found = read_sealed(path)
    return DistillResult(
        **found
        | {
            "output": Path(found["output"]),
            "recipe": Recipe.of(found["recipe"]),
            "losses": [float("nan") if loss is None else loss for loss in found["losses"]],
            "drift": None if found["drift"] is None else Drift(**found["drift"]),
        }
    )
