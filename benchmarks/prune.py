"""`minitron prune` of a checkpoint of Nemotron-Nano-9B-v2's shapes beside `cp -r`: time and memory.

    python benchmarks/prune.py --work runs/prune --config Nemotron-Nano-9B-v2.json [--gib 8] [--repeats 3]
                              [--cut selection|rotation]

Makes a checkpoint with random weights of at most --gib GiB, with as many of the model's first layers as that holds.
MLP channels and Mamba heads are cut by selection, the residual stream by rotation.  Every measured run begins with the
source out of the page cache; copies are written to the disk (`sync` of their files), as prune does by itself.  Runs
take turns; medians are told.  The table goes into benchmarks/RESULTS.md.  Needs Linux and four times --gib of disk.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from random_checkpoint import make
from smollm2 import write_section

from minitron.cut.basis import Basis
from minitron.cut.plan import Plan, make_plan
from minitron.cut.rotation import reads_stream
from minitron.cut.scores import Key, Scores
from minitron.cut.selection import STREAM
from minitron.files import read_json
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import ModelSpec, read_spec, spec_of
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")
KEPT = 0.8
"""The share of MLP channels, of Mamba heads and of the residual stream that stays."""

ALLOWED = 2**29
"""What may come on top of the largest tensor."""

_MINITRON = "from cli.app import main; main()"
_IMPORTS = "import torch, minitron.cut.prune, minitron.model.loading; torch.zeros(1)"


@dataclass(frozen=True)
class Run:
    """A command that was run."""

    seconds: float
    anonymous: int
    """The most anonymous memory in bytes that was seen (RssAnon)."""

    mapped: int
    """The most pages of mapped files in bytes (RssFile), those of the libraries among them."""


def small(config: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """`config` with as many of the first layers as stay within `limit` bytes in bf16."""
    spec = spec_of({key: value for key, value in config.items() if value is not None})
    counts = range(len(spec.layers), 0, -1)
    sizes = (spec.resized({}, tuple(range(count))) for count in counts)
    return dict(next(one for one in sizes if 2 * one.parameters().total <= limit).config)


def selection(spec: ModelSpec) -> Plan:
    """MLP channels and Mamba heads by random scores."""
    rng = np.random.default_rng(0)
    importance: dict[Key, np.ndarray] = {}
    for layer, kind in enumerate(spec.layers):
        axes = frozenset().union(*(rule.axes for rule in spec.rules[kind]))
        if "ffn" in axes:
            importance["ffn", layer] = rng.random(spec.sizes["ffn"])
        if "mamba_head" in axes:
            importance["mamba_channel", layer] = rng.random((spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"]))
    groups = spec.sizes[spec.family.grouped["mamba_head"]]
    sizes = {
        spec.key("ffn"): int(KEPT * spec.sizes["ffn"]),
        spec.key("mamba_head"): int(KEPT * spec.sizes["mamba_head"]) // groups * groups,
    }
    scores = Scores(importance, {}, spec.fingerprint, "0" * 64)
    return make_plan(spec, sizes, tuple(range(len(spec.layers))), scores)


def rotation(spec: ModelSpec) -> Plan:
    """The residual stream by random directions."""
    size = spec.sizes["hidden"]
    matrix, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, int(KEPT * size) // 64 * 64)))
    norms = {one.name: (1.0,) for one in spec.expected() if reads_stream(one.rule)}
    sizes = {spec.key("hidden"): matrix.shape[1]}
    return Plan(spec.fingerprint, sizes, tuple(range(len(spec.layers))), {STREAM: Basis(matrix)}, norms)


def watched(command: list[str]) -> Run:
    """Run a command to its end, and look at its memory forty times a second."""
    started, most = time.monotonic(), {"RssAnon": 0, "RssFile": 0}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in most:
                most[name] = max(most[name], int(value.split()[0]) * 2**10)
        time.sleep(0.025)
    _, told = process.communicate()
    if process.returncode:
        raise SystemExit(told.decode())
    return Run(time.monotonic() - started, most["RssAnon"], most["RssFile"])


def cold(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(model: Path, work: Path, plan: Path, repeats: int) -> dict[str, list[Run]]:
    """`repeats` runs of each kind, one kind after the other."""
    output = work / "out"
    copy = ["sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "sh", str(model), str(output)]
    cut = [sys.executable, "-c", _MINITRON, "prune", str(model), "--plan", str(plan), "-o", str(output)]
    commands = {"`cp -r`, `sync`": copy, "`minitron prune`": cut}
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(repeats):
        for name, command in commands.items():
            shutil.rmtree(output, ignore_errors=True)
            cold(model)
            found[name].append(watched(command))
            print(number, name, found[name][-1], flush=True)
    shutil.rmtree(output, ignore_errors=True)
    return found


def matmul_speed(size: int, kept: int) -> float:
    """GFLOP/s of fp32 products of a shape that a rotation takes, as torch makes them with its own number of threads."""
    left, right = torch.randn(2048, size), torch.randn(size, kept)
    seconds = []
    for _ in range(7):
        started = time.monotonic()
        left @ right
        seconds.append(time.monotonic() - started)
    return 2 * 2048 * size * kept / median(seconds) / 1e9


def operations(spec: ModelSpec, kept: int) -> float:
    """What a rotation of the residual stream to `kept` directions has to multiply and add."""
    return sum(
        2.0 * torch.Size(one.shape).numel() * kept
        for one in spec.expected()
        if len(one.shape) > 1 and one.rule.norm is None and "hidden" in one.rule.axes
    )


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="config.json of the model whose shapes are taken")
    parser.add_argument("--cut", choices=list(CUTS), default="selection")
    parser.add_argument("--gib", type=float, default=8.0, help="size of the checkpoint; the whole model has 16.6")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--state", default="busy", help="what is said of the machine")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.work / "model"
    if not model.exists():
        document = read_json(options.config)
        make(model, small(document.get("config", document), options.gib * 2**30))
    spec, checkpoint = read_spec(model), Checkpoint(model)
    plan = options.work / f"{options.cut}.json"
    CUTS[options.cut](spec).save(plan, overwrite=True)
    base = watched([sys.executable, "-c", _IMPORTS])
    found = measured(model, options.work, plan, options.repeats)
    lines = section(spec, checkpoint, base, found, options.cut, options.state)
    if options.cut == "rotation":
        seconds = median(run.seconds for run in found["`minitron prune`"])
        lines += arithmetic(spec, seconds)
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))


def section(
    spec: ModelSpec, checkpoint: Checkpoint, base: Run, found: Mapping[str, list[Run]], cut: str, state: str
) -> list[str]:
    """The lines for RESULTS.md."""
    largest = max(header.num_bytes for header in checkpoint.headers.values())
    first = next(iter(found.values()))
    copied = median(run.seconds for run in first)
    rows = [
        f"| {name} | {median(run.seconds for run in runs):.1f} | "
        f"{', '.join(f'{run.seconds:.1f}' for run in runs)} | {median(run.seconds for run in runs) / copied:.2f} | "
        f"{format_bytes(max(run.anonymous for run in runs))} | {format_bytes(max(run.mapped for run in runs))} |"
        for name, runs in found.items()
    ]
    what = {"selection": "the MLP channels and Mamba heads stay", "rotation": "the residual stream's directions stay"}
    return [
        f"## Pruning files: {cut}, {state} machine (`benchmarks/prune.py --cut {cut} --state {state}`)",
        "",
        f"Nemotron-Nano-9B-v2's shapes, {len(spec.layers)} layers, random weights in bf16: "
        f"{format_bytes(checkpoint.weight_bytes)}, the largest tensor {format_bytes(largest)}. {KEPT:.0%} of "
        f"{what[cut]}. Whole commands, imports included, taking turns, source out of the page cache, everything on the "
        f"disk at the end; {torch.get_num_threads()} threads on a {state} machine.",
        "",
        "| | seconds, median | all runs | of `cp` | most anonymous memory | most mapped pages |",
        "|---|--:|--:|--:|--:|--:|",
        *rows,
        "",
        f"A process that has imported torch and transformers has {format_bytes(base.anonymous)} of anonymous memory "
        f"and {format_bytes(base.mapped)} of mapped pages, those of libraries. Allowance: the largest "
        f"tensor + 512 MiB = {format_bytes(largest + ALLOWED)}.",
        "",
    ]


def arithmetic(spec: ModelSpec, seconds: float) -> list[str]:
    """What is said of a rotation's products, made in a command that took so long."""
    kept = int(KEPT * spec.sizes["hidden"]) // 64 * 64
    plain, work = matmul_speed(spec.sizes["hidden"], kept), operations(spec, kept)
    return [
        f"The rotation multiplies and adds {work / 1e12:.1f} * 10^12 times in fp32: {work / seconds / 1e9:.0f} GFLOP/s "
        f"over the whole command, {plain:.0f} GFLOP/s in a plain product of 2,048 rows on the same machine.",
        "",
    ]


CUTS: Final[dict[str, Callable[[ModelSpec], Plan]]] = {"selection": selection, "rotation": rotation}


if __name__ == "__main__":
    main()
