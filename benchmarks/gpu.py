"""Everything that needs a GPU, measured in under ten minutes on one H100.

    python benchmarks/gpu.py [--out runs/gpu] [--parts fp8,loss] [--results benchmarks/RESULTS.md]

Writes gpu.json (versions, the GPU, every part's numbers and errors), gpu.md (one table) and log.txt into the folder.
Parts run one after the other in a process that is started anew when one fails or takes longer than its budget: the
others go on, all that was measured is written, and the script ends with 1.

An image with Python 3.11, torch 2.11, triton and transformers 5.18, or later ones, is enough, without a network.  What
is needed beside them is gathered where there is one, for the image's Python, and travels as a folder of wheels:

    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 --platform manylinux_2_12_x86_64 -d runs/wheels \\
        psutil pytest iniconfig pluggy pygments liger-kernel
    pip install --no-index --no-deps --find-links runs/wheels \\
        psutil pytest iniconfig pluggy pygments liger-kernel            # there
    PYTHONPATH=. python benchmarks/gpu.py --out gpu

Without liger-kernel its rows say so; mamba-ssm and causal-conv1d are used where they are, and the JSON says whether.

    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny    # all parts, at sizes at which no number means anything
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from gpu_setting import Setting

from minitron import __version__
from minitron.files import write_json, write_text
from minitron.units import format_bytes

ROOT = Path(__file__).parent.parent
START = 120.0
"""Seconds in which a process must have loaded torch."""

LONGEST = 300
"""Characters of an error that is told; the log has all of it."""

HEADING = "## On a GPU (`benchmarks/gpu.py`)"


@dataclass(frozen=True)
class Part:
    """A part of the measurements."""

    function: str
    """module:function; it takes a Setting and yields rows."""

    budget: float
    """Seconds after which it is given up; what it had found by then stays."""


PARTS: dict[str, Part] = {
    "tests": Part("gpu_tests:tests", 90),
    "fp8": Part("gpu_teacher:fp8", 60),
    "loss": Part("gpu_loss:loss", 50),
    "distill": Part("gpu_training:distill", 60),
    "compiled": Part("gpu_training:compiled", 120),
    "checkpoints": Part("gpu_training:checkpoints", 50),
    "offload": Part("gpu_memory:offload", 160),
    "memory": Part("gpu_memory:memory", 40),
}
LIBRARIES = (
    *("torch", "triton", "transformers", "mamba-ssm", "causal-conv1d", "liger-kernel", "transformer-engine"),
    *("numpy", "safetensors"),
)


class _Telling:
    """Tells the connection how the block failed, and lets the failure go on: the process ends with it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.connection.send(("failed", f"{kind.__name__}: {' '.join(str(error).split())}"[:LONGEST]))


def serve(connection: Connection, setting: Setting, log: Path) -> None:
    """Run the parts that the connection names, in a process of its own, until it names none."""
    os.setsid()
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    with _Telling(connection):
        connection.send(("about", _about(setting)))
    while (name := connection.recv()) is not None:
        print(f"--- {name}", flush=True)
        module, _, function = PARTS[name].function.partition(":")
        with _Telling(connection):
            for row in getattr(importlib.import_module(module), function)(setting):
                connection.send(("row", asdict(row)))
        connection.send(("done", None))


def _about(setting: Setting) -> dict[str, Any]:
    """What torch says of the device."""
    if not setting.on_gpu:
        return {"gpu": None}
    import torch

    properties = torch.cuda.get_device_properties(setting.place)
    return {
        "gpu": properties.name,
        "memory": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "cuda": torch.version.cuda,
    }


class Worker:
    """A process that runs parts."""

    def __init__(self, setting: Setting, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, setting, log))
        self.process.start()
        theirs.close()

    def messages(self, budget: float) -> Any:
        """What it says until it has done, failed or used up its seconds: the last one is `done`, `failed` or `late`."""
        started = time.monotonic()
        while True:
            left = budget - (time.monotonic() - started)
            if not self.connection.poll(max(left, 0.0)):
                yield "late", f"took longer than its {budget:g} s"
                return
            try:
                kind, value = self.connection.recv()
            except EOFError:
                self.process.join(10)
                yield "failed", f"its process ended with {self.process.exitcode}"
                return
            yield kind, value
            if kind in ("done", "failed", "about"):
                return

    def end(self, patience: float = 0.0) -> None:
        """End it and what it started, if it has not ended by itself after so many seconds."""
        self.process.join(patience)
        if self.process.is_alive() and self.process.pid is not None:
            # It leads a group of its own from its first line on; before that there is nothing but itself.
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
        self.process.join()
        self.connection.close()


