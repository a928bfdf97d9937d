"""Our search against the leading tool's procedure (benchmarks/rival.py), at the same bytes and on the same texts.

    python benchmarks/search.py --work runs/search [--points 10,20,30,40] [--seeds 2] [--tokens 98304]
    python benchmarks/search.py --work runs/search-smollm2 --model PARENT --data TRAIN --text HELDOUT ...

For each budget (so many per cent fewer bytes of weights) and each calibration seed: both choose; KL to the parent right
after the cut on held-out text; random feasible architectures cut our way and measured one by one; the damage model's
rank correlation with the truth on those; both distilled for the same tokens.  Every measurement is one file of the work
folder: a run that was stopped goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rival import rival_choice, rival_scores
from smollm2 import write_section

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from importance.search.least_squares import spearman
from importance.search.sieves import SieveOptions, planner, sieve
from importance.search.trial import Trials
from importance.search.verdicts import Sieved
from minitron import builtin
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.cut.scores import Scores, load_scores
from minitron.files import read_json, write_json
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.workload import Workload
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.search.counting import Worth
from minitron.search.lattice import Lattice, Points
from minitron.search.search import build_lattice, search
from minitron.search.search_steps import LatticeOptions

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512
WORKLOAD = Workload(context=1, batch=1)
"""So small that the bytes that count are those of the weights."""

FEW = 8
"""Held-out sequences by which hundreds of random architectures are measured, and ours beside them."""

UNSEEN = 64
"""Random architectures by which the damage model is judged."""


class Bench:
    """One model, its texts, and what was measured of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work
        self.spec = read_spec(options.model)
        every = self._blocks(options.data, options.calibration + options.calibration // 2 + options.judging)
        # Judging sequences from the whole text, and none of them calibrates.
        place = np.linspace(0, len(every) - 1, options.judging).round().astype(int)
        self.judging = every[place]
        self.rest = np.delete(every, place, axis=0)
        self.heldout = self._blocks(options.text, options.heldout)

    def _blocks(self, path: Path, samples: int) -> NDArray[np.int64]:
        tokenizer = load_tokenizer(self.options.model)
        return token_blocks(tokenizer, path, sequence_length=SEQUENCE_LENGTH, samples=samples)

    @cached_property
    def model(self) -> Any:
        return load_model(self.options.model, dtype=torch.float32, device=torch.device(self.options.device))

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model)

    def calibration(self, seed: int) -> NDArray[np.int64]:
        """Other sequences for each seed, as far as the text reaches."""
        return np.random.default_rng(seed).permutation(self.rest)[: self.options.calibration]

    @property
    def lattice(self) -> dict[str, Any]:
        """Options of minitron.search.search.build_lattice, the same for all sides."""
        return {"options": LatticeOptions(multiples=dict(self.options.multiple), most=dict(self.options.most))}

    def budget(self, percent: int) -> Budget:
        """So many per cent fewer bytes of weights, and what the model takes beside them."""
        whole = footprint(self.spec, WORKLOAD, 0)
        return Budget(int(whole.weights * (1 - percent / 100)) + whole.total - whole.weights, workspace=0)

    def quality(self, plan: Plan, sequences: int | None = None) -> dict[str, float]:
        """On the first held-out sequences, all of them unless given, cut in memory."""
        small = cut_model(self.model, self.spec, plan)
        found = measure_quality(small, self.heldout[:sequences], teacher=self.teacher, batch_size=self.options.batch)
        return {"kl": found.kl_to_teacher or 0.0, "perplexity": found.perplexity}

    def scores(self, seed: int, *, rival: bool) -> Scores:
        """Made once for each seed; the seconds they took are in their settings."""
        path = self.work / f"{'rival' if rival else 'ours'}-{seed}.safetensors"
        if not path.exists():
            blocks, started = self.calibration(seed), time.monotonic()
            if rival:
                made = rival_scores(self.model, self.spec, blocks, self.options.batch)
            else:
                made = score_model(
                    self.model,
                    self.spec,
                    blocks,
                    ScoringOptions(
                        batch_size=self.options.batch,
                        estimator=self.options.estimator,
                        layer_samples=self.options.layer_samples,
                        max_dropped=max(1, len(self.spec.layers) // 5),
                    ),
                )
            replace(made, settings={**made.settings, "seconds": time.monotonic() - started}).save(path)
        return load_scores(path)

    def trials(self, name: str) -> Trials:
        return Trials(
            self.model, self.spec, self.judging, batch_size=self.options.batch, store=self.work / f"{name}.jsonl"
        )

    def point(self, percent: int, seed: int) -> dict[str, Any]:
        """Both choices for one budget and seed, right after the cut."""
        path = self.work / f"point-{percent}-{seed}.json"
        if path.exists():
            return dict(read_json(path))
        candidate, plan, ten = rival_choice(
            self.trials(f"rival-{seed}"),
            self.scores(seed, rival=True),
            WORKLOAD,
            self.budget(percent),
            self.lattice,
        )
        theirs = self.quality(plan) | {"sizes": dict(candidate.sizes), "layers": candidate.letters}
        theirs |= {"ten": [found.kl for found in ten], "bytes": candidate.footprint.weights}
        self.cut(plan, f"rival-{percent}-{seed}")

        scored, started = self.scores(seed, rival=False).settings["seconds"], time.monotonic()
        trials, scores, _, sieved = self.sieve(percent, seed)
        seconds = time.monotonic() - started + scored
        best = sieved.result.candidates[0]
        make = planner(trials, scores)
        chosen = make(best.sizes, best.kept)
        ours = self.quality(chosen) | {"sizes": dict(best.sizes), "layers": best.letters}
        ours |= {"bytes": best.footprint.weights, "search_seconds": seconds, "evaluations": sieved.evaluations}
        self.cut(chosen, f"ours-{percent}-{seed}")
        found = {"ours": ours, "rival": theirs, "feasible": sieved.result.feasible}
        write_json(path, found)
        return found

    def chance(self, percent: int, seed: int) -> dict[str, Any]:
        """Random architectures of one budget, cut our way: what they lose, and what the damage model says of them."""
        path = self.work / f"random-{percent}-{seed}.json"
        if path.exists():
            return dict(read_json(path))
        # All of it was measured before: this finds the same model and the same choice.
        trials, scores, lattice, sieved = self.sieve(percent, seed)
        make, best, rng = planner(trials, scores), sieved.result.candidates[0], np.random.default_rng(1000 + seed)
        worth = Worth(lambda points: rng.random(points.shape), "chance")
        drawn = search(
            lattice, WORKLOAD, self.budget(percent), scores=scores, worth=worth, top=self.options.random
        ).candidates
        truth = [self.quality(make(one.sizes, one.kept), FEW)["kl"] for one in drawn]
        seen = [(verdict.candidate.sizes, verdict.candidate.kept) for verdict in sieved.verdicts]
        unseen = [place for place, one in enumerate(drawn) if (one.sizes, one.kept) not in seen][:UNSEEN]
        assert sieved.model is not None
        predicted = sieved.model.predict(_points(lattice, [drawn[place] for place in unseen]))
        found = {
            "random_best": min(truth),
            "ours_there": self.quality(make(best.sizes, best.kept), FEW)["kl"],
            "random_median": median(truth),
            "rank_correlation": spearman(predicted, np.array([truth[place] for place in unseen])),
        }
        write_json(path, found)
        return found

    def sieve(self, percent: int, seed: int) -> tuple[Trials, Scores, Lattice, Sieved]:
        """Our search, which goes on from what was measured before."""
        scores, trials = self.scores(seed, rival=False), self.trials(f"ours-{seed}")
        lattice = build_lattice(self.spec, WORKLOAD, scores=scores, **self.lattice)
        sieved = sieve(trials, lattice, WORKLOAD, self.budget(percent), scores, options=SieveOptions(seed=seed))
        return trials, scores, lattice, sieved

    def cut(self, plan: Plan, name: str) -> None:
        """The pruned checkpoint as a folder, to distil."""
        if not (self.work / name).exists():
            prune(self.options.model, plan, self.work / name)

    def recover(self, name: str) -> list[dict[str, float]]:
        """The held-out KL by tokens while the pruned checkpoint `name` is distilled."""
        path = self.work / f"curve-{name}.json"
        if not path.exists():
            options = self.options
            recipe = Recipe(
                tokens=options.tokens,
                sequence_length=SEQUENCE_LENGTH,
                batch_tokens=options.batch_tokens,
                learning_rate=options.learning_rate,
                precision="fp32",
                validate_every=max(1, options.tokens // options.batch_tokens // 12),
                validation_sequences=FEW,
            )
            training = options.training or options.data
            result = distill(
                Distillation(
                    self.work / name,
                    options.model,
                    training,
                    self.work / f"distilled-{name}",
                    validation=options.text,
                    device=options.device,
                    overwrite=True,
                ),
                recipe,
            )
            write_json(path, result.curve)
        return list(read_json(path))


def _points(lattice: Any, candidates: list[Any]) -> Points:
    spec = lattice.spec
    depth = np.array([lattice.depths.index(one.kept) for one in candidates])
    sizes = {
        axis: np.array([one.sizes.get(spec.key(axis), spec.sizes[axis]) for one in candidates])
        for axis in sorted(lattice.varied)
    }
    return Points(depth, sizes, depth.shape)


def tokens_to_reach(curve: list[dict[str, float]], kl: float) -> float:
    """Tokens after which a curve first is at `kl` or below, between two validations by the logarithm of the KL."""
    for before, after in pairwise(curve):
        if curve[0]["kl"] <= kl:
            return 0.0
        if after["kl"] <= kl:
            share = (log(before["kl"]) - log(kl)) / (log(before["kl"]) - log(after["kl"]))
            return before["tokens"] + share * (after["tokens"] - before["tokens"])
    return float("inf")


def section(bench: Bench, rows: list[dict[str, Any]], title: str) -> str:
    """The section of RESULTS.md."""
    columns = [
        "fewer bytes",
        "seed",
        "ours: KL, perplexity",
        "baseline: KL, perplexity",
        "ratio of KL",
        "best of random: ratio",
        "rank correlation",
        "after distillation: KL ours / baseline",
        "tokens to the baseline's KL",
        "search",
    ]
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "--:|" * len(columns)]
    for row in rows:
        ours, rival = row["ours"], row["rival"]
        random = f"{row['ours_there'] / row['random_best']:.2f}" if "random_best" in row else ""
        rank = f"{row['rank_correlation']:.3f}" if "random_best" in row else ""
        after = tokens = ""
        if "ours_curve" in row:
            mine, theirs = row["ours_curve"][-1], row["rival_curve"][-1]
            after = f"{mine['kl']:.4f} / {theirs['kl']:.4f}"
            tokens = f"{tokens_to_reach(row['ours_curve'], theirs['kl']) / theirs['tokens']:.2f}"
        lines.append(
            f"| {row['percent']} % | {row['seed']} | {ours['kl']:.4f}, {ours['perplexity']:.2f} | {rival['kl']:.4f}, "
            f"{rival['perplexity']:.2f} | {ours['kl'] / rival['kl']:.3f} | {random} | {rank} | {after} | {tokens} | "
            f"{ours['search_seconds']:.0f} s |"
        )
    options = bench.options
    lines += [
        "",
        f"`{options.model.name}`: {options.calibration} sequences of {SEQUENCE_LENGTH} tokens to score on, "
        f"{len(bench.judging)} others to judge by, {len(bench.heldout)} held out, by which all figures here are taken. "
        f"{options.random} random architectures that fit, cut our way. Distilled on {options.tokens:,} tokens, "
        f"{options.batch_tokens:,} a step, learning rate {options.learning_rate:g}. Seconds are of "
        "scoring and search on one thread.",
        "",
        "What was chosen:",
        "",
        *(
            f"- {row['percent']} %, seed {row['seed']}: ours {_told(row['ours'])}; baseline {_told(row['rival'])}"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


def pair(number: type) -> Callable[[str], tuple[str, Any]]:
    """Reads `KEY=N`."""

    def read(text: str) -> tuple[str, Any]:
        key, _, value = text.partition("=")
        return key, number(value)

    return read


def _told(found: dict[str, Any]) -> str:
    sizes = ", ".join(f"{key} {size}" for key, size in found["sizes"].items() if key != "num_hidden_layers")
    return f"`{found['layers']}` {sizes}"


def bench_options(parser: argparse.ArgumentParser) -> None:
    """Add what a Bench asks for, but for defaults of one's own."""
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=builtin.MODEL)
    parser.add_argument("--data", type=Path, default=builtin.CALIBRATION, help="calibration and judging text")
    parser.add_argument("--training", type=Path, help="text to distil on")
    parser.add_argument("--text", type=Path, default=builtin.HELDOUT, help="held-out text")
    parser.add_argument("--judging", type=int, default=8)
    parser.add_argument("--heldout", type=int, default=24)
    parser.add_argument("--layer-samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--estimator", default="best")
    parser.add_argument("--multiple", type=pair(int), action="append", default=[], metavar="KEY=N")
    parser.add_argument("--most", type=pair(float), action="append", default=[], metavar="KEY=SHARE")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    bench_options(parser)
    parser.add_argument("--title", default="Search: the built-in model (`benchmarks/search.py`)")
    parser.add_argument("--points", default="10,20,30,40")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=98_304, help="to distil on; 0 for no distillation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, rows = Bench(options), []
    points = [(int(percent), int(seed)) for seed in options.seeds.split(",") for percent in options.points.split(",")]
    for percent, seed in points:
        row = {"percent": percent, "seed": seed} | bench.point(percent, seed)
        if options.random:
            row |= bench.chance(percent, seed)
        if options.tokens:
            row |= {f"{who}_curve": bench.recover(f"{who}-{percent}-{seed}") for who in ("ours", "rival")}
        rows.append(row)
        print(section(bench, [row], options.title), flush=True)
    text = section(bench, sorted(rows, key=lambda row: (row["percent"], row["seed"])), options.title)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
