"""All output to the terminal: results on stdout, progress and notes on stderr.  Nothing else in Minitron prints.

    table(title, columns, rows)     a table on stdout; a cell is text, an int, a float or None
    line(text)                      a line of the result on stdout
    paragraph(text)                 the same, broken into lines of 78 columns at most
    memory_bar(parts, budget)       a bar of memory against a budget
    document(value)                 the --json printer: one JSON document on stdout
    note(text)                      a remark on stderr
    bar                             a minitron.progress.Progress: `with bar("Scoring", total, "tokens") as advance:`
    begin(way, subject)             how bars and remarks are told from here on, and for which model
    run_document(...)               the document of a command that wrote something

Every text is shown in visible characters (minitron.escapes): a name from a config or a file gives a terminal no orders.
A command with --json calls `document` once and neither `table` nor `line`.  In a terminal a table that is too wide is
split between columns, its first column repeated; in a pipe it keeps its full width, so that a line stays a line.
"""

import json
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import bars
from cli.telling import MESSAGES, Telling, begin, event, note
from minitron.escapes import visible
from minitron.progress import Advance, silent
from minitron.units import format_bytes

Cell = str | int | float | None

# Text goes out as it is: no markup, no emoji and no guessed colours in paths, layer maps or numbers.
_RESULTS: Final = Console(markup=False, emoji=False, highlight=False)
if not _RESULTS.is_terminal:
    _RESULTS.width = 10_000  # rich would fold at 80 columns what goes into a pipe or a file

_PADDING: Final = 3


def cell(value: Cell) -> str:
    """What stands in a table for `value`: 1,234,567 for an int, four significant digits for a float, - for None."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table on stdout; numbers and all columns but the first are set to the right."""
    texts = [[visible(cell(value)) for value in row] for row in rows]
    heads = [visible(name) for name in columns]
    widths = [
        max(cell_len(text) for text in [name, *(row[i] for row in texts)]) + _PADDING for i, name in enumerate(heads)
    ]
    room = _RESULTS.width if _RESULTS.is_terminal else sum(widths)
    if title:
        line(title)
    for shown in _split(widths, room):
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i in shown:
            left = i == 0 or _is_words([row[i] for row in rows])
            drawn.add_column(Text(heads[i]), justify="left" if left else "right", overflow="fold")
        for row in texts:
            drawn.add_row(*(Text(row[i]) for i in shown))
        _RESULTS.print(drawn, width=min(room, sum(widths[i] for i in shown)))
        line("")


def _is_words(cells: Sequence[Cell]) -> bool:
    """Whether a column holds words: some text in it begins with a letter."""
    return any(isinstance(value, str) and value[:1].isalpha() for value in cells)


def _split(widths: Sequence[int], room: int) -> list[list[int]]:
    """Groups of column indices that fit into `room` characters each, column 0 in front of every group."""
    groups: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(groups[-1]) > 1 and sum(widths[j] for j in groups[-1]) + widths[i] > room:
            groups.append([0])
        groups[-1].append(i)
    return groups


def line(text: str) -> None:
    """Print a line of the result on stdout."""
    _RESULTS.print(Text(visible(text)), soft_wrap=not _RESULTS.is_terminal)


_SHADES: Final = "█▓▒░"
_BAR_WIDTH: Final = 60


def memory_bar(parts: Sequence[tuple[str, int]], budget: int) -> None:
    """Print at most four parts as one bar of shades against a budget, with what each shade means below it.

    A `|` stands where the budget ends; what is free of it is dotted."""
    whole = max(sum(size for _, size in parts), budget, 1)
    edges = [round(sum(size for _, size in parts[:i]) / whole * _BAR_WIDTH) for i in range(len(parts) + 1)]
    shades = zip(_SHADES, edges, edges[1:], strict=False)
    drawn = "".join(shade * (end - start) for shade, start, end in shades).ljust(_BAR_WIDTH, "·")
    mark = round(budget / whole * _BAR_WIDTH)
    line(f"{drawn[:mark]}|{drawn[mark:]}")
    told = [f"{shade} {name} {format_bytes(size)}" for shade, (name, size) in zip(_SHADES, parts, strict=False) if size]
    line("  ".join(told))
    line(f"| budget {format_bytes(budget)}")


_READABLE: Final = 78


def paragraph(text: str) -> None:
    """Print a sentence or more on stdout, broken into lines that an old terminal shows whole."""
    for each in textwrap.wrap(text, _READABLE, subsequent_indent="  "):
        line(each)


def document(value: Any) -> None:
    """Print one JSON document on stdout, a path in it as text.

    Raises ValueError for NaN and infinity, which are no JSON: give None for what could not be measured."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    if not text.isprintable():
        # What visible() would spell out stands in strings alone, where JSON has its own spelling.
        text = "".join(one if visible(one, keep="\n") == one else json.dumps(one)[1:-1] for one in text)
    sys.stdout.write(text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no place in a JSON document")


def run_document(
    output: Path | None,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The document of a command that ran: what it wrote, from what, how, what came of it, and how long it took.

    `seconds` is the wall time of the whole command."""
    return {
        "output": None if output is None else str(output),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "results": dict(results),
        "seconds": round(seconds, 3),
    }


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage(), keep="\n")


def guard_libraries() -> None:
    """From here on what libraries log and warn of is shown in visible characters, too: they name what they read."""
    logging.setLogRecordFactory(_VisibleRecord)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *about, **more: visible(plain(*about, **more), keep="\n")


@contextmanager
def bar(description: str, total: float, unit: str) -> Iterator[Advance]:
    """A bar on stderr with percentage, rate, time left and a note; a line a minute where stderr is no terminal.

    `total` is counted in `unit`s, a plural such as `tokens`.  Bars may be nested; one line is drawn."""
    ways = {"live": bars.live, "lines": bars.lines, "json": bars.objects, "none": silent}
    way = Telling.way if Telling.way in ways else "live" if MESSAGES.is_interactive else "lines"
    with ways[way](description, total, unit) as advance:
        yield advance


__all__ = [
    "Cell",
    "Telling",
    "bar",
    "begin",
    "cell",
    "document",
    "event",
    "guard_libraries",
    "line",
    "memory_bar",
    "note",
    "paragraph",
    "run_document",
    "table",
]