def measure(names: list[str], setting: Setting, budgets: dict[str, float], log: Path) -> dict[str, Any]:
    """All that is known of the device, and part -> rows, seconds and error."""
    about: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    worker: Worker | None = None
    try:
        for name in names:
            rows, error, patience = list[dict[str, Any]](), None, 0.0
            started = time.monotonic()
            if worker is None:
                worker = Worker(setting, log)
                ((kind, value),) = worker.messages(START)
                about, error = (value, None) if kind == "about" else (about, value)
            began = time.monotonic()
            if error is None:
                worker.connection.send(name)
                for kind, value in worker.messages(budgets[name]):
                    if kind == "row":
                        rows.append(value)
                    elif kind != "done":
                        # One that failed still writes what it knows of it into the log.
                        error, patience = value, 10.0 if kind == "failed" else 0.0
            now = time.monotonic()
            parts[name] = {
                "seconds": round(now - began, 2),
                "starting": round(began - started, 2),
                "budget": budgets[name],
                "rows": rows,
                "error": error,
            }
            print(
                f"{name}: {now - began:.1f} s, {len(rows)} rows{'' if error is None else f', {error}'}", file=sys.stderr
            )
            if error is not None:
                worker.end(patience)
                worker = None
        if worker is not None:
            worker.connection.send(None)
            worker.end(10.0)
            worker = None
    finally:
        if worker is not None:
            worker.end()
    return about | {"parts": parts}


def table(document: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    where = document.get("gpu") or f"{document['device']} (no figure of it means anything)"
    lines = [HEADING, "", f"{where}; {versions}; {document['seconds']:.0f} s in all.", ""]
    lines += ["| part | | | |", "|---|---|--:|---|"]
    for name, part in document["parts"].items():
        for row in part["rows"]:
            lines.append(f"| {name} | {_cell(row['what'])} | {_value(row)} | {_cell(row['note'])} |")
        if part["error"] is not None:
            lines.append(f"| {name} | **failed** | | {_cell(part['error'])} |")
        lines.append(f"| {name} | its time | {part['seconds']:.1f} s | of {part['budget']:g} s |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _value(row: dict[str, Any]) -> str:
    value, unit = row["value"], row["unit"]
    if value is None or isinstance(value, str):
        return value or ""
    if unit == "B":
        return format_bytes(int(value))
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {unit}".strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json, gpu.md and log.txt")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see whether everything runs")
    parser.add_argument("--work", type=Path, help="where checkpoints are written; default: the system's folder")
    parser.add_argument(
        "--budget", action="append", default=[], metavar="PART=SECONDS", help="another budget of a part"
    )
    parser.add_argument("--tests", type=Path, default=ROOT / "tests" / "gpu", help="folder of the tests")
    parser.add_argument("--results", type=Path, help="a Markdown file that gets the table as a section")
    options = parser.parse_args()
    options.names = options.parts.split(",")
    options.budgets = {name: part.budget for name, part in PARTS.items()}
    for given in options.budget:
        name, _, number = given.partition("=")
        options.budgets[name] = float(number)
    if unknown := (set(options.names) | set(options.budgets)) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose among {', '.join(PARTS)}")
    return options


def main() -> int:
    """Parse the command line, measure, write."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "log.txt"
    log.write_bytes(b"")
    started, when = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=options.work) as work:
        setting = Setting(options.device, options.tiny, Path(work), options.tests.resolve())
        found = measure(options.names, setting, options.budgets, log)
    document = {
        "minitron": __version__,
        "started": when,
        "seconds": round(time.monotonic() - started, 2),
        "device": options.device,
        "tiny": options.tiny,
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in LIBRARIES},
        **found,
    }
    write_json(options.out / "gpu.json", document)
    section = table(document)
    write_text(options.out / "gpu.md", section)
    if options.results is not None:
        from smollm2 import write_section

        write_section(options.results, section)
    print(section)
    failed = {name: part["error"] for name, part in document["parts"].items() if part["error"] is not None}
    if failed:
        print(json.dumps({"failed": failed}), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
