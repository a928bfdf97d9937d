"""The chain of `compress` and `demo`: score, plan, prune, distill, evaluate. Each step writes one artefact of a folder.

An artefact is complete or absent, so a step is done when its artefact exists, and a killed run resumes with the first
step that is not done.  run.json holds the request, and what came of every step: it is written when an artefact is whole
and has not got its name yet, so that one rename makes both true.  A run is not resumed with another request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.files import is_leftover, new_file, read_json, remove, sole, write_json
from minitron.model.identity import tokenizer_hash, weights_of
from minitron.progress import Note, Progress, no_note, silent
from minitron.run_folder import Begun, RunFolder, part
from pipeline.artefacts import missing, require_sound
from pipeline.compression import (
    DEQUANTISED,
    DISTILLED,
    EVALUATION,
    GGUF,
    JUDGED,
    PLAN,
    PRUNED,
    REPORT,
    RUN,
    SCORES,
    SEARCH,
    TEXT,
    TRIALS,
    Compression,
)
from pipeline.finalists import FOLDER as FINALISTS
from pipeline.finalists import judge_compressed
from pipeline.plan_document import serve_line_for
from pipeline.preparation import check, prepared
from pipeline.stages import Done, cut_depth_first

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.measure.evaluate import Evaluation
    from pipeline.exporting import Export
    from pipeline.planning import Planning

_NAMES: Final = (
    *("run.*", DEQUANTISED, SCORES, PLAN, "plan.*", PRUNED, f"{DISTILLED}*", GGUF, EVALUATION, TEXT, TRIALS),
    *(SEARCH, REPORT, FINALISTS, JUDGED, "depth*"),
)
"""What a run leaves in its folder."""


@dataclass(frozen=True)
class Compressed:
    """What a run left in its folder."""

    output: Path
    """The run folder."""

    steps: Mapping[str, Mapping[str, Any]]
    """Step -> {"seconds", "results"}."""

    models: Mapping[str, Mapping[str, Any]]
    """teacher, pruned and distilled -> what was measured of it (minitron.measure.evaluate.Evaluation.to_json)."""

    serve: str = ""
    """The command that serves the compressed model with the engine that was planned for; empty for none."""

    @property
    def distilled(self) -> Path:
        """The compressed model."""
        return self.output / DISTILLED

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.output / REPORT

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return {"steps": dict(self.steps), "models": dict(self.models), "serve": self.serve}


def compress(
    request: Compression, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note
) -> Compressed:
    """Carry out the steps that are not done: score, plan, prune, distill, evaluate.

    A script that calls this needs the usual `if __name__ == "__main__":` where speed is measured.  Raises MinitronError
    where the folder holds another run, unless it may be overwritten."""
    if request.plannings:
        raise ValueError("several budgets are a family: call compress_family")
    request.planning.require_limits()
    request = check(request, progress, note)
    with sole(request.output):
        run, record = open_run(request, _NAMES, overwrite=overwrite)
        require_sound(request.output, record)
        request = prepared(request, progress)
        _require_cuttable(request)
        _require_writable(request)
        require_exportable(request)

        def keep(*artefacts: str) -> None:
            if missing(request.output, artefacts, record):
                run.write(record)

        keep(DEQUANTISED, TEXT)
        steps = {name: step for name, step in STEPS.items() if name != EXPORT or request.exports}
        for number, (name, step) in enumerate(steps.items(), 1):
            artefact, function = step
            if (request.output / artefact).exists():
                note(f"[{number}/{len(steps)}] {name}: already done, {artefact} is kept")
                keep(*_parts(artefact))
                continue
            note(f"[{number}/{len(steps)}] {name}")
            started = time.monotonic()

            def done(results: Mapping[str, Any], name: str = name, started: float = started) -> None:
                record["steps"][name] = {"seconds": round(time.monotonic() - started, 3), "results": dict(results)}
                run.write(record)

            function(request, done, progress, note)
            keep(*_parts(artefact))
        _tidy(request.output)
        models = read_json(request.output / EVALUATION)["models"]
        file = str(request.output / GGUF) if request.exports else ""
        serve = serve_line_for(request.output / DISTILLED, _served(request), file)
        return Compressed(request.output, record["steps"], models, serve)


def open_run(request: Compression, names: tuple[str, ...], *, overwrite: bool) -> tuple[RunFolder, dict[str, Any]]:
    """run.json of a new folder, or of the one to go on with; `names` is what runs leave in it."""
    from minitron.measure.records import Source
    from minitron.model.identity import file_hashes
    from minitron.model.spec import read_spec

    # No name is one of the settings', or the one would hide the other.
    texts = {"calibration": request.calibration_text, "data": request.data, "heldout": request.heldout}
    given = [path for path in (*texts.values(), request.scores) if path is not None]
    scored = {} if request.scores is None else {"scores": file_hashes([request.scores])[0]}

    def asked(before: Begun) -> dict[str, Any]:
        hashes = {name: Source(str(path)).fingerprint() for name, path in texts.items() if path is not None}
        weights = weights_of(request.model, part(before, "weights"))
        about = {"model": read_spec(request.model).fingerprint, "weights": weights, **hashes, **request.settings}
        about |= scored
        return about | {"tokenizer": tokenizer_hash(request.model)}

    run = RunFolder(request.output, RUN, "a run folder of minitron", names)
    record = run.open(asked, key="asked", overwrite=overwrite, anew=overwrite, inputs=(request.model, *given))
    record.setdefault("steps", {})
    return run, record


def _parts(artefact: str) -> tuple[str, ...]:
    """The files and folders that an artefact is made of."""
    from minitron.cut.plan import beside

    return (artefact, beside(Path(artefact)).name) if artefact == PLAN else (artefact,)


def _tidy(folder: Path) -> None:
    """Remove what steps that were killed left behind."""
    for place in (folder, folder / FINALISTS):
        for left in list(place.iterdir()) if place.is_dir() else []:
            if is_leftover(left.name) or left.name == f"{DISTILLED}.work":
                remove(left)


def _require_cuttable(request: Compression) -> None:
    """Raise MinitronError where nothing of the model can be cut as is asked: told before it is scored."""
    from minitron.cut.selection import require_cuttable
    from minitron.model.spec import read_spec
    from minitron.search.per_layer import require_by_layer

    spec = read_spec(request.model)
    require_cuttable(spec, by_layer=False)
    if request.searching.sizes == "per-layer":
        require_by_layer(spec)


def _require_writable(request: Compression) -> None:
    """Raise MinitronError where what is left of the model cannot be kept in its formats: told early."""
    from minitron.model.spec import read_spec

    if (wanted := request.wanted) is not None:
        from minitron.model.checkpoint import Checkpoint
        from minitron.quantise.assigned import assign

        assign(read_spec(request.model), Checkpoint(request.model), wanted)


def require_exportable(request: Compression) -> None:
    """Raise MinitronError where a GGUF file is to be written and what it needs is not there: told early."""
    from minitron.gguf.extra import converter, quantise_rows
    from minitron.memory.gguf import require_counted
    from minitron.model.spec import read_spec

    if request.exports:
        require_counted(read_spec(request.model))
        converter()
        quantise_rows()


def _served(request: Compression) -> Planning:
    """The plan's workload, keys, values and states as the search chose."""
    from minitron.cut.plan import load_plan
    from minitron.search.format_choices import KV, STATE

    planning = request.planning
    if not planning.search_kv:
        return planning
    formats = load_plan(request.output / PLAN).formats
    kv, state = formats.get(KV, planning.kv), formats.get(STATE, planning.ssm_state)
    return replace(planning, kv=kv, ssm_state=state, search_kv=False)


