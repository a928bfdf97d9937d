"""Tokens of distillation: what today's recipe reaches with so many, and how many each way of training needs for that.

    python benchmarks/recovery.py --work runs/recovery [--points 35] [--seeds 0,1,2] [--tokens 151552]
        [--way 'stream matching:stream_weight=20'] ...
    python benchmarks/recovery.py --work runs/recovery-smollm2 --model PARENT --data TRAIN --text HELDOUT ...

For each point (so many per cent fewer bytes of weights): the closed form's choice of sizes, cut by our scores, and
distilled by the plain recipe at the learning rates given, of which the best at the first seed is taken, and in every
way at the same rates.  A way is a name and fields of the recipe; where its rates are to be others, it names its own
(`learning_rate=0.001`).  Beside it, where benchmarks/peer_choices.json has sizes of the leading tool for the model and
as many fewer parameters, these, cut as that tool does: channels by its scores, without a refit.  Every run is one file
of the work folder: a run that was stopped goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cached_property
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rival import rival_choice
from search import SEQUENCE_LENGTH, WORKLOAD, Bench, bench_options, tokens_to_reach
from smollm2 import write_section

from distill.recipe import AUTO, Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.cut.plan import Plan, make_plan
from minitron.cut.prune import prune
from minitron.files import read_json, write_json
from minitron.model.identity import weights_of
from minitron.search.depth import depth_of, match_pattern
from minitron.search.search import build_lattice, search

CHOICES = Path(__file__).with_name("peer_choices.json")
PLAIN = "today's"
DEPTH = "num_hidden_layers"
TITLE = "Tokens of distillation: the built-in model (`benchmarks/recovery.py`)"

Way = dict[str, Any]
"""Fields of the recipe."""


class Recovery(Bench):
    """One model, students of it, and their curves."""

    @cached_property
    def ways(self) -> dict[str, Way]:
        """The plain recipe, and those to compare with it."""
        return {PLAIN: {"stream_weight": 0.0}} | dict(self.options.way)

    @property
    def teacher_folder(self) -> Path:
        """The model on whose logits students are trained: the one that is cut, unless that is a student itself."""
        return Path(self.options.teacher or self.options.model)

    def student(self, percent: float) -> Path:
        """The closed form's choice, as `minitron prune --scores` cuts it, or the sizes that --sizes names."""
        folder: Path = self.work / f"student-{percent:g}"
        if not folder.exists() and (sizes := dict(self.options.sizes).get(percent)) is not None:
            scores = self.scores(0, rival=False)
            layers = sizes.get(DEPTH, len(self.spec.layers))
            kept = depth_of(self.spec, WORKLOAD, layers, scores=scores)
            cut = {key: size for key, size in sizes.items() if key != DEPTH}
            self.prune(make_plan(self.spec, cut, kept, scores), folder)
        if not folder.exists():
            scores = self.scores(0, rival=False)
            lattice = build_lattice(self.spec, WORKLOAD, scores=scores, **self.lattice)
            best = search(lattice, WORKLOAD, self.budget(percent), scores=scores).best
            self.prune(make_plan(self.spec, best.sizes, best.kept, scores), folder)
        return folder

    def prune(self, plan: Plan, folder: Path) -> None:
        """Cut into a folder, with the KL right after it beside."""
        write_json(self.work / f"cut-{folder.name}.json", self.quality(plan) | {"sizes": dict(plan.sizes)})
        prune(self.options.model, replace(plan, weights=weights_of(self.options.model)), folder)

    def rival(self, percent: int) -> Path | None:
        """The leading tool's choice, cut as it does; None where it is not known and its procedure not asked for."""
        points = read_json(CHOICES)["points"]
        known = [
            point
            for point in points
            if point["model"] == self.options.peer and point["fewer_parameters_percent"] == percent
        ]
        if not known and not self.options.rival:
            return None
        folder: Path = self.work / f"rival-{percent}"
        if not folder.exists() and not known:
            scores, budget = self.scores(0, rival=True), self.budget(percent)
            _, plan, _ = rival_choice(self.trials("rival"), scores, WORKLOAD, budget, self.lattice)
            self.prune(plan, folder)
        if not folder.exists():
            (point,), scores = known, self.scores(0, rival=True)
            sizes = {key: size for key, size in point["sizes"].items() if key in self.spec.keys}
            kept = match_pattern(self.spec, point["layers"], scores)
            plan = make_plan(self.spec, sizes, kept, scores, rotate=False, refit=False, project=False)
            self.prune(plan, folder)
        return folder

    def distilled(self, student: Path, name: str, rate: float | str, seed: int) -> Path:
        """The folder of one run's output."""
        return Path(self.work / f"distilled-{student.name}-{name.replace(' ', '-')}-{_rate(rate)}-{seed}")

    def curve(self, student: Path, name: str, way: Way, rate: float | str, seed: int) -> list[dict[str, Any]]:
        """The held-out KL by tokens of one run."""
        output = self.distilled(student, name, rate, seed)
        path = self.work / f"curve-{output.name.removeprefix('distilled-')}.json"
        if not path.exists():
            options = self.options
            fields = {
                "tokens": options.tokens,
                "sequence_length": SEQUENCE_LENGTH,
                "batch_tokens": options.batch_tokens,
                "learning_rate": rate,
                "precision": "fp32",
                "seed": seed,
                "validate_every": max(1, options.tokens // options.batch_tokens // 12),
                "validation_sequences": len(self.heldout),
            }
            asked = Distillation(
                *(student, self.teacher_folder, options.training or options.data, output),
                validation=options.text,
                device=self.options.device,
                overwrite=True,
            )
            result = distill(asked, Recipe.of(fields | way))
            rate = result.recipe.learning_rate  # the one that was found, where it was to be found
            write_json(path, {"curve": result.curve, "seconds": result.seconds, "learning_rate": rate})
        return list(read_json(path)["curve"])

    def best_rate(self, student: Path, name: str, way: Way) -> float | str:
        """The learning rate with which the first seed ends at the lowest KL."""
        if "learning_rate" in way:
            return float(way["learning_rate"]) if way["learning_rate"] != AUTO else AUTO
        rates = [float(rate) for rate in self.options.rates.split(",")]
        return min(rates, key=lambda rate: self.curve(student, name, way, rate, self.seeds[0])[-1]["kl"])

    def ahead(self, percents: list[int]) -> None:
        """Make all students, then run all curves that the rows may ask for in --jobs processes at a time."""
        students = [(self.student(percent), list(self.ways)) for percent in percents]
        students += [(rival, [PLAIN]) for percent in percents if (rival := self.rival(percent)) is not None]
        rates = [float(rate) for rate in self.options.rates.split(",")]
        jobs = [
            (self.options, student, name, rate, seed)
            for seed in self.seeds
            for student, names in students
            for name in names
            for rate in ([self.ways[name]["learning_rate"]] if "learning_rate" in self.ways[name] else rates)
        ]
        with ProcessPoolExecutor(self.options.jobs, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_one_curve, *zip(*jobs, strict=True)))

    @property
    def seeds(self) -> list[int]:
        """Of the order of the text."""
        return [int(seed) for seed in self.options.seeds.split(",")]

    def row(self, percent: int) -> dict[str, Any]:
        """All ways at one point."""
        student, runs = self.student(percent), {}
        for name, way in self.ways.items():
            rate = self.best_rate(student, name, way)
            runs[name] = {"rate": rate, "curves": [self.curve(student, name, way, rate, seed) for seed in self.seeds]}
        row = {"percent": percent, "cut": read_json(self.work / f"cut-{student.name}.json"), "runs": runs}
        if (rival := self.rival(percent)) is not None:
            way = self.ways[PLAIN]
            rate = self.best_rate(rival, PLAIN, way)
            curves = [self.curve(rival, PLAIN, way, rate, seed) for seed in self.seeds]
            row["rival"] = {"cut": read_json(self.work / f"cut-{rival.name}.json"), "rate": rate, "curves": curves}
        return row


