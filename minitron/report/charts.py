"""The figures of the page, as Plotly's JSON.

A figure is a plain {"data", "layout"}; colours are custom properties of report.css such as `var(--series-0)`, which
report.js looks up when it draws.  Memory has one unit on every axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any, Final

from minitron.escapes import html as escape
from minitron.memory.footprint_lines import TITLES
from minitron.report.chart_axes import BUDGET_LINE, axis_title, layout_of, memory_axis, note, shape
from minitron.report.sieves import sieves_figure
from minitron.report.text import (
    Document,
    architecture,
    chosen,
    is_parent,
    line_label,
    memory_unit,
    parameter_unit,
    sequences,
)
from minitron.report.training import training_figure
from minitron.units import format_bytes, format_parameters

Figure = dict[str, Any]

_BARS: Final = 6
"""Models beside each other as bars."""

_DASHES: Final = ("solid", "dash", "dot", "dashdot")
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up")

_LINES: Final = frozenset(TITLES) - {"total"}
"""Lines of a footprint that have a colour of their own."""


def line_colour(name: str) -> str:
    """The colour of a line of a footprint."""
    return f"var(--line-{name})" if name in _LINES else "var(--line-other)"


def series_style(document: Document, label: str, labels: Sequence[str]) -> tuple[str, str, str]:
    """(colour, dash, marker) of a model in the curves: grey for the parent, the first colour for the chosen one."""
    if label == document["parent"]["label"]:
        return "var(--series-parent)", "longdash", "x"
    best = chosen(document)
    others = [other for other in labels if other not in (document["parent"]["label"], best and best["label"])]
    place = 0 if best is not None and label == best["label"] else 1 + others.index(label)
    return f"var(--series-{place % 4})", _DASHES[place % 4], _SYMBOLS[place % 4]


def called(document: Document, label: str) -> str:
    """What a label stands for: `the model`, `#1, chosen`, `#2`."""
    best = chosen(document)
    if label == document["parent"]["label"]:
        return "the model" if best is None or not is_parent(document, best) else "the model, chosen"
    return f"{label}, chosen" if best is not None and best["label"] == label else label


def figures(document: Document) -> dict[str, Figure]:
    """Id of the element -> the figure to draw in it."""
    found = {
        "memory": memory(document),
        "pareto": pareto(document),
        "context": curve(document, "context", "context_tokens", "largest_tokens"),
        "batch": curve(document, "batch", "batch_sequences", "largest_sequences"),
    }
    if document["sieves"] is not None:
        found["sieves"] = sieves_figure(document)
    if document.get("training") is not None:
        found["training"] = training_figure(document)
    return found | ({"kept": kept(document)} if document["kept_importance"] else {})


def bar_models(document: Document) -> list[Mapping[str, Any]]:
    """The model and the best candidates that are not the model itself, the chosen one among them."""
    others = [candidate for candidate in document["candidates"] if not is_parent(document, candidate)]
    best = chosen(document)
    ahead = sorted(range(len(others)), key=lambda place: (others[place] is not best, place))[: _BARS - 1]
    return [document["parent"], *(others[place] for place in sorted(ahead))]


def memory(document: Document) -> Figure:
    """Stacked memory of the model and the best candidates against the budget."""
    models = bar_models(document)
    unit, size = memory_unit(document)
    names = list(dict.fromkeys(name for model in models for name, count in model["lines_bytes"].items() if count))
    rows = [f"{escape(called(document, m['label']))}<br><b>{format_bytes(m['total_bytes'])}</b>" for m in models]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": line_label(name),
            "y": rows,
            "x": [model["lines_bytes"].get(name, 0) / size for model in models],
            "customdata": [
                [format_bytes(model["lines_bytes"].get(name, 0)), _described(document, model)] for model in models
            ],
            "hovertemplate": (
                f"{escape(line_label(name))} <b>%{{customdata[0]}}</b><br>of %{{y}}<br>%{{customdata[1]}}"
                "<extra></extra>"
            ),
            "marker": {"color": line_colour(name), "line": {"color": "var(--card)", "width": 0.6}},
        }
        for name in names
    ]
    available = document["budget"]["available_bytes"] / size
    most = max(model["total_bytes"] for model in models) / size
    end = 1.04 * max(most, available)
    layout = layout_of(
        80 + 48 * len(models), memory_axis(unit) | {"range": [0, end]}, {"type": "category", "automargin": True}
    )
    layout["yaxis"]["range"] = [len(models) - 0.5, -0.5]
    layout |= {"barmode": "stack", "bargap": 0.42, "hovermode": "closest"}
    layout["yaxis"] |= {"showgrid": False, "ticklabelstandoff": 8, "tickfont": {"color": "var(--ink)", "size": 13}}
    layout["shapes"] = [
        shape("rect", available, end, 0, 1, fillcolor="var(--over)", line={"width": 0}, layer="below"),
        shape("line", available, available, 0, 1, line={"color": "var(--ink)", "width": 1.6, "dash": "dash"}),
    ]
    budget = f"budget {format_bytes(document['budget']['available_bytes'])}"
    # Towards the middle of the chart, so that a budget at either end keeps its label inside.
    side = "right" if available > end / 2 else "left"
    layout["annotations"] = [note(available, 1, budget, yref="paper", yanchor="bottom", xanchor=side)]
    return {"data": data, "layout": layout}


def pareto(document: Document) -> Figure:
    """Memory against what is kept: the front, the best list, the chosen one and the model."""
    best, parent = chosen(document), document["parent"]
    (unit, size), (parameters, _) = memory_unit(document), parameter_unit(document)
    rest = [candidate for candidate in document["candidates"] if candidate is not best]
    data = []
    if document["front"]:
        front = sorted(document["front"], key=lambda point: (point["total_bytes"], point["score_parameters"]))
        data.append(_points(document, front, "Pareto front", "circle", 6, "var(--series-2)", mode="lines+markers"))
    data.append(_points(document, rest, "best list", "circle", 9, "var(--series-1)"))
    data.append(_points(document, [parent], "the model", "x", 10, "var(--series-parent)"))
    if best is not None:
        data.append(_points(document, [best], "chosen", "star", 16, "var(--series-0)"))
    layout = layout_of(360, memory_axis(unit), {"title": axis_title(_score_title(document)), "automargin": True})
    layout["yaxis"] |= {"ticksuffix": f" {parameters}", "nticks": 6}
    available = document["budget"]["available_bytes"] / size
    layout["shapes"] = [shape("line", available, available, 0, 1, line=BUDGET_LINE)]
    layout["annotations"] = [note(available, 1, "budget", yref="paper", yanchor="bottom")]
    layout["hovermode"] = "closest"
    return {"data": data, "layout": layout}


def _score_title(document: Document) -> str:
    plain = all(candidate["score_parameters"] == candidate["parameters"] for candidate in document["candidates"])
    return "parameters" if plain else "effective parameters"


def _points(
    document: Document,
    points: Sequence[Mapping[str, Any]],
    name: str,
    symbol: str,
    size: int,
    colour: str,
    mode: str = "markers",
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": [point["total_bytes"] / memory_unit(document)[1] for point in points],
        "y": [point["score_parameters"] / parameter_unit(document)[1] for point in points],
        "customdata": [
            [
                escape(called(document, point["label"]) if "label" in point else name),
                _described(document, point),
                format_bytes(point["total_bytes"]),
                format_parameters(point["parameters"]),
                format_parameters(point["score_parameters"]),
            ]
            for point in points
        ],
        "hovertemplate": (
            "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>memory %{customdata[2]}<br>parameters %{customdata[3]}"
            "<br>score %{customdata[4]}<extra></extra>"
        ),
        "marker": {"symbol": symbol, "size": size, "color": colour, "line": {"color": "var(--card)", "width": 1}},
        "line": {"color": colour, "width": 1.4, "shape": "hv"},
    }


def _described(document: Document, point: Mapping[str, Any]) -> str:
    return "<br>".join(escape(line) for line in _folded(architecture(document, point)))


def _folded(text: str, width: int = 38) -> list[str]:
    """The parts of a list in lines that a label on a phone has room for."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and len(lines[-1]) + len(part) + 2 <= width:
            lines[-1] += ", " + part
        else:
            lines.append(part)
    return lines


