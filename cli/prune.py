"""`minitron prune`: score, plan and cut in one go, or only what is still missing.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "parameters",
"weight_bytes", "source_parameters", "source_weight_bytes", "sizes" (the new ones, by config key) and "layers".
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli import show
from cli.cutting import Cutting, takes_cutting
from cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    OutputOption,
    OverwriteOption,
    PlanOption,
    ScoresOption,
    SetOption,
    parse_assignments,
)
from cli.planning import Planning, takes_planning
from cli.scoring import Scoring, takes_scoring
from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec

CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Calibration text, where no --scores are given: .txt, or .jsonl with a field `text` a line.",
        metavar="FILE",
        show_default=False,
    ),
]

_WAYS: Final = "--plan, --set, --gpu or --budget"


@takes_planning
@takes_scoring
@takes_cutting
def command(
    model: ModelArgument,
    output: OutputOption,
    planning: Planning,
    scoring: Scoring,
    cutting: Cutting,
    plan: PlanOption = None,
    sizes: SetOption = None,
    scores: ScoresOption = None,
    data: CalibrationOption = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut a checkpoint to a budget, to a plan, or to sizes given by hand."""
    from minitron.cut.prune import prune
    from minitron.files import refuse_existing
    from minitron.model.spec import read_spec

    started = time.monotonic()
    by_hand = parse_assignments("--set", sizes or ())
    _require_one_way(planning, plan, by_hand)
    if scores is not None and data is not None:
        raise MinitronError("--scores and --data are both given; with scores no calibration text is read, so drop one.")
    refuse_existing(output, overwrite=overwrite, inputs=[path for path in (model, plan, scores, data) if path])
    spec = read_spec(model)
    chosen = _plan(model, spec, planning, scoring, cutting, plan, by_hand, scores, data, output.parent, device)
    result = prune(model, chosen, output, overwrite=overwrite, progress=show.bar)
    target = chosen.target(spec)
    document = show.run_document(
        output,
        {"model": model, "plan": plan, "scores": scores, "data": data},
        {"planning": planning.settings, "set": by_hand, "scoring": scoring.settings if data else {}}
        | {"cutting": cutting.settings},
        result.to_json() | {"sizes": target.named_sizes, "layers": target.letters, "kept_layers": list(chosen.layers)},
        time.monotonic() - started,
    )
    if as_json:
        show.document(document)
        return
    print_cut(spec, target, chosen)
    share = result.weight_bytes / result.source_weight_bytes
    show.line(
        f"Written: {output}, {format_parameters(result.parameters)} parameters, {format_bytes(result.weight_bytes)}, "
        f"{share:.1%} of the parent's bytes"
    )


def _require_one_way(planning: Planning, plan: Path | None, by_hand: dict[str, str]) -> None:
    ways = {
        "--plan": plan is not None,
        "--set": bool(by_hand),
        "--gpu": planning.device is not None,
        "--budget": planning.budget is not None,
    }
    given = [flag for flag, used in ways.items() if used]
    if not given:
        raise MinitronError(f"nothing says how small the model is to be; give one of {_WAYS}.")
    if len(given) > 1:
        raise MinitronError(f"{given[0]} and {given[1]} both say how small the model is to be; give one of {_WAYS}.")
    searching = planning.lattice or planning.pattern or planning.layers
    if searching and given[0] in ("--plan", "--set"):
        raise MinitronError(f"--lattice, --layers and --pattern steer a search, and {given[0]} makes none; drop one.")


def _plan(
    model: Path,
    spec: "ModelSpec",
    planning: Planning,
    scoring: Scoring,
    cutting: Cutting,
    path: Path | None,
    by_hand: dict[str, str],
    scores_path: Path | None,
    data: Path | None,
    place: Path,
    device: str | None,
) -> "Plan":
    """The plan with the indices that stay, from what was given."""
    from minitron.cut.magnitude import weight_magnitude
    from minitron.cut.plan import load_plan, make_plan
    from minitron.model.checkpoint import Checkpoint

    # Before minutes of scoring, not after: a checkpoint that is not understood whole is refused.
    checkpoint = Checkpoint(model)
    checkpoint.check(spec)
    given = None
    if path is not None:
        given = load_plan(path)
        given.require(spec)
        if given.has_indices:
            return given
    if planning.device is not None or planning.budget is not None:
        planning.budget_of_device()
    wanted = _sizes(spec, by_hand)
    scores = _scores(model, spec, scoring, scores_path, data, place, device)
    how: dict[str, Any] = {"fallback": weight_magnitude(checkpoint, spec)} | cutting.arguments
    if given is not None:
        return make_plan(spec, given.sizes, given.layers, scores, report=given.report, **how)
    if by_hand:
        layers = _layers(spec, planning, wanted.pop("num_hidden_layers", len(spec.layers)), scores)
        return make_plan(spec, wanted, layers, scores, **how)
    result = planning.search(*cutting.counted(spec, scores))
    best = result.best
    return make_plan(spec, best.sizes, best.kept, scores, report=result.to_json(), **how)


def _sizes(spec: "ModelSpec", by_hand: dict[str, str]) -> dict[str, int]:
    """--set as numbers, each a size of this model and none larger than it is."""
    wanted: dict[str, int] = {}
    for name, text in by_hand.items():
        if not text.isdigit():
            raise MinitronError(f"--set {name}={text}: {text!r} is not a whole number; write it like --set {name}=448.")
        wanted[name] = int(text)
    spec.resized(wanted)
    return wanted


def _layers(spec: "ModelSpec", planning: Planning, count: int, scores: "Scores") -> tuple[int, ...]:
    """The `count` layers that stay when only their number is given."""
    from minitron.memory.workload import Workload
    from minitron.search.depth import depth_of

    if count == len(spec.layers):
        return tuple(range(count))
    # No layer is ranked by the memory it frees here: scores decide, so the workload does not matter.
    return depth_of(spec, Workload(1), count, scores=scores, keep_attention=planning.keep_attention)


def _scores(
    model: Path,
    spec: "ModelSpec",
    scoring: Scoring,
    path: Path | None,
    data: Path | None,
    place: Path,
    device: str | None,
) -> "Scores":
    from minitron.cut.scores import load_scores

    if path is not None:
        scores = load_scores(path)
        scores.require(spec)
        return scores
    if data is None:
        raise MinitronError("nothing says which parts matter; give --data with calibration text, or --scores.")
    return scoring.run(model, data, place=place, device=device, progress=show.bar)


def print_cut(spec: "ModelSpec", target: "ModelSpec", plan: "Plan") -> None:
    """What a cut changes: sizes, layers, parameters."""
    rows: list[list[show.Cell]] = [
        [key, size, target.named_sizes.get(key), f"{target.named_sizes.get(key, 0) / size:.0%}"]
        for key, size in spec.named_sizes.items()
        if target.named_sizes.get(key) != size
    ]
    rows.append(["parameters", spec.parameters().total, target.parameters().total, _share(spec, target)])
    show.table("The cut", ["size", "parent", "pruned", "kept"], rows)
    if len(plan.layers) < len(spec.layers):
        marks = "".join(letter if i in plan.layers else "." for i, letter in enumerate(spec.letters))
        show.line(f"layers  {spec.letters}\nkept    {marks}")


def _share(spec: "ModelSpec", target: "ModelSpec") -> Any:
    return f"{target.parameters().total / spec.parameters().total:.0%}"
