"""What all figures share: the layout, axes, lines and notes."""

from __future__ import annotations

from typing import Any, Final

from minitron.escapes import html as escape

BUDGET_LINE: Final = {"color": "var(--ink)", "width": 1.4, "dash": "dash"}
"""The line at which the budget ends."""

_HOVER: Final = {
    "bgcolor": "var(--card)",
    "bordercolor": "var(--line)",
    "font": {"color": "var(--ink)", "size": 13},
    "align": "left",
}


def layout_of(height: int, xaxis: dict[str, Any], yaxis: dict[str, Any]) -> dict[str, Any]:
    """What all figures share.  Dragging scrolls the page, and nothing zooms: axes are chosen to show all there is."""
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "fixedrange": True,
        "ticks": "",
    }
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 26, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "dragmode": False,
        "hoverlabel": _HOVER,
        "xaxis": axis | xaxis,
        "yaxis": axis | yaxis,
    }


def memory_axis(unit: str) -> dict[str, Any]:
    """An axis of memory in `unit`."""
    return {"title": axis_title(f"memory, {unit}"), "nticks": 8}


def axis_title(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"text": escape(text), "standoff": 8, "font": {"size": 12}}


def shape(kind: str, x0: float, x1: float, y0: float, y1: float, **more: Any) -> dict[str, Any]:
    """A line or rectangle whose heights are shares of the figure."""
    return {"type": kind, "xref": "x", "yref": "paper", "x0": x0, "x1": x1, "y0": y0, "y1": y1} | more


def note(x: float, y: float, text: str, **more: Any) -> dict[str, Any]:
    font = {"color": "var(--ink)", "size": 12}
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": font} | more
