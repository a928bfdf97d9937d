"""Cuts in steps against one cut: as many bytes in the end, and as many tokens of distillation in all.

    python benchmarks/steps.py --work runs/steps --rates 1e-3 [--points 35,50] [--first 0.33] [--tokens 151552]

For each point (so many per cent fewer bytes of weights): the closed form's choice, cut at once and distilled for all
tokens; and the same in two cuts of one factor, of which the first is distilled for the share `--first` of the tokens,
scored anew and cut to the same bytes, and the second for the rest, each with a learning rate that rises and falls.  The
teacher is the whole model throughout, and streams are matched (a student of a student knows where its stream lies in
the whole model's).  Every run is one file of the work folder: a run that was stopped goes on.  The table goes into
benchmarks/RESULTS.md.
"""

import argparse
import copy
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from recovery import Recovery, recovery_options
from smollm2 import write_section

from minitron.files import read_json

TITLE = "Cuts in steps (`benchmarks/steps.py`)"
NAME = "stream matching"


def bench(options: argparse.Namespace, model: Path, tokens: int, name: str) -> Recovery:
    """`model`, cut and distilled from the whole model, in a folder of its own."""
    changed = copy.copy(options)
    changed.model, changed.tokens, changed.work = model, tokens, options.work / name
    changed.teacher = options.model
    changed.work.mkdir(parents=True, exist_ok=True)
    return Recovery(changed)


def at_once(options: argparse.Namespace, percent: int, rate: float, seed: int) -> dict[str, Any]:
    """One cut."""
    whole = bench(options, options.model, options.tokens, "once")
    student = whole.student(percent)
    curve = whole.curve(student, NAME, {"stream_weight": options.weight}, rate, seed)
    return {"curves": [curve], "sizes": [read_json(whole.work / f"cut-{student.name}.json")["sizes"]]}


def in_steps(options: argparse.Namespace, percent: int, rate: float, seed: int) -> dict[str, Any]:
    """Two cuts of one factor."""
    half = 100 * (1 - sqrt(1 - percent / 100))
    early = max(1, round(options.first * options.tokens / options.batch_tokens)) * options.batch_tokens
    found: dict[str, Any] = {"curves": [], "sizes": []}
    model, told = options.model, f"{percent}-{rate:g}-{seed}"
    for name, tokens in (("first", early), ("second", options.tokens - early)):
        part = bench(options, model, tokens, f"steps-{told}-{name}")
        student = part.student(half)
        found["curves"].append(part.curve(student, NAME, {"stream_weight": options.weight}, rate, seed))
        found["sizes"].append(read_json(part.work / f"cut-{student.name}.json")["sizes"])
        model = part.distilled(student, NAME, rate, seed)
    return found


def row(percent: int, way: str, rate: float, runs: list[dict[str, Any]]) -> str:
    """A line of the table: the KL after each cut and each distillation, by seed."""
    told = ", ".join(" -> ".join(f"{c[0]['kl']:.4f} to {c[-1]['kl']:.4f}" for c in run["curves"]) for run in runs)
    return f"| {percent} % | {way} | {rate:g} | {told} |"


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    recovery_options(parser, TITLE)
    parser.add_argument("--first", type=float, default=0.33, help="share of the tokens between the two cuts")
    parser.add_argument("--weight", type=float, default=20.0, help="of the stream's error")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"one cut": at_once, f"two cuts, {options.first:.0%} of the tokens between them": in_steps}
    lines = [f"## {options.title}", "", "| fewer bytes | way | rate | KL after a cut to KL after distillation |"]
    lines.append("|--:|---|--:|---|")
    for percent in map(int, options.points.split(",")):
        for rate in map(float, options.rates.split(",")):
            for way, run in ways.items():
                runs = [run(options, percent, rate, int(seed)) for seed in options.seeds.split(",")]
                lines.append(row(percent, way, rate, runs))
                print(lines[-1], [found["sizes"] for found in runs], flush=True)
    lines += [
        "",
        f"`{options.model.name}`, {options.tokens:,} tokens in all, in steps of {options.batch_tokens:,}, fp32; seeds "
        f"{options.seeds} of the order of the text. KL to the whole model in nats on held-out text.",
        "",
    ]
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
