"""How an architecture was chosen: the verdict of each sieve on every candidate that was measured.

document = build_report(..., sieves=sieves_document(measured, finalists))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from minitron.escapes import html as escape
from minitron.report.chart_axes import BUDGET_LINE, axis_title, layout_of, memory_axis, note, shape
from minitron.report.page import Cell, badge, chart, section, table
from minitron.report.text import Document, architecture, memory_unit
from minitron.units import format_bytes

ROWS: Final = 24
"""Verdicts in Markdown: more is no table one reads."""

COLUMNS: Final = (
    "architecture",
    "memory",
    "rank by scores",
    "predicted",
    "measured",
    "KL, nats",
    "perplexity",
    "distilled: KL",
    "verdict",
)


def sieves_document(measured: Mapping[str, Any], finalists: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `sieves` of the report's document holds.

    `measured` is that of a search by measurement: {"objective", "evaluations", "heldout_rank_correlation",
    "heldout_relative_error", "verdicts"}; `finalists` that of a race of the best by a short distillation: {"tokens",
    "finalists": [{"sizes", "kept_layers", "kl_before", "kl_after", "perplexity_after", "reason"}]}, None where there
    was none."""
    raced = {} if finalists is None else {_key(one): one for one in finalists["finalists"]}
    return {
        "objective": measured["objective"],
        "measured_architectures": measured["evaluations"],
        "heldout_rank_correlation": measured["heldout_rank_correlation"],
        "heldout_error_share": measured["heldout_relative_error"],
        "finalist_tokens": None if finalists is None else finalists["tokens"],
        "rivals_nats": dict(measured.get("rivals", {})),
        "verdicts": [_verdict(verdict, raced.get(_key(verdict))) for verdict in measured["verdicts"]],
    }


def _key(candidate: Mapping[str, Any]) -> tuple[Any, ...]:
    formats = tuple(sorted(candidate.get("formats", {}).items()))
    return tuple(sorted(candidate["sizes"].items())), tuple(candidate["kept_layers"]), formats


def _verdict(verdict: Mapping[str, Any], raced: Mapping[str, Any] | None) -> dict[str, Any]:
    measured = verdict["measured"]
    return {
        "sizes_count": dict(verdict["sizes"]),
        "kept_layer_indices": list(verdict["kept_layers"]),
        "formats": dict(verdict.get("formats", {})),
        "total_bytes": verdict["memory"],
        "origin": verdict["origin"],
        "first_rank": verdict["first_rank"],
        "predicted_loss": verdict["predicted"],
        "predicted_rank": verdict["predicted_rank"],
        "measured_loss": measured["loss"],
        "measured_rank": verdict["measured_rank"],
        "kl_nats": measured["kl"],
        "perplexity": measured["perplexity"],
        "agreement_share": measured["top1_agreement"],
        "kept": verdict["kept"],
        "reason": verdict["reason"],
        "distilled": None
        if raced is None
        else {
            "kl_before_nats": raced["kl_before"],
            "kl_after_nats": raced["kl_after"],
            "after_perplexity": raced["perplexity_after"],
            "reason": raced["reason"],
        },
    }


def sentences(document: Document) -> list[str]:
    """One sentence a sieve."""
    sieves = document["sieves"]
    told = [
        f"Sieve 1, in closed form: {document['searched_architectures']:,} architectures were counted, "
        f"{document['feasible_architectures']:,} of them fit."
    ]
    rank, error = sieves["heldout_rank_correlation"], sieves["heldout_error_share"]
    second = f"Sieve 2, by measurement: {sieves['measured_architectures']:,} architectures were cut in memory and run"
    second += f" on text held out from scoring; the objective is {sieves['objective']}."
    if rank is not None:
        second += (
            f" The damage model that selected them has a rank correlation of {rank:.2f} (typical error "
            f"{error:.0%}) on combinations it was not fitted to."
        )
    told.append(second)
    raced = [verdict for verdict in sieves["verdicts"] if verdict["distilled"] is not None]
    if raced:
        told.append(
            f"Sieve 3, by distillation: the {len(raced)} with nearly equal loss were distilled on "
            f"{sieves['finalist_tokens']:,} tokens each; the one that recovers best is built."
        )
    else:
        told.append("Sieve 3, by distillation: not needed, or not requested.")
    return told


def in_order(document: Document) -> list[Mapping[str, Any]]:
    """All verdicts: those that were distilled first, by what is left of their KL, then by what was measured."""
    return sorted(
        document["sieves"]["verdicts"],
        key=lambda verdict: (
            verdict["distilled"] is None,
            verdict["distilled"]["kl_after_nats"] if verdict["distilled"] else 0.0,
            verdict["measured_rank"],
        ),
    )


