"""`minitron score`: the importance of every part of a model, from calibration text.

`results` of --json:

    {"samples", "sequence_length", "tokens",
     "axes": {axis: {"places", "size", "best_quarter", "best_half", "unused"}},
     "layers": [{"layer", "kind", "score"}, ...] or null,
     "costs": {part: {"seconds", "share"}}}

An axis is scored in `places`: layers, or experts of a layer.  `best_quarter` is the share of the squared scores that
the best quarter of the indices carry, mean over places; `unused` counts the indices whose score is zero.
`costs` is what each part of scoring took: the model's own pass, what is observed while it runs, what is made of that,
and layers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli import show
from cli.dry_run import DryRunOption, tell
from cli.option_groups import takes
from cli.options import DataOption, DeviceOption, JsonOption, OutputOption, OverwriteOption, WeightsArgument
from cli.scoring import SCORE
from importance.score.options import ScoringOptions
from pipeline.rehearsals import rehearse_score
from pipeline.scoring import costs
from pipeline.scoring import score as scored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minitron.cut.scores import Scores
    from minitron.model.spec import ModelSpec


@takes("options", ScoringOptions, SCORE)
def command(
    model: WeightsArgument,
    data: DataOption,
    output: OutputOption,
    options: ScoringOptions,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score the importance of every channel, head, expert and layer, by running calibration text through the model."""
    from minitron.model.spec import read_spec

    started = time.monotonic()
    if dry_run:
        found = rehearse_score(model, data, options, output=output, overwrite=overwrite, device=device)
        tell(found, output, {"model": model, "data": data}, options.to_json(), as_json=as_json)
        return
    scores = scored(
        model, data, options, output=output, overwrite=overwrite, device=device, progress=show.bar, note=show.note
    )
    told = results(read_spec(model), scores)
    if as_json:
        inputs = {"model": model, "data": {"path": data, "sha256": scores.data}}
        show.document(show.run_document(output, inputs, scores.settings, told, time.monotonic() - started))
        return
    _print(told, _layers_title(scores.settings))
    show.line(f"Written: {output}")


def results(spec: ModelSpec, scores: Scores) -> dict[str, Any]:
    """The scores in --json."""
    layers = scores.importance.get(("layer", None))
    axes: dict[str, list[NDArray[np.float64]]] = {}
    for (axis, _), values in scores.importance.items():
        if axis != "layer":
            # Channels of different experts do not compete; those of a layer's Mamba heads do.
            axes.setdefault(axis, []).extend(
                values if axis in spec.sizes and spec.axis(axis).nested_in else [values.ravel()]
            )
    return {
        "samples": scores.settings["samples"],
        "sequence_length": scores.settings["sequence_length"],
        "tokens": scores.settings["samples"] * scores.settings["sequence_length"],
        "axes": {axis: _concentration(places) for axis, places in axes.items()},
        "layers": layers
        if layers is None
        else [{"layer": layer, "kind": kind, "score": float(layers[layer])} for layer, kind in enumerate(spec.letters)],
        "costs": costs(scores),
    }


def _concentration(places: list[NDArray[np.float64]]) -> dict[str, Any]:
    """How unevenly the squared scores of an axis are spread: mean over its places."""
    size = len(places[0])
    squares = [sorted((values**2).tolist(), reverse=True) for values in places]

    def share(part: int) -> float | None:
        """What the best 1 / part of the indices carry; None where no score is positive."""
        shares = [sum(values[: -(-size // part)]) / sum(values) for values in squares if sum(values) > 0]
        return sum(shares) / len(shares) if shares else None

    return {
        "places": len(places),
        "size": size,
        "best_quarter": share(4),
        "best_half": share(2),
        "unused": sum(values.count(0.0) for values in squares),
    }


def _layers_title(settings: Mapping[str, Any]) -> str:
    if settings["layers"] != "iterative":
        return "Layers: mean of 1 - cosine similarity of input and output"
    dropped = settings["max_dropped"]
    return (
        "Layers: KL in nats after removing the layer and all layers removed before it; for layers not "
        f"among the {dropped} removed, after removing the layer and the first {dropped - 1}"
    )


def _print(found: dict[str, Any], layers_title: str) -> None:
    show.line(f"Read {found['tokens']:,} tokens: {found['samples']:,} sequences of {found['sequence_length']:,}.")
    show.line("")
    show.table(
        "Share of the squared scores of an axis held by its best indices, mean over places (layers, or their experts)",
        ["axis", "places", "size", "best quarter", "best half", "unused"],
        [
            [axis, row["places"], row["size"], _percent(row["best_quarter"]), _percent(row["best_half"]), row["unused"]]
            for axis, row in found["axes"].items()
        ],
    )
    if found["layers"] is None:
        return
    order = sorted(found["layers"], key=lambda row: float(row["score"]))
    ranks = {row["layer"]: rank for rank, row in enumerate(order, 1)}
    show.table(
        layers_title,
        ["layer", "kind", "score", "removal order"],
        [[str(row["layer"]), row["kind"], row["score"], ranks[row["layer"]]] for row in found["layers"]],
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"
