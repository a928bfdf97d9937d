"""How long work is told on stderr: a line that moves, a line a minute in a log, or JSON objects for programs.

cli.show.bar chooses among them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from cli.telling import MESSAGES, Telling, event
from cli.telling import note as remark
from minitron.escapes import visible
from minitron.progress import Advance

MINUTE: Final = 60.0
"""Seconds between two lines about one kind of work where no bar can be drawn."""

SECOND: Final = 1.0
"""Seconds between two objects about one bar."""


class _RateColumn(ProgressColumn):
    """`1,240 tokens/s`."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else visible(rate(speed, str(task.fields["unit"]))))


def rate(speed: float, unit: str) -> str:
    """`1,240 tokens/s`."""
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


# One drawing of all open bars: a terminal has room for one live region only, and it shows the innermost bar.
_drawn: Progress | None = None


@contextmanager
def live(description: str, total: float, unit: str) -> Iterator[Advance]:
    """One line that moves: the stage, what is done and for whom."""
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
            console=MESSAGES,
            # stdout may be a file or a pipe, and rich would send what is printed there to the bar's console.
            redirect_stdout=False,
        )
        _drawn.start()
    progress = _drawn
    around = [one.id for one in progress.tasks if one.visible]
    for outer in around:
        progress.update(outer, visible=False)
    task = progress.add_task(visible(_whole(description)), total=total, unit=unit, note="")

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
        else:
            progress.remove_task(task)
            for outer in around:
                progress.update(outer, visible=True)


def _whole(description: str) -> str:
    """`[2/6] plan: Measuring candidates, SmolLM2-135M`."""
    stage = f"{Telling.stage}: " if Telling.stage else ""
    return f"{stage}{description}" + (f", {Telling.subject}" if Telling.subject else "")


@contextmanager
def lines(description: str, total: float, unit: str) -> Iterator[Advance]:
    """A line a minute, and one when it is done, but not where the same was done a moment before."""
    started = time.monotonic()
    done, latest, told = 0.0, "", Telling.told

    def tell() -> None:
        told[description] = time.monotonic()
        seconds = max(time.monotonic() - started, 1e-9)
        parts = [f"{description}: {done:,.0f} of {total:,.0f} {unit}", rate(done / seconds, unit)]
        if 0 < done < total:
            parts.append(f"{(total - done) * seconds / done:,.0f} s left")
        remark(", ".join(parts + ([latest] if latest else [])))

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, latest
        done += amount
        latest = note or latest
        if time.monotonic() - max(started, told.get(description, started)) >= MINUTE:
            tell()

    yield advance
    before = told.get(description)
    if before is None or before > started or time.monotonic() - before >= MINUTE:
        tell()


@contextmanager
def objects(description: str, total: float, unit: str) -> Iterator[Advance]:
    """JSON objects, one a line: `begin`, `progress` once a second, and `end`."""
    started = told = time.monotonic()
    done, latest = 0.0, ""

    def tell(kind: str) -> None:
        about = {"stage": Telling.stage, "subject": Telling.subject, "work": description, "unit": unit}
        seconds = round(time.monotonic() - started, 3)
        event(kind, **about, done=done, total=total, seconds=seconds, note=latest)

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, latest, told
        done += amount
        latest = note or latest
        if time.monotonic() - told >= SECOND:
            told = time.monotonic()
            tell("progress")

    tell("begin")
    yield advance
    tell("end")