def curve(document: Document, which: str, quantity: str, largest: str) -> Figure:
    """Memory against the context or the batch; a marker where each model meets the budget."""
    points, series = document["curves"][which][quantity], document["curves"][which]["series"]
    labels, here = [one["label"] for one in series], document["workload"][quantity]
    unit = "tokens" if which == "context" else "sequences"
    memory, size = memory_unit(document)
    data: list[dict[str, Any]] = []
    # The chosen one is drawn last, above the others.
    for one in sorted(series, key=lambda one: called(document, one["label"]).endswith("chosen")):
        colour, dash, symbol = series_style(document, one["label"], labels)
        name = escape(called(document, one["label"]))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": points,
                "y": [total / size for total in one["total_bytes"]],
                "line": {"color": colour, "dash": dash, "width": 2.4},
                "hovertemplate": f"<b>{name}</b><br>%{{x:,}} {unit}: %{{y:,.3f}} {memory}<extra></extra>",
            }
        )
        if one[largest] and points[0] <= one[largest] <= points[-1]:
            told = f"fits up to {sequences(one[largest]) if which == 'batch' else f'{one[largest]:,} tokens'}"
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [one[largest]],
                    "y": [one["at_largest_bytes"] / size],
                    "marker": _ring(colour, symbol),
                    "hovertemplate": f"<b>{name}</b><br>{told}<br>%{{y:,.3f}} {memory}<extra></extra>",
                }
            )
    title = "context, tokens" if which == "context" else "sequences at the same time"
    xaxis = _token_axis(points, here) if which == "context" else {"range": [0, points[-1] * 1.03], "nticks": 8}
    layout = layout_of(
        330, xaxis | {"title": axis_title(title)}, memory_axis(memory) | {"rangemode": "tozero", "automargin": True}
    )
    layout["hovermode"] = "closest"
    available = document["budget"]["available_bytes"] / size
    layout["shapes"] = [
        shape("line", 0, 1, available, available, xref="paper", yref="y", line=BUDGET_LINE),
        shape("line", here, here, 0, 1, line={"color": "var(--muted)", "width": 1, "dash": "dot"}),
    ]
    layout["annotations"] = [
        note(0, available, "budget", xref="paper", xanchor="left", yanchor="bottom", xshift=4),
        note(log10(here) if which == "context" else here, 1, "asked for", yref="paper", yanchor="bottom"),
    ]
    return {"data": data, "layout": layout}


