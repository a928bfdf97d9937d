"""The steps of the chain: score, plan, prune, distill, export, evaluate; each makes one artefact of the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from minitron.files import new_file, read_json, write_json
from minitron.progress import Note, Progress
from pipeline.compression import (
    DISTILLED,
    EVALUATION,
    GGUF,
    PLAN,
    PRUNED,
    REPORT,
    RUN,
    SCORES,
    Compression,
)
from pipeline.finalists import judge_compressed
from pipeline.several_cuts import LARGE
from pipeline.stages import Done, cut_depth_first

if TYPE_CHECKING:
    from typing import Any

    from minitron.cut.scores import Scores
    from minitron.measure.evaluate import Evaluation
    from minitron.model.spec import ModelSpec
    from minitron.search.candidate import Candidate
    from pipeline.exporting import Export


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
    _tell_of_a_large_cut(request, spec, result.best, note)
    # The last of all that this step writes: it says that the step is done.
    choice.plan.save(request.output / PLAN, overwrite=True)


def _tell_of_a_large_cut(request: Compression, spec: ModelSpec, best: Candidate, note: Note) -> None:
    gone = 1 - best.left(spec).parameters().total / spec.parameters().total
    if gone > LARGE and request.steps_of is None and request.teacher is None:
        note(
            f"note: one cut takes {gone:.0%} of the parameters; with --steps-of 0.3 it is made in several, with "
            "distillation between, which recovers more of so large a cut (docs/distillation.md)."
        )


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
        teacher=request.whole,
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
    folders = {"teacher": request.whole, "pruned": folder / PRUNED, "distilled": folder / DISTILLED}
    measured = evaluate_folders(
        list(folders.values()),
        request.heldout,
        request.evaluation,
        against=request.whole,
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
        plan, read_spec(request.model), asked, request.heldout, request.evaluation, request.whole
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