def _one_curve(options: argparse.Namespace, student: Path, name: str, rate: float | str, seed: int) -> None:
    torch.set_num_threads(1)
    bench = Recovery(options)
    bench.curve(student, name, bench.ways[name], rate, seed)


def section(bench: Recovery, rows: list[dict[str, Any]], title: str) -> str:
    """The section of RESULTS.md."""
    columns = ["fewer bytes", "way", "rate", "KL after the cut", "KL at the end, by seed", "of today's"]
    columns += ["tokens to today's KL, of all", "of the leading tool's student"]
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|--:|---|" + "--:|" * (len(columns) - 2)]
    for row in rows:
        plain, rival = row["runs"][PLAIN]["curves"], row.get("rival")
        for name, run in row["runs"].items():
            pairs = list(zip(run["curves"], plain, strict=True))
            share = median(mine[-1]["kl"] / theirs[-1]["kl"] for mine, theirs in pairs)
            needed = median(tokens_to_reach(mine, theirs[-1]["kl"]) / theirs[-1]["tokens"] for mine, theirs in pairs)
            against = "" if rival is None else f"{_end(run) / _end(rival):.3f}"
            reached = "not reached" if needed == inf else format(needed, ".2f")
            told = f"{row['percent']} % | {name} | {_rate(run['rate'])} | {row['cut']['kl']:.4f} | {_ends(run)}"
            lines.append(f"| {told} | {share:.3f} | {reached} | {against} |")
        if rival is not None:
            lines.append(
                f"| {row['percent']} % | the leading tool's sizes and cut, {PLAIN} | {_rate(rival['rate'])} | "
                f"{rival['cut']['kl']:.4f} | {_ends(rival)} | | | |"
            )
    options = bench.options
    lines += [
        "",
        f"`{options.model.name}`, {options.tokens:,} tokens in steps of {options.batch_tokens:,}, sequences of "
        f"{SEQUENCE_LENGTH}, fp32 on {options.device}; the learning rate of each is the best of {options.rates} at the "
        f"first seed, unless it names its own. KL to the parent in nats on {bench.heldout.size:,} held-out tokens, of "
        f"the weights in training; ratios are medians over seeds {options.seeds} of the order of the text.",
        "",
        *(f"- {name}: `{json.dumps(way)}`" for name, way in bench.ways.items()),
        "",
    ]
    return "\n".join(lines)


