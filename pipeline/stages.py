"""Depth first, then width: the widths of a model that lost layers are chosen by scores of what is left.

A layer that goes changes what the others matter.  The architecture is the plan's; the layers go first, the model that
is left is scored anew, and by those scores it loses its widths.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.progress import Progress

FOLDER: Final = "depth"
SCORES: Final = "depth-scores.safetensors"


class Stages(StrEnum):
    """In how many steps a model is cut."""

    TOGETHER = "together"
    DEPTH_WIDTH = "depth,width"


def cut_depth_first(
    model: Path,
    plan: Plan,
    run: Path,
    output: Path,
    calibration: Path,
    scoring: dict[str, Any],
    cutting: dict[str, Any],
    *,
    held_back: int,
    device: str | None,
    progress: Progress,
) -> dict[str, int]:
    """Cut `model` to the architecture of `plan` in two steps and write it to `output`; the results of the second.

    `scoring` are keyword arguments of importance.score.calibrate.calibrate for the text `calibration`, `cutting` those
    of minitron.cut.plan.make_plan.  The model without its layers and the scores of it are left in the folder `run`:
    what is there is not made again."""
    from importance.score.calibrate import calibrate
    from minitron.cut.magnitude import weight_magnitude
    from minitron.cut.plan import make_plan
    from minitron.cut.prune import prune
    from minitron.cut.scores import load_scores
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import read_spec

    shallow, path = run / FOLDER, run / SCORES
    if not shallow.exists():
        prune(model, make_plan(read_spec(model), {}, plan.layers), shallow, progress=progress)
    if not path.exists():
        asked = scoring | {"layers": "none"}
        asked |= {"held_back": held_back, "moments_folder": run, "device": device, "progress": progress}
        calibrate(shallow, calibration, **asked).save(path)
    spec, scores = read_spec(shallow), load_scores(path)
    fallback = weight_magnitude(Checkpoint(shallow), spec)
    narrow = make_plan(spec, plan.sizes, tuple(range(len(spec.layers))), scores, fallback=fallback, **cutting)
    return prune(shallow, narrow, output, progress=progress).to_json()
