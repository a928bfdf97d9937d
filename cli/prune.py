"""`minitron prune`: score, plan and cut; steps whose result is given are skipped.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results hold "parameters",
"weight_bytes", "source_parameters", "source_weight_bytes", "extras" ({"left out" or "copied as they are": which tensors
beside the model's own}), "sizes" (the new ones, by config key), "layers" and "kept_layers".
"""

import time
from typing import TYPE_CHECKING, Any, Final

from cli import show
from cli.cutting import CUTTING
from cli.dry_run import DryRunOption, tell
from cli.option_groups import Group, Option, takes
from cli.options import (
    DequantiseOption,
    DeviceOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    PlanOption,
    ScoresOption,
    WeightsArgument,
    assignments,
    option,
)
from cli.planning import PLANNING
from cli.scoring import SCORING
from importance.score.options import ScoringOptions
from minitron.errors import MinitronError
from minitron.units import format_bytes, format_parameters
from pipeline.cutting import Cutting
from pipeline.planning import Planning
from pipeline.pruning import Pruning
from pipeline.pruning import prune as pruned
from pipeline.rehearsals import rehearse_prune

if TYPE_CHECKING:
    from minitron.cut.plan import Plan
    from minitron.model.spec import ModelSpec


def _sizes(typed: list[str] | None) -> dict[str, int]:
    found = {}
    for name, text in assignments("--set")(typed).items():
        if not text.isdigit():
            raise MinitronError(f"--set {name}={text}: {text!r} is not a whole number; write it like --set {name}=448.")
        found[name] = int(text)
    return found


PRUNING: Final[dict[str, Option | Group]] = {
    "model": Option.of(WeightsArgument),
    "output": Option.of(OutputOption),
    "planning": Group(Planning, PLANNING),
    "scoring": Group(ScoringOptions, SCORING),
    "cutting": Group(Cutting, CUTTING),
    "plan": Option.of(PlanOption),
    "sizes": Option(
        option("--set", "Cut to this size: hidden_size=448. Repeatable.", "NAME=SIZE"),
        type=list[str] | None,
        default=None,
        read=_sizes,
    ),
    "scores": Option.of(ScoresOption),
    "data": Option(
        option(
            "--data",
            "Text, to score on if there are no --scores: a .txt, .jsonl, .json, .csv or .parquet file, or a folder.",
            "FILE",
        )
    ),
    "device": Option.of(DeviceOption),
    "dequantise": Option.of(DequantiseOption),
    "overwrite": Option.of(OverwriteOption),
}
"""Field of pipeline.pruning.Pruning -> how it is typed."""


@takes("request", Pruning, PRUNING)
def command(request: Pruning, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Cut a checkpoint to a memory budget, to a plan, or to given sizes."""
    started = time.monotonic()
    inputs = {name: getattr(request, name) for name in ("model", "plan", "scores", "data")}
    if dry_run:
        tell(rehearse_prune(request), request.output, inputs, request.settings, as_json=as_json)
        return
    cut = pruned(request, progress=show.bar, note=show.note)
    if as_json:
        seconds = time.monotonic() - started
        show.document(show.run_document(request.output, inputs, request.settings, cut.to_json(), seconds))
        return
    print_cut(cut.source, cut.target, cut.plan)
    result = cut.pruned
    for what, which in result.extras.items():
        show.line(f"Note: {what}: {which}.")
    share = result.weight_bytes / result.source_weight_bytes
    show.line(
        f"Written: {request.output}, {format_parameters(result.parameters)} parameters, "
        f"{format_bytes(result.weight_bytes)}, {share:.1%} of the parent's bytes"
    )


def print_cut(spec: "ModelSpec", target: "ModelSpec", plan: "Plan") -> None:
    """Sizes, layers and parameters before and after the cut."""
    rows: list[list[show.Cell]] = [
        [key, size, target.named_sizes.get(key), f"{target.named_sizes.get(key, 0) / size:.0%}"]
        for key, size in spec.named_sizes.items()
        if target.named_sizes.get(key) != size
    ]
    rows.append(["parameters", spec.parameters().total, target.parameters().total, _share(spec, target)])
    show.table("The cut", ["size", "parent", "pruned", "kept"], rows)
    if len(plan.layers) < len(spec.layers):
        marks = "".join(letter if i in plan.layers else "." for i, letter in enumerate(spec.letters))
        show.line(f"layers  {spec.letters}")
        show.line(f"kept    {marks}")


def _share(spec: "ModelSpec", target: "ModelSpec") -> Any:
    return f"{target.parameters().total / spec.parameters().total:.0%}"
