"""All output to the terminal: results on stdout, progress and notes on stderr.  Nothing else in Minitron prints.

    table(title, columns, rows)     a table on stdout; a cell is text, an int, a float or None
    line(text)                      a line of the result on stdout
    paragraph(text)                 the same, broken into lines of 78 columns at most
    memory_bar(parts, budget)       a bar of memory against a budget
    document(value)                 the --json printer: one JSON document on stdout
    note(text)                      a remark on stderr
    bar                             a minitron.progress.Progress: `with bar("Scoring", total, "tokens") as advance:`
    run_document(...)               the document of a command that wrote something

Every text is shown in visible characters (minitron.escapes): a name from a config or a file gives a terminal no orders.
A command with --json calls `document` once and neither `table` nor `line`.  In a terminal a table that is too wide is
split between columns, its first column repeated; in a pipe it keeps its full width, so that a line stays a line.
"""

import json
import logging
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from minitron.escapes import visible
from minitron.progress import Advance
from minitron.units import format_bytes

Cell = str | int | float | None

# Text goes out as it is: no markup, no emoji and no guessed colours in paths, layer maps or numbers.
_RESULTS: Final = Console(markup=False, emoji=False, highlight=False)
if not _RESULTS.is_terminal:
    _RESULTS.width = 10_000  # rich would fold at 80 columns what goes into a pipe or a file
_MESSAGES: Final = Console(markup=False, emoji=False, highlight=False, stderr=True)

# Seconds between two lines about one bar where no bar can be drawn.
_PLAIN_INTERVAL: Final = 10.0
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


def note(text: str) -> None:
    """Print a remark on stderr, above any bar that is drawn."""
    _MESSAGES.print(Text(visible(text)), soft_wrap=not _MESSAGES.is_terminal)


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage(), keep="\n")


def guard_libraries() -> None:
    """From here on what libraries log and warn of is shown in visible characters, too: they name what they read."""
    logging.setLogRecordFactory(_VisibleRecord)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *about, **more: visible(plain(*about, **more), keep="\n")


class _RateColumn(ProgressColumn):
    """`1,240 tokens/s`."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else visible(_rate(speed, str(task.fields["unit"]))))


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


# One drawing of all open bars: a terminal has room for one live region only.
_drawn: Progress | None = None


@contextmanager
def bar(description: str, total: float, unit: str) -> Iterator[Advance]:
    """A bar on stderr with percentage, rate, time left and a note; a line now and then where stderr is no terminal.

    `total` is counted in `unit`s, a plural such as `tokens`.  Bars may be nested."""
    opened = _live_bar if _MESSAGES.is_interactive else _plain_bar
    with opened(description, total, unit) as advance:
        yield advance


@contextmanager
def _live_bar(description: str, total: float, unit: str) -> Iterator[Advance]:
    global _drawn
    outermost = _drawn is None
    if _drawn is None:
        _drawn = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=_MESSAGES,
            # stdout may be a file or a pipe, and rich would send what is printed there to the bar's console.
            redirect_stdout=False,
        )
        _drawn.start()
    progress = _drawn
    task = progress.add_task(visible(description), total=total, unit=unit, note="")

    def advance(amount: float, note: str = "") -> None:
        progress.advance(task, amount)
        if note:
            progress.update(task, note=visible(note))

    try:
        yield advance
    finally:
        progress.stop_task(task)
        if outermost:
            progress.stop()
            _drawn = None


@contextmanager
def _plain_bar(description: str, total: float, unit: str) -> Iterator[Advance]:
    started = told = time.monotonic()
    done, latest = 0.0, ""

    def tell() -> None:
        seconds = max(time.monotonic() - started, 1e-9)
        parts = [f"{description}: {done:,.0f} of {total:,.0f} {unit}", _rate(done / seconds, unit)]
        if 0 < done < total:
            parts.append(f"{(total - done) * seconds / done:,.0f} s left")
        note(", ".join(parts + ([latest] if latest else [])))

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, latest, told
        done += amount
        latest = note or latest
        if time.monotonic() - told >= _PLAIN_INTERVAL:
            told = time.monotonic()
            tell()

    yield advance
    tell()


def set_progress(way: str) -> None:
    """How bars are told from here on."""