def _rate(rate: float | str) -> str:
    return rate if isinstance(rate, str) else f"{rate:g}"


def _end(run: dict[str, Any]) -> float:
    return median(float(curve[-1]["kl"]) for curve in run["curves"])


def _ends(run: dict[str, Any]) -> str:
    return ", ".join(f"{curve[-1]['kl']:.4f}" for curve in run["curves"])


def way(text: str) -> tuple[str, Way]:
    """Reads `NAME:field=value,field=value`."""
    name, _, fields = text.partition(":")
    pairs = (field.partition("=") for field in fields.split(",") if field)
    return name, {key: _value(value) for key, _, value in pairs}


def sizes(text: str) -> tuple[float, dict[str, int]]:
    """Reads `PERCENT:key=size,key=size`."""
    percent, _, cut = text.partition(":")
    return float(percent), {key: int(size) for key, _, size in (part.partition("=") for part in cut.split(","))}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def recovery_options(parser: argparse.ArgumentParser, title: str) -> None:
    """Add what a Recovery asks for, but for defaults of one's own."""
    bench_options(parser)
    parser.add_argument("--title", default=title)
    parser.add_argument("--points", default="35")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=151_552, help="to distil on")
    parser.add_argument("--way", type=way, action="append", default=[], metavar="NAME:FIELD=VALUE,...")
    parser.add_argument(
        "--sizes", type=sizes, action="append", default=[], metavar="PERCENT:KEY=SIZE,...",
        help="the student's sizes at a point, such as those that a measured search chose",
    )  # fmt: skip
    parser.add_argument("--teacher", type=Path, help="the model to learn from, where it is not the one that is cut")


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    recovery_options(parser, TITLE)
    parser.add_argument("--peer", default="the built-in model", help=f"the model's name in {CHOICES.name}")
    parser.add_argument("--rival", action="store_true", help="where it has no such model, the leading tool's procedure")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    bench, percents = Recovery(options), [int(percent) for percent in options.points.split(",")]
    if options.jobs > 1:
        bench.ahead(percents)
    rows = [bench.row(percent) for percent in percents]
    text = section(bench, rows, options.title)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