def cells(document: Document, verdict: Mapping[str, Any]) -> list[str]:
    """COLUMNS of one verdict."""
    predicted, distilled = verdict["predicted_loss"], verdict["distilled"]
    return [
        architecture(document, verdict, _shown(document)),
        format_bytes(verdict["total_bytes"]),
        f"{verdict['first_rank']:,}",
        "" if predicted is None else f"{predicted:.4g}",
        f"{verdict['measured_loss']:.4g}",
        f"{verdict['kl_nats']:.4g}",
        f"{verdict['perplexity']:.4g}",
        "" if distilled is None else f"{distilled['kl_before_nats']:.4g} \u2192 {distilled['kl_after_nats']:.4g}",
        verdict["reason"] if distilled is None else distilled["reason"],
    ]


def _shown(document: Document) -> list[str]:
    """Config keys that some candidate changes."""
    before = document["parent"]["sizes_count"]
    return [
        key
        for key, size in before.items()
        if any(other["sizes_count"].get(key) != size for other in document["sieves"]["verdicts"])
    ]


def is_built(document: Document, verdict: Mapping[str, Any]) -> bool:
    """Whether this is the candidate that the report calls chosen."""
    best = document["candidates"][document["chosen_index"]]
    mine, its = verdict["sizes_count"], best["sizes_count"]
    same = verdict["kept_layer_indices"] == best["kept_layer_indices"] and verdict["formats"] == best["formats"]
    return same and all(its.get(key, size) == size for key, size in mine.items())


def sieves_section(document: Document) -> str:
    """HTML: a sentence a sieve, the measured candidates in a chart and in a table."""
    if document["sieves"] is None:
        return ""
    rows: list[tuple[str, Sequence[Cell]]] = []
    for verdict in in_order(document):
        first, *rest, reason = cells(document, verdict)
        name: Cell = (badge("chosen", "good"), "words") if is_built(document, verdict) else ("", "words")
        rows.append(("", [(first, "words"), *rest, (reason, "words"), name]))
    return section(
        "How it was chosen",
        " ".join(sentences(document)),
        chart("sieves", "Memory and measured KL of every measured candidate"),
        table([*COLUMNS, ""], rows),
    )


def sieves_figure(document: Document) -> dict[str, Any]:
    """Memory against the measured KL, the chosen one marked."""
    unit, size = memory_unit(document)
    built = [verdict for verdict in document["sieves"]["verdicts"] if is_built(document, verdict)]
    raced = [verdict for verdict in document["sieves"]["verdicts"] if verdict["distilled"] and verdict not in built]
    rest = [verdict for verdict in document["sieves"]["verdicts"] if verdict not in built and verdict not in raced]
    data = [
        _points(document, verdicts, name, symbol, extent, colour)
        for verdicts, name, symbol, extent, colour in (
            (rest, "measured", "circle", 8, "var(--series-2)"),
            (raced, "distilled briefly", "diamond", 11, "var(--series-1)"),
            (built, "chosen", "star", 16, "var(--series-0)"),
        )
        if verdicts
    ]
    layout = layout_of(360, memory_axis(unit), {"title": axis_title("KL to the parent, nats"), "type": "log"})
    layout["yaxis"] |= {"automargin": True, "nticks": 6}
    available = document["budget"]["available_bytes"] / size
    layout["shapes"] = [shape("line", available, available, 0, 1, line=BUDGET_LINE)]
    layout["annotations"] = [note(available, 1, "budget", yref="paper", yanchor="bottom")]
    layout["hovermode"] = "closest"
    return {"data": data, "layout": layout}


def _points(
    document: Document, verdicts: Sequence[Mapping[str, Any]], name: str, symbol: str, extent: int, colour: str
) -> dict[str, Any]:
    told = [
        [
            escape(cells(document, verdict)[0]).replace(", ", "<br>"),
            format_bytes(verdict["total_bytes"]),
            f"{verdict['kl_nats']:.4g}",
            "none" if verdict["predicted_loss"] is None else f"{verdict['predicted_loss']:.4g}",
            escape(verdict["origin"]),
        ]
        for verdict in verdicts
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [verdict["total_bytes"] / memory_unit(document)[1] for verdict in verdicts],
        # A logarithmic axis has no zero.
        "y": [max(verdict["kl_nats"], 1e-9) for verdict in verdicts],
        "customdata": told,
        "hovertemplate": (
            f"<b>{name}</b><br>%{{customdata[0]}}<br>memory %{{customdata[1]}}<br>KL %{{customdata[2]}}"
            "<br>predicted %{customdata[3]}<br>%{customdata[4]}<extra></extra>"
        ),
        "marker": {"symbol": symbol, "size": extent, "color": colour, "line": {"color": "var(--card)", "width": 1}},
    }
