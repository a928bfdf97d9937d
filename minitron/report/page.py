"""The pieces of a page: sections, tables, badges and legends as HTML, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from minitron.escapes import html as escape

STYLES: Final = tuple(Path(__file__).with_name(name) for name in ("report.css", "planner.css"))

# Nothing but what is in the page itself: a browser refuses anything else, whatever the page holds.
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def head(title: str) -> list[str]:
    """The beginning of a page, up to its body; `title` is text."""
    return [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)} - Minitron</title>",
        '<link rel="icon" href="data:,">',
        *(f"<style>\n{style.read_text(encoding='utf-8')}</style>" for style in STYLES),
        "</head>",
    ]


def footer(version: str) -> str:
    """What stands under every page; `version` is that of the Minitron that made it."""
    told = "Self-contained: this page loads nothing from the network."
    return f"<footer>Made by Minitron {escape(version)}. {told}</footer>"


def json_text(value: Any) -> str:
    """JSON that no HTML parser ends early: no `<` or `&` stands in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def section(title: str, said: str, *body: str, kind: str = "") -> str:
    """A card; `title` and `said` are text, `body` is HTML."""
    told = f'<p class="said">{escape(said)}</p>' if said else ""
    return "\n".join([f"<section{class_of(kind)}>", f"<h2>{escape(title)}</h2>", told, *body, "</section>"])


def class_of(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""


def chart(name: str, told: str) -> str:
    return f'<div class="chart" id="{name}" role="img" aria-label="{escape(told)}"></div>'


Cell = str | tuple[str, str]
"""Text, or text and the class of its cell."""


def table(columns: Sequence[Cell], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """A table in a box of its own that scrolls; rows are (class, cells), the first column holds words."""

    def line(tag: str, kind: str, cells: Sequence[Cell]) -> str:
        found = []
        for place, cell in enumerate(cells):
            text, own = (cell, "") if isinstance(cell, str) else cell
            own = own or ("words" if place == 0 else "")
            found.append(f"<{tag}{class_of(own)}>{inline(text)}</{tag}>")
        return f"<tr{class_of(kind)}>{''.join(found)}</tr>"

    body = "\n".join(line("td", kind, cells) for kind, cells in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead>{line("th", "", columns)}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


class Markup(str):
    """HTML that has been escaped already."""


def inline(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)


def badge(text: str, kind: str, told: str = "") -> Markup:
    title = f' title="{escape(told)}"' if told else ""
    return Markup(f'<span class="badge {escape(kind)}"{title}>{escape(text)}</span>')


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Entries are (colour, class of the swatch, text)."""
    items = "".join(
        f'<li><span class="swatch {kind}" style="--swatch: {colour}"></span>{escape(text)}</li>'
        for colour, kind, text in entries
    )
    return f'<ul class="legend">{items}</ul>'
