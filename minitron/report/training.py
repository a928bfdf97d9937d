"""The distillation in the report of the plan: learning curve and validations.

add_part(folder, "training", training_document(results, losses))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

from minitron.report.chart_axes import axis_title, layout_of
from minitron.report.page import Cell, chart, legend, section, table
from minitron.report.text import Document, task_metrics
from minitron.units import format_bytes

_LOSSES: Final = 400
"""Points of the loss of single steps: a longer run's are means of several."""

_STEP_COLOUR: Final = "var(--series-2)"
_HELD_OUT_COLOUR: Final = "var(--series-0)"


def training_document(results: Mapping[str, Any], losses: Sequence[float]) -> dict[str, Any]:
    """What `training` of the report's document holds.

    `results` are those of `minitron distill --json`, `losses` those of every step; nan for one that was skipped."""
    drift, curve = results["drift"], results["curve"]
    batch = results["tokens"] // max(results["steps"], 1)
    return {
        "teacher_precision": results["teacher_precision"],
        "teacher_perplexity": results["perplexity_teacher"],
        "drift": None
        if drift is None
        else {
            "kl_nats": drift["kl"],
            "agreement_share": drift["top1_agreement"],
            "stored_bytes": drift["stored_bytes"],
            "bf16_bytes": drift["bf16_bytes"],
        },
        "trained_tokens": results["tokens"],
        "steps_count": results["steps"],
        "skipped_count": results["skipped_steps"],
        "training_s": results["seconds"],
        "trained_tokens_per_s": results["tokens_per_s"],
        "selected_index": next(i for i, point in enumerate(curve) if point["step"] == results["selected_step"]),
        "points": [_point(point) for point in curve],
        "steps": _thinned(losses, batch),
    }


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    tasks = task_metrics(point.get("tasks", {}))
    return {
        "step_count": point["step"],
        "trained_tokens": point["tokens"],
        "kl_nats": point["kl"],
        "perplexity": point["perplexity"],
        "agreement_share": point["top1_agreement"],
        "tasks": [{"name": name, "value": f"{value:.4g}"} for name, value in tasks.items()],
    }


def _thinned(losses: Sequence[float], batch: int) -> dict[str, Any]:
    """Means of equally many steps each, at the tokens trained on by their last."""
    run = -(-len(losses) // _LOSSES) if losses else 1
    means, tokens = [], []
    for start in range(0, len(losses), run):
        good = [loss for loss in losses[start : start + run] if isfinite(loss)]
        if good:
            means.append(sum(good) / len(good))
            tokens.append(min(start + run, len(losses)) * batch)
    return {"each_count": run, "trained_tokens": tokens, "mean_loss": means}


def sentence(document: Document) -> str:
    """What was done and what came of it."""
    training = document["training"]
    first, last = training["points"][0], training["points"][training["selected_index"]]
    told = (
        f"{training['trained_tokens']:,} tokens in {training['steps_count']:,} steps, "
        f"{training['trained_tokens_per_s']:,.0f} tokens/s: on held-out text the KL to the teacher went from "
        f"{first['kl_nats']:.4g} to {last['kl_nats']:.4g} nats, the perplexity from {first['perplexity']:.4g} to "
        f"{last['perplexity']:.4g}; the teacher's is {training['teacher_perplexity']:.4g}."
    )
    if (drift := training["drift"]) is not None:
        told += (
            f" The teacher in {training['teacher_precision']} took "
            f"{format_bytes(drift['stored_bytes'])} instead of {format_bytes(drift['bf16_bytes'])}; "
            f"its drift from bf16 is {drift['kl_nats']:.3g} nats."
        )
    if training["skipped_count"]:
        told += f" {training['skipped_count']:,} steps were skipped because their loss was not finite."
    return told


def columns(document: Document) -> list[str]:
    """The head of the table of validations."""
    tasks = [task["name"] for task in document["training"]["points"][0]["tasks"]]
    return ["step", "tokens", "KL, nats", "perplexity", "top-1 agreement", *tasks]


def rows(document: Document) -> list[list[str]]:
    """The table of validations."""
    return [
        [
            f"{point['step_count']:,}",
            f"{point['trained_tokens']:,}",
            f"{point['kl_nats']:.4g}",
            f"{point['perplexity']:.4g}",
            f"{point['agreement_share']:.1%}",
            *(task["value"] for task in point["tasks"]),
        ]
        for point in document["training"]["points"]
    ]


def training_section(document: Document) -> str:
    """HTML: the curve and the validations; empty for a report without a training."""
    if document.get("training") is None:
        return ""
    chosen = document["training"]["selected_index"]
    marked: list[tuple[str, Sequence[Cell]]] = [
        ("picked" if place == chosen else "", list(cells)) for place, cells in enumerate(rows(document))
    ]
    return section(
        "Distillation",
        sentence(document),
        legend([(_HELD_OUT_COLOUR, "stroke", "held-out KL"), (_STEP_COLOUR, "stroke", "training loss")]),
        chart("training", "Held-out KL and the training loss against the tokens trained on"),
        table(columns(document), marked),
    )


def training_figure(document: Document) -> dict[str, Any]:
    """Held-out KL and the steps' loss against tokens."""
    training = document["training"]
    points, steps = training["points"], training["steps"]
    each = "a step" if steps["each_count"] == 1 else f"mean of {steps['each_count']:,} steps"
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "training loss",
            "x": steps["trained_tokens"],
            # A logarithmic axis has no zero.
            "y": [max(loss, 1e-9) for loss in steps["mean_loss"]],
            "line": {"color": _STEP_COLOUR, "width": 1.2},
            "hovertemplate": f"loss of {each} <b>%{{y:.4g}}</b><br>%{{x:,}} tokens<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "held-out KL",
            "x": [point["trained_tokens"] for point in points],
            "y": [max(point["kl_nats"], 1e-9) for point in points],
            "customdata": [[f"{point['perplexity']:.4g}", f"{point['agreement_share']:.1%}"] for point in points],
            "line": {"color": _HELD_OUT_COLOUR, "width": 2.4},
            "marker": {
                "color": _HELD_OUT_COLOUR,
                "symbol": ["star" if i == training["selected_index"] else "circle" for i in range(len(points))],
                "size": [14 if i == training["selected_index"] else 8 for i in range(len(points))],
                "line": {"color": "var(--card)", "width": 1},
            },
            "hovertemplate": (
                "held-out KL <b>%{y:.4g}</b> nats<br>perplexity %{customdata[0]}<br>agreement %{customdata[1]}"
                "<br>%{x:,} tokens<extra></extra>"
            ),
        },
    ]
    layout = layout_of(
        330,
        {"title": axis_title("tokens trained on"), "rangemode": "tozero", "nticks": 7},
        {"title": axis_title("KL to the teacher, nats"), "type": "log", "automargin": True, "nticks": 6},
    )
    layout["hovermode"] = "closest"
    return {"data": data, "layout": layout}
