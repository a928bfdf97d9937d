"""Finalists: candidates with nearly equal loss are distilled briefly, and the one with the least KL is built.

Equal damage is not equal recovery, so candidates are compared after some training.  Each finalist leaves a
JSON file when it is done, so that a run which is stopped goes on with the next; its weights go again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distill.recipe import Recipe
from minitron.files import read_sealed, remove, write_sealed
from minitron.progress import Note, Progress
from pipeline.compression import DISTILLED, JUDGED, REPORT, Compression
from pipeline.searching import Searching

if TYPE_CHECKING:
    from distill.run.result import DistillResult
    from importance.search.sieves import Planner
    from minitron.cut.plan import Plan
    from minitron.search.candidate import Candidate
    from pipeline.judging import Judging

FOLDER: Final = "finalists"
REPLIES: Final = "replies.jsonl"
"""In it: what models and the judge said."""

NEAR: Final = 1.25
"""Candidates that lose at most so many times what the best one does are finalists."""


def race(
    candidates: Sequence[Candidate], plan: Planner, request: Compression, progress: Progress, note: Note
) -> dict[str, Any]:
    """Distil each of `candidates`, as planned by `plan` and cut from the request's model, for a short while:
    {"tokens", "finalists": [{"sizes", "kept_layers", "kl_before", "kl_after", "perplexity_after", "reason"}],
    "chosen"}, the KLs on held-back text that all share.  Where a judge chooses, each has what share it "wins" and
    "loses" against the model.  Everything is written into FOLDER of the run folder."""
    found = []
    recipe = short(request.recipe, request.searching.finalist_tokens)
    for number, candidate in enumerate(candidates, 1):
        file = request.output / FOLDER / f"{_digest(candidate, recipe)}.json"
        judged = file.with_name(f"{file.stem}-{_judge_digest(request.searching)}.json")
        judging = request.searching.judge is not None and not judged.exists()
        if not file.exists() or (judging and not (file.with_suffix("") / "distilled").exists()):
            note(f"finalist {number} of {len(candidates)}: {recipe.total_tokens:,} tokens")
            formats = () if candidate.formats is None else (candidate.formats.to_json(),)
            _distil(request, plan(candidate.sizes, candidate.kept, *formats), file, recipe, progress)
        if judging:
            _let_judge(request, file, judged, progress, note)
        remove(file.with_suffix(""))
        told = {} if candidate.formats is None else candidate.formats.of
        of = {"sizes": dict(candidate.sizes), "kept_layers": list(candidate.kept), "formats": told}
        verdict = {} if request.searching.judge is None else read_sealed(judged)
        found.append(of | read_sealed(file) | verdict)
    chosen = _judged_best(found) if request.searching.judge is not None else _least(found)
    after = f"after {recipe.total_tokens:,} tokens of distillation"
    for place, one in enumerate(found):
        one["reason"] = f"{'chosen' if place == chosen else 'dropped'}: {_why(one, found[chosen])} {after}"
    return {"tokens": recipe.total_tokens, "finalists": found, "chosen": chosen}


def _least(found: Sequence[Mapping[str, Any]]) -> int:
    return min(range(len(found)), key=lambda place: found[place]["kl_after"])


def _judged_best(found: Sequence[Mapping[str, Any]]) -> int:
    """By wins less losses; of two alike the one with less KL."""
    return max(range(len(found)), key=lambda place: (found[place]["margin"], -found[place]["kl_after"]))


def _why(one: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if "margin" in one:
        return f"{one['wins']:.0%} of its answers won and {one['losses']:.0%} lost against the model's"
    least = best["kl_after"]
    if one is best:
        return "the least KL"
    return f"{one['kl_after'] / least:.4g} times the least KL" if least > 0 else "more KL than the best"


def judge_compressed(request: Compression, progress: Progress, note: Note) -> None:
    """Where a judge chose, let it compare the compressed model's answers with the model's, and add that to the
    report."""
    from pipeline.judging import judge

    if request.searching.judge is not None:
        cache = request.output / FOLDER / REPLIES
        asked = _judging(request, request.output / DISTILLED, request.output / JUDGED, cache)
        judge(replace(asked, report=request.output / REPORT), overwrite=True, progress=progress, note=note)


def _let_judge(request: Compression, file: Path, judged: Path, progress: Progress, note: Note) -> None:
    """Let the judge compare a finalist's answers with the model's; what the model answers is asked for once."""
    from pipeline.judging import judge

    folder = file.with_suffix("")
    asked = _judging(request, folder / "distilled", folder / JUDGED, file.with_name(REPLIES))
    verdict = judge(asked, overwrite=True, progress=progress, note=note).results["verdict"]
    shares = {name: verdict[name]["value"] for name in ("wins", "ties", "losses", "broken", "margin")}
    write_sealed(judged, shares)


def _judging(request: Compression, student: Path, output: Path, cache: Path) -> Judging:
    from judge.speaking import Speaking
    from pipeline.judging import Judging, Ruling

    searching = request.searching
    assert searching.judge is not None and searching.prompts is not None
    return Judging(
        *(searching.prompts, output, Ruling(searching.judge, cache=cache, device=request.device)),
        student=str(student),
        teacher=str(request.whole),
        answering=Speaking(max_tokens=searching.answer_tokens),
    )


def _distil(request: Compression, plan: Plan, file: Path, recipe: Recipe, progress: Progress) -> None:
    """Cut and distil one finalist beside `file`, which says what became of it."""
    from distill.run.distillation import Distillation
    from distill.run.train import distill
    from importance.rounding.calibrated import Calibrated
    from minitron.cut.prune import prune
    from minitron.model.loading import find_device

    folder = file.with_suffix("")
    pruned = folder / "pruned"
    if not pruned.exists():
        prune(request.model, plan, pruned, progress=progress)

    def done(result: DistillResult, partial: Path) -> None:
        found = {name: getattr(result, name) for name in ("kl_before", "kl_after", "perplexity_after")}
        write_sealed(file, found)

    asked = Distillation(
        student=pruned,
        teacher=request.whole,
        data=request.data,
        output=folder / "distilled",
        teacher_precision=request.teacher_precision,
        **student_formats(request, plan),
        device=request.device,
        # What stands there was written by a run that was stopped then.
        overwrite=True,
    )
    calibrate = partial(Calibrated, device=find_device(request.device))
    whole = replace(recipe, validate_every=recipe.total_steps)
    distill(asked, whole, calibrate=calibrate, done=done, progress=progress)


def student_formats(request: Compression, plan: Plan) -> dict[str, Any]:
    """The fields of a distillation that say in which formats the student of a plan is trained and written."""
    from minitron.model.spec import read_spec
    from minitron.quantise.wanted import KV_FORMATS
    from minitron.search.format_choices import KV, types_written, written_of

    form, keep = request.form, request.planning.keep if request.form else {}
    if form is None and plan.formats:
        counts = plan.target(read_spec(request.model)).parameters().by_component
        # Types of ggml are rounded to once it is trained.
        written = None if types_written(plan.formats, counts) else written_of(plan.formats, counts)
        form, keep = written or (None, {})
    kv = plan.formats.get(KV, request.planning.kv)
    # Of other formats engines need no scales in the files.
    own = {"student_kv": kv} if form is not None and kv in KV_FORMATS else {}
    return {"student_format": form, "student_keep": keep, **own}


def short(recipe: Recipe, tokens: int | None) -> Recipe:
    """`recipe` for a race: a tenth of its tokens unless so many are asked for, at least one step."""
    wanted = recipe.total_tokens // 10 if tokens is None else tokens
    return replace(recipe, tokens=max(wanted, recipe.batch_tokens), steps=None)


def _judge_digest(searching: Searching) -> str:
    from minitron.measure.records import Source

    prompts = "" if searching.prompts is None else Source(str(searching.prompts)).fingerprint()
    return hashlib.sha256(f"{searching.judge} {prompts}".encode()).hexdigest()[:8]


def _digest(candidate: Candidate, recipe: Recipe) -> str:
    what: list[Any] = [sorted(candidate.sizes.items()), list(candidate.kept), recipe.to_json()]
    if candidate.formats is not None:
        what.append(candidate.formats.to_json())
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
