"""Finalists: candidates whose measurements nearly tie are distilled for a short while, and the best of them is built.

Equal damage is not equal recovery: what a candidate is worth shows once it has been trained.  Each finalist leaves a
JSON file when it is done, so that a run which is stopped goes on with the next; its weights go again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.files import read_json, write_json

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from importance.search.sieves import Planner
    from minitron.cut.plan import Plan
    from minitron.progress import Progress
    from minitron.search.candidate import Candidate

FOLDER: Final = "finalists"
NEAR: Final = 1.25
"""Candidates that lose at most so many times what the best one does are finalists."""


def race(
    candidates: Sequence[Candidate],
    plan: Planner,
    run: Path,
    model: Path,
    training: Path,
    recipe: Recipe,
    *,
    teacher_precision: str,
    device: str | None,
    progress: Progress,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Distil each of `candidates`, as planned by `plan` and cut from `model`, on the text `training` as `recipe` says:
    {"tokens", "finalists": [{"sizes", "kept_layers", "kl_before", "kl_after", "perplexity_after", "reason"}],
    "chosen"}, the KLs on held-back text that all share.  Everything is written into FOLDER of the folder `run`."""
    found = []
    for number, candidate in enumerate(candidates, 1):
        file = run / FOLDER / f"{_digest(candidate, recipe)}.json"
        if not file.exists():
            note(f"finalist {number} of {len(candidates)}: {recipe.total_tokens:,} tokens")
            folder = file.with_suffix("")
            _distil(
                plan(candidate.sizes, candidate.kept),
                folder,
                file,
                model,
                training,
                recipe,
                teacher_precision,
                device,
                progress,
            )
        found.append({"sizes": dict(candidate.sizes), "kept_layers": list(candidate.kept)} | read_json(file))
    chosen = min(range(len(found)), key=lambda place: found[place]["kl_after"])
    least = found[chosen]["kl_after"]
    for place, one in enumerate(found):
        times = f"{one['kl_after'] / least:.4g} times the least KL" if least > 0 else "more KL than the best"
        after = f"after {recipe.total_tokens:,} tokens of distillation"
        one["reason"] = f"chosen: the least KL {after}" if place == chosen else f"dropped: {times} {after}"
    return {"tokens": recipe.total_tokens, "finalists": found, "chosen": chosen}


def _distil(
    plan: Plan,
    folder: Path,
    file: Path,
    model: Path,
    training: Path,
    recipe: Recipe,
    teacher_precision: str,
    device: str | None,
    progress: Progress,
) -> None:
    from distill.run.train import distill
    from minitron.cut.prune import prune

    pruned, distilled = folder / "pruned", folder / "distilled"
    if distilled.exists():
        # Stopped between the last two steps: what it was worth was not written.
        shutil.rmtree(distilled)
    if not pruned.exists():
        prune(model, plan, pruned, progress=progress)
    result = distill(
        pruned,
        model,
        training,
        distilled,
        replace(recipe, validate_every=recipe.total_steps),
        teacher_precision=teacher_precision,
        device=device,
        progress=progress,
    )
    write_json(
        file,
        {
            "kl_before": result.kl_before,
            "kl_after": result.kl_after,
            "perplexity_after": result.perplexity_after,
        },
    )
    shutil.rmtree(folder)


def short(recipe: Recipe, tokens: int | None) -> Recipe:
    """`recipe` for a race: a tenth of its tokens unless so many are asked for, at least one step."""
    wanted = recipe.total_tokens // 10 if tokens is None else tokens
    return replace(recipe, tokens=max(wanted, recipe.batch_tokens), steps=None)


def _digest(candidate: Candidate, recipe: Recipe) -> str:
    what = [sorted(candidate.sizes.items()), list(candidate.kept), recipe.to_json()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
