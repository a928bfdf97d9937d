"""--dry-run: the option, and how what a command would do is printed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import show
from minitron.errors import MinitronError
from minitron.units import format_bytes
from pipeline.dry_run import Foreseen

DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would be read, written and needed, how long it takes at least, and what would be refused; write "
        "nothing.",
    ),
]


def tell(
    found: Foreseen, output: Path, inputs: Mapping[str, Any], settings: Mapping[str, Any], *, as_json: bool
) -> None:
    """Print a dry run; raises MinitronError where memory or disk are short."""
    if as_json:
        show.document(show.run_document(output, inputs, settings, {"dry_run": found.to_json()}, 0.0))
    else:
        _print(found)
    if found.short:
        raise MinitronError(found.short[0])


def _print(found: Foreseen) -> None:
    for title, sizes in (("Would read", found.reads), ("Would write, at least", found.writes)):
        show.table(title, ["what", "size"], [[name, format_bytes(size)] for name, size in sizes.items()])
    memory, disk = sum(found.memory.values()), sum(found.writes.values())
    rows: list[list[show.Cell]] = [[name, format_bytes(size), None] for name, size in found.memory.items()]
    rows.append([f"memory of {found.device}, at least", format_bytes(memory), format_bytes(found.available_memory)])
    rows.append(["disk, at least", format_bytes(disk), format_bytes(found.available_disk)])
    show.table("Needed", ["what", "needed", "there"], rows)
    seconds = found.seconds
    times: list[list[show.Cell]] = [[name, _time(value)] for name, value in seconds.items()]
    show.table("Time, at least", ["step", "time"], [*times, ["all", _time(sum(seconds.values()))]])
    show.paragraph(
        f"Time: matmuls at {found.flops / 1e9:,.1f} GFLOP/s and files at {format_bytes(int(found.bandwidth))}/s, both "
        "measured here for a second; what is neither comes on top."
    )
    for note in found.notes:
        show.paragraph(f"Note: {note}.")
    show.line("Nothing was written.")


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
