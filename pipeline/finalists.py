"""Finalists: candidates with nearly equal loss are distilled briefly, and the one with the least KL is built.

Equal damage is not equal recovery, so candidates are compared after some training.  Each finalist leaves a
JSON file when it is done, so that a run which is stopped goes on with the next; its weights go again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distill.recipe import Recipe
from minitron.files import read_sealed, remove, write_sealed
from minitron.progress import Note, Progress
from pipeline.compression import Compression

if TYPE_CHECKING:
    from distill.run.result import DistillResult
    from importance.search.sieves import Planner
    from minitron.cut.plan import Plan
    from minitron.search.candidate import Candidate

FOLDER: Final = "finalists"
NEAR: Final = 1.25
"""Candidates that lose at most so many times what the best one does are finalists."""


def race(
    candidates: Sequence[Candidate], plan: Planner, request: Compression, progress: Progress, note: Note
) -> dict[str, Any]:
    """Distil each of `candidates`, as planned by `plan` and cut from the request's model, for a short while:
    {"tokens", "finalists": [{"sizes", "kept_layers", "kl_before", "kl_after", "perplexity_after", "reason"}],
    "chosen"}, the KLs on held-back text that all share.  Everything is written into FOLDER of the run folder."""
    found = []
    recipe = short(request.recipe, request.searching.finalist_tokens)
    for number, candidate in enumerate(candidates, 1):
        file = request.output / FOLDER / f"{_digest(candidate, recipe)}.json"
        if not file.exists():
            note(f"finalist {number} of {len(candidates)}: {recipe.total_tokens:,} tokens")
            formats = () if candidate.formats is None else (candidate.formats.to_json(),)
            _distil(request, plan(candidate.sizes, candidate.kept, *formats), file, recipe, progress)
        remove(file.with_suffix(""))
        told = {} if candidate.formats is None else candidate.formats.of
        of = {"sizes": dict(candidate.sizes), "kept_layers": list(candidate.kept), "formats": told}
        found.append(of | read_sealed(file))
    chosen = min(range(len(found)), key=lambda place: found[place]["kl_after"])
    least = found[chosen]["kl_after"]
    for place, one in enumerate(found):
        times = f"{one['kl_after'] / least:.4g} times the least KL" if least > 0 else "more KL than the best"
        after = f"after {recipe.total_tokens:,} tokens of distillation"
        one["reason"] = f"chosen: the least KL {after}" if place == chosen else f"dropped: {times} {after}"
    return {"tokens": recipe.total_tokens, "finalists": found, "chosen": chosen}


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
        teacher=request.model,
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


def _digest(candidate: Candidate, recipe: Recipe) -> str:
    what: list[Any] = [sorted(candidate.sizes.items()), list(candidate.kept), recipe.to_json()]
    if candidate.formats is not None:
        what.append(candidate.formats.to_json())
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
