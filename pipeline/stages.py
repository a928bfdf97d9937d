"""Depth first, then width: layers are cut, the shorter model is scored again, and then widths are cut.

Dropping a layer changes the importance of the others.  The architecture is that of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pipeline.compression import PRUNED, Compression

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.progress import Progress

FOLDER: Final = "depth"
SCORES: Final = "depth-scores.safetensors"


Done = Callable[[Mapping[str, Any]], None]
"""Is told what came of a step, when its artefact is whole and has not got its name yet."""


def cut_depth_first(request: Compression, plan: Plan, done: Done, progress: Progress) -> None:
    """Cut the model to the architecture of `plan` in two steps and write it into the run folder; `done` is told the
    results of the second.  The model without its layers and the scores of it are left there too: what is there is not
    made again."""
    from importance.score.calibrate import calibrate
    from minitron.cut.magnitude import weight_magnitude
    from minitron.cut.plan import make_plan
    from minitron.cut.prune import prune
    from minitron.cut.scores import load_scores
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import read_spec

    run = request.output
    shallow, path = run / FOLDER, run / SCORES
    if not shallow.exists():
        prune(request.model, make_plan(read_spec(request.model), {}, plan.layers), shallow, progress=progress)
    if not path.exists():
        calibrate(
            shallow,
            request.calibration_text,
            replace(request.scoring, layers="none"),
            held_back=request.searching.held_back,
            output=path,
            device=request.device,
            progress=progress,
        ).save(path)
    spec, scores = read_spec(shallow), load_scores(path)
    layers, fallback = tuple(range(len(spec.layers))), weight_magnitude(Checkpoint(shallow), spec)
    narrow = make_plan(spec, plan.sizes, layers, scores, fallback=fallback, **request.cutting.arguments)
    prune(shallow, narrow, run / PRUNED, done=lambda cut: done(cut.to_json()), progress=progress)