def _ring(colour: str, symbol: str) -> dict[str, Any]:
    return {"symbol": symbol, "size": 11, "color": colour, "line": {"color": "var(--card)", "width": 2}}


def _token_axis(points: Sequence[int], here: int) -> dict[str, Any]:
    powers = [2**octave for octave in range(points[-1].bit_length()) if points[0] <= 2**octave <= points[-1]]
    # Counted from the power at or below what is asked for, so that a round 128k has its tick.
    stride, first = 1 + len(powers) // 7, min(here.bit_length() - powers[0].bit_length(), len(powers) - 1)
    ticks = powers[first % stride :: stride]
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [_tokens(tick) for tick in ticks],
        "range": [log10(points[0]), log10(points[-1])],
    }


def _tokens(count: int) -> str:
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if count >= size:
            return f"{count / size:g}{unit}"
    return str(count)


def kept(document: Document) -> Figure:
    """The share of importance that each layer keeps of each axis."""
    rows = document["kept_importance"]
    layers = list(range(len(document["model"]["letters"])))
    best = chosen(document)
    left = set() if best is None else set(best["kept_layer_indices"])
    shares = []
    for row in rows:
        if row["layer_indices"]:
            known = dict(zip(row["layer_indices"], row["importance_shares"], strict=True))
        else:
            known = dict.fromkeys(left, row["importance_shares"][0])
        shares.append([known.get(layer) for layer in layers])
    names = [escape(f"{row['label']} {row['kept_count']:,} of {row['whole_count']:,}") for row in rows]
    hover = "layer %{x}<br>%{y}<br>keeps <b>%{z:.2%}</b> of the importance<extra></extra>"
    data = [
        {
            "type": "heatmap",
            "x": layers,
            "y": names,
            "z": shares,
            "xgap": 1,
            "ygap": 3,
            "hoverongaps": False,
            "hovertemplate": hover,
            "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
            "colorbar": {
                "orientation": "h",
                "thickness": 10,
                "outlinewidth": 0,
                "tickformat": ".3~p",
                "nticks": 5,
                "y": 1.02,
                "yanchor": "bottom",
                "len": 0.6,
                "x": 0,
                "xanchor": "left",
            },
        }
    ]
    xaxis = {"title": axis_title("layer"), "showgrid": False, "range": [-0.5, len(layers) - 0.5], "nticks": 12}
    layout = layout_of(120 + 34 * len(rows), xaxis, {"autorange": "reversed", "automargin": True, "showgrid": False})
    layout["margin"]["t"] = 8
    layout["yaxis"] |= {"tickfont": {"color": "var(--ink)", "size": 12}, "ticklabelstandoff": 6}
    return {"data": data, "layout": layout}
