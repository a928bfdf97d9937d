"""Several distillations in a row, each of which goes on with the student of the one before: a recipe file.

learning_rate = 1e-4                 # for every stage that says nothing else
data = ["0.7:chat.jsonl", "0.3:web"] # paths as seen from the recipe's folder

[[stages]]
tokens = 2_500_000_000
sequence_length = "8k"

[[stages]]
tokens = 500_000_000
sequence_length = "48k"
data = ["long.jsonl"]
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.compiled import require_compiler
from distill.run.request import Request
from distill.run.result import DistillResult
from distill.run.trackers import require_tracker
from distill.run.train import distill
from distill.teacher.drift import Drift
from distill.teacher.fp8 import DEFAULT, Kept
from distill.teacher.teacher_source import Teaching
from distill.text.records import HUB, Source, parse_source
from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.model.loading import find_device
from minitron.units import parse_count

STAGES: Final = "stages.json"

_COUNTS: Final = ("tokens", "sequence_length", "batch_tokens", "micro_batch", "steps", "vocab_chunk")
"""Fields that may be written as text: 128k."""


@dataclass(frozen=True)
class Stage:
    """One distillation of a recipe file."""

    recipe: Recipe

    data: tuple[Source, ...]
    """Empty for the text that is given beside the recipe."""


def read_recipe(path: Path) -> tuple[Stage, ...]:
    """The stages of a recipe file; raises MinitronError where it is no TOML, has no stages or names no setting."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MinitronError(f"{path} does not exist; check the path of --recipe.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MinitronError(f"{path} is not valid TOML ({error}); mend it.") from None
    stages = found.pop("stages", None)
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise MinitronError(f"{path} has no [[stages]]; write one at least, with its tokens.")
    return tuple(_stage(path, number, found | stage) for number, stage in enumerate(stages, 1))


def _stage(path: Path, number: int, values: dict[str, Any]) -> Stage:
    known = {field.name for field in fields(Recipe)}
    strangers = sorted(values.keys() - known - {"data"})
    if strangers:
        raise MinitronError(
            f"{path}, stage {number}: there is no {strangers[0]!r} in a recipe; "
            f"it knows {', '.join(sorted(known))} and data."
        )
    data = values.pop("data", [])
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise MinitronError(f"{path}, stage {number}: data is no list of texts; write data = ['0.7:PATH', '0.3:PATH'].")
    for name in _COUNTS:
        if isinstance(values.get(name), str):
            values[name] = parse_count(values[name])
    if isinstance(values.get("tasks"), list):
        values["tasks"] = [
            str(path.parent / one) if one.endswith((".yaml", ".yml")) else one for one in values["tasks"]
        ]
    try:
        recipe = Recipe.of(values)
    except TypeError as error:
        raise MinitronError(f"{path}, stage {number}: a value is of the wrong kind ({error}); mend it.") from None
    return Stage(recipe, tuple(_beside(path, parse_source(one)) for one in data))


def _beside(recipe: Path, source: Source) -> Source:
    """A source whose path is as seen from the recipe's folder."""
    if source.place.startswith(HUB):
        return source
    return Source(str(recipe.parent / source.place), source.weight)


def distill_stages(
    student: Path,
    teacher: Path,
    data: Sequence[Source],
    output: Path,
    stages: Sequence[Stage],
    *,
    overwrite: bool = False,
    work: Path | None = None,
    validation: Path | None = None,
    teacher_precision: str = "bf16",
    fp8_keep: Kept = DEFAULT,
    cache: Path | None = None,
    offload_teacher: bool = False,
    processes: Processes | None = None,
    note: Callable[[str], None] = lambda text: None,
    **how: Any,
) -> list[DistillResult]:
    """Every stage's result; `data` is the text of stages that name none, `how` further arguments of
    distill.run.train.distill.

    Each stage is a run of its own, with its own warm-up and optimiser, in the folder `work` (OUTPUT.work unless given),
    and goes on where it stopped; a stage that is done is not run again.  Raises MinitronError where a stage has no
    text, and where the folder was begun with another recipe."""
    processes = processes or Processes()
    folder = work or output.with_name(f"{output.name}.work")
    own = find_device(how.get("device"))
    place = find_device(how.get("teacher_device") or how.get("device"))
    teaching = Teaching(teacher, place, teacher_precision, fp8_keep, offload_teacher, cache)
    requests = [
        Request(student, teaching, _text(stage, number, data), validation, stage.recipe)
        for number, stage in enumerate(stages, 1)
    ]
    # A stage's mistake is told now, not when the stages before it are done.
    for request in requests:
        request.check(output, overwrite=overwrite)
        processes.require_share(request.recipe.sequences_per_step)
        if request.recipe.compile:
            require_compiler(own)
    require_tracker(how.get("track", "none"))
    if processes.is_first:
        _begin(folder, [request.fingerprint for request in requests], overwrite=overwrite)
    processes.wait()
    results: list[DistillResult] = []
    here = student
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        there, record = (output if last else folder / f"stage-{number}"), folder / f"stage-{number}.json"
        if record.is_file():
            results.append(_read(record))
        else:
            note(f"Stage {number} of {len(stages)}: {stage.recipe.total_tokens:,} tokens.")
            found = distill(
                here,
                teacher,
                stage.data or data,
                there,
                stage.recipe,
                work=folder / f"stage-{number}.work",
                # A student without a record is one whose stage died between the two.
                overwrite=overwrite if last else True,
                processes=processes,
                validation=validation,
                teacher_precision=teacher_precision,
                fp8_keep=fp8_keep,
                offload_teacher=offload_teacher,
                note=note,
                earlier=results,
                tracked=output if len(stages) == 1 else output.with_name(f"{output.name}.stage-{number}"),
                origin=student,
                cache=None if cache is None else cache / f"stage-{number}",
                **how,
            )
            results.append(found)
            if processes.is_first and not last:
                write_json(record, _written(found))
            processes.wait()
        here = there
    if processes.is_first:
        shutil.rmtree(folder)
    processes.wait()
    return results


def _text(stage: Stage, number: int, data: Sequence[Source]) -> tuple[Source, ...]:
    """A stage's own text, or the one given beside the recipe."""
    found = stage.data or tuple(data)
    if not found:
        raise MinitronError(f"stage {number} of the recipe names no data; add some, or give --data.")
    return found


def _begin(folder: Path, plan: list[dict[str, Any]], *, overwrite: bool) -> None:
    path = folder / STAGES
    if path.is_file():
        if read_json(path) == json.loads(json.dumps(plan)):
            return
        if not overwrite:
            raise MinitronError(
                f"{folder} holds a run begun with another recipe, model or text; run it as it was begun, "
                "or pass --overwrite."
            )
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MinitronError(f"{folder} exists and is no distillation's working folder; move it away.")
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