def _score(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    score(request, progress, done)


def score(request: Compression, progress: Progress, done: Done = lambda results: None) -> None:
    """Write the scores into the run folder: a copy of those that were given, else those of the calibration text."""
    from importance.score.calibrate import calibrate

    if request.scores is not None:
        done(scores_of(request).settings)
        with new_file(request.output / SCORES) as partial:
            shutil.copyfile(request.scores, partial)
        return
    scores = calibrate(
        request.model,
        request.calibration_text,
        request.scoring,
        held_back=request.searching.held_back,
        output=request.output / SCORES,
        device=request.device,
        progress=progress,
    )
    done(scores.settings)
    scores.save(request.output / SCORES)


def scores_of(request: Compression) -> Scores:
    """The scores that were given; raises MinitronError where they are another model's."""
    from minitron.cut.scores import load_scores
    from minitron.model.identity import require_weights
    from minitron.model.spec import read_spec

    assert request.scores is not None
    scores = load_scores(request.scores)
    scores.require(read_spec(request.model))
    if not request.dequantise:  # whose scores were made of another copy in bf16
        require_weights(scores.weights, request.model, "the scores were", "score this model with minitron score")
    return scores


def _plan(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    from minitron.cut.scores import load_scores
    from minitron.model.spec import read_spec
    from pipeline.choosing import choose

    spec, scores = read_spec(request.model), load_scores(request.output / SCORES)
    choice = choose(request, spec, scores, progress, note)
    choice.write_report(request.output / REPORT)
    result = choice.result
    done(
        {
            "chosen": result.best.to_json(),
            "searched": result.searched,
            "feasible": result.feasible,
            "measured": choice.measured,
        }
    )
    # The last of all that this step writes: it says that the step is done.
    choice.plan.save(request.output / PLAN, overwrite=True)


def _prune(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    from minitron.cut.plan import load_plan
    from minitron.cut.prune import prune
    from minitron.model.spec import read_spec

    plan = load_plan(request.output / PLAN)
    if (
        request.searching.stages == "depth,width"
        and plan.sizes
        and len(plan.layers) < len(read_spec(request.model).layers)
    ):
        cut_depth_first(request, plan, done, progress)
        return
    prune(request.model, plan, request.output / PRUNED, done=lambda cut: done(cut.to_json()), progress=progress)


def _distill(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    from distill.run.distillation import Distillation
    from distill.run.train import distill
    from importance.rounding.calibrated import Calibrated
    from minitron.cut.plan import load_plan
    from minitron.model.loading import find_device
    from pipeline.finalists import student_formats

    asked = Distillation(
        student=request.output / PRUNED,
        teacher=request.model,
        data=request.data,
        output=request.output / DISTILLED,
        teacher_precision=request.teacher_precision,
        **student_formats(request, load_plan(request.output / PLAN)),
        device=request.device,
    )
    distill(
        asked,
        request.recipe,
        calibrate=partial(Calibrated, device=find_device(request.device)),
        done=lambda result, _: done(result.to_json()),
        progress=progress,
        note=note,
    )


def _export(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    from minitron.cut.plan import load_plan
    from minitron.model.spec import read_spec
    from pipeline.exporting import export_planned

    plan = load_plan(request.output / PLAN)
    with new_file(request.output / GGUF) as partial:
        asked = replace(_exported(request), output=partial)
        done(export_planned(plan, read_spec(request.model), asked, progress=progress, note=note).to_json())


def _exported(request: Compression) -> Export:
    from pipeline.exporting import Export

    return Export(
        request.output / DISTILLED, request.output / GGUF, data=request.calibration_text, device=request.device
    )


def _evaluate(request: Compression, done: Done, progress: Progress, note: Note) -> None:
    from minitron.cut.companions import DISTILLATION
    from minitron.measure.evaluate import evaluate_folders
    from minitron.report.document import add_part

    assert request.heldout is not None
    folder = request.output
    add_part(folder / REPORT, "training", read_json(folder / DISTILLED / DISTILLATION))
    folders = {"teacher": request.model, "pruned": folder / PRUNED, "distilled": folder / DISTILLED}
    measured = evaluate_folders(
        list(folders.values()),
        request.heldout,
        request.evaluation,
        against=request.model,
        device=request.device,
        progress=progress,
    )
    models = {name: evaluation.to_json() for name, evaluation in zip(folders, measured, strict=True)}
    if request.exports:
        models["exported"] = _evaluate_exported(request, measured[-1])
    judge_compressed(request, progress, note)
    done({})
    write_json(folder / EVALUATION, {"models": models})


def _evaluate_exported(request: Compression, distilled: Evaluation) -> dict[str, Any]:
    """What was measured of the GGUF file, as of a folder: its matrices are those of `distilled`, rounded."""
    from minitron.cut.plan import load_plan
    from minitron.model.spec import read_spec
    from pipeline.exporting import exported_quality

    assert request.heldout is not None
    plan, asked = load_plan(request.output / PLAN), _exported(request)
    quality = exported_quality(
        plan, read_spec(request.model), asked, request.heldout, request.evaluation, request.model
    )
    size = read_json(request.output / RUN)["steps"][EXPORT]["results"]["weight_bytes"]
    found = replace(distilled, quality=quality, weight_bytes=size, speed=None, caches=(), tasks={}, promised=None)
    return found.to_json()


EXPORT: Final = "export"

STEPS: Final[dict[str, tuple[str, Callable[[Compression, Done, Progress, Note], None]]]] = {
    "score": (SCORES, _score),
    "plan": (PLAN, _plan),
    "prune": (PRUNED, _prune),
    "distill": (DISTILLED, _distill),
    EXPORT: (GGUF, _export),
    "evaluate": (EVALUATION, _evaluate),
}
"""step -> (the artefact that says it is done, what makes it, and tells what came of it before that has its name)."""
