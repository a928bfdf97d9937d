"""Sizes by layer against one size for all layers, at the same bytes and on the same texts.

    python benchmarks/per_layer.py --work runs/per-layer [--points 20,35] [--shuffles 4]

For each budget (so many per cent fewer bytes of weights): the search by measurement chooses one size for all layers;
sizes by layer are chosen for the same bytes; the control gives each layer the sizes of another one of its kind, which
takes the same bytes.  Sizes by layer may go further down than the lattice of the search does, so one size for all
layers is also chosen with that freedom, by the same measured curves.  All are judged on held-out text.  Measurements
are kept in the work folder: a run that was stopped goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
from collections.abc import Mapping
from itertools import chain, permutations, product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from smollm2 import write_section

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from importance.search.per_layer import PerLayer, PerLayerOptions, Tried, refine
from importance.search.sieves import SieveOptions, planner, sieve
from importance.search.trial import Trials
from importance.search.verdicts import Sieved
from minitron import builtin
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan, make_plan
from minitron.cut.scores import load_scores
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.workload import Workload
from minitron.model.by_layer import ByLayer
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.search.depth import Kept
from minitron.search.per_layer import Layers, Option, distinct_starts, least_damage
from minitron.search.search import build_lattice

TITLE = "Sizes by layer (`benchmarks/per_layer.py`)"
RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512
WORKLOAD = Workload(context=1, batch=1)
"""So small that the bytes that count are those of the weights."""


class Bench:
    """The built-in model, its texts and its scores."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.spec = options, read_spec(builtin.MODEL)
        options.work.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(builtin.MODEL)
        every = token_blocks(
            tokenizer,
            builtin.CALIBRATION,
            sequence_length=SEQUENCE_LENGTH,
            samples=options.calibration + options.judging,
        )
        place = np.linspace(0, len(every) - 1, options.judging).round().astype(int)
        calibration = np.delete(every, place, axis=0)
        self.heldout = token_blocks(
            tokenizer, builtin.HELDOUT, sequence_length=SEQUENCE_LENGTH, samples=options.heldout
        )
        self.model = load_model(builtin.MODEL, dtype=torch.float32, device=torch.device("cpu"))
        self.teacher = Teacher(self.model)
        path = options.work / "scores.safetensors"
        if not path.exists():
            how = ScoringOptions(batch_size=4, layer_samples=8, max_dropped=2)
            score_model(self.model, self.spec, calibration, how).save(path)
        self.scores = load_scores(path)
        self.trials = Trials(self.model, self.spec, every[place], batch_size=4, store=options.work / "trials.jsonl")
        self.lattice = build_lattice(self.spec, WORKLOAD, scores=self.scores)

    def plan(self, sizes: Mapping[str, int], kept: Kept, by_layer: ByLayer | None = None) -> Plan:
        return make_plan(self.spec, sizes, kept, self.scores, by_layer=by_layer)

    def kl(self, plan: Plan) -> float:
        """On the held-out text."""
        small = cut_model(self.model, self.spec, plan)
        found = measure_quality(small, self.heldout, teacher=self.teacher, batch_size=4)
        return found.kl_to_teacher or 0.0

    def uniform(self, percent: int) -> Sieved:
        """The search by measurement, one size for all layers."""
        whole = footprint(self.spec, WORKLOAD, 0)
        budget = Budget(int(whole.weights * (1 - percent / 100)) + whole.total - whole.weights, workspace=0)
        asked = self.options
        how = SieveOptions(combinations=asked.combinations, finalists=asked.finalists, rounds=2)
        return sieve(
            self.trials,
            self.lattice,
            WORKLOAD,
            budget,
            self.scores,
            plan=planner(self.trials, self.scores),
            options=how,
        )

    def point(self, percent: int) -> dict[str, Any]:
        """Everything of one budget."""
        sieved = self.uniform(percent)
        best = sieved.result.candidates[0]
        uniform = self.plan(best.sizes, best.kept)
        available = int(footprint(uniform.target(self.spec), WORKLOAD).total)
        starts = distinct_starts(self.spec, sieved.result.candidates, WORKLOAD)
        found = refine(self.trials, starts, uniform, self.scores, self.plan, available, options=PerLayerOptions())
        chosen = min(found.tried, key=lambda one: one.measured.loss)
        print(percent, best.sizes, best.letters, chosen, flush=True)
        row = {
            "percent": percent,
            "bytes": (available, chosen.bytes),
            "uniform": self.kl(uniform),
            "per_layer": self.kl(self.plan(chosen.sizes, chosen.kept, chosen.by_layer)),
            "alike": self.kl(self.plan(chosen.sizes, chosen.kept, self.alike(found, chosen, available))),
            "shuffled": [
                self.kl(self.plan(chosen.sizes, chosen.kept, other)) for other in self.shuffled(chosen.by_layer)
            ],
            "measured": sieved.evaluations,
            "curves": sum(len(curve) for curve in found.damages.measured.values()),
            "candidates": len(found.tried),
            "chosen": chosen,
            "best": best,
        }
        print({key: row[key] for key in ("uniform", "per_layer", "alike", "shuffled")}, flush=True)
        return row

    def alike(self, found: PerLayer, chosen: Tried, available: int) -> ByLayer:
        """The sizes of least loss by the same curves, of those that are the same in all layers of a kind."""
        layers = Layers(self.spec, chosen.sizes, chosen.kept, WORKLOAD)
        menus, kinds = layers.menus(found.damages.of), self.kinds(chosen.by_layer)
        # Layers of one kind have the same options in the same order.
        joint = {
            own: tuple(
                Option(one[0].sizes, sum(option.saved for option in one), sum(option.damage for option in one))
                for one in zip(*(menus[layer] for layer in own), strict=True)
            )
            for own in kinds
        }
        taken = least_damage({own[0]: menu for own, menu in joint.items()}, layers.whole - available)
        assert taken is not None
        return layers.by_layer({layer: taken[own[0]] for own in kinds for layer in own})

    def kinds(self, by_layer: ByLayer) -> list[tuple[int, ...]]:
        """The layers of each kind."""
        layers = sorted({layer for sizes in by_layer.values() for layer in sizes})
        every = dict.fromkeys(self.spec.layers[layer] for layer in layers)
        return [tuple(layer for layer in layers if self.spec.layers[layer] == kind) for kind in every]

    def shuffled(self, by_layer: ByLayer) -> list[ByLayer]:
        """The same sizes in other layers of the kind, in some of the ways that there are."""
        kinds, found = self.kinds(by_layer), []
        for orders in product(*map(permutations, kinds)):
            to = dict(zip(chain(*kinds), chain(*orders), strict=True))
            other = {key: {to[layer]: size for layer, size in sizes.items()} for key, sizes in by_layer.items()}
            if other != by_layer and other not in found:
                found.append(other)
        chosen = np.random.default_rng(0).permutation(len(found))[: self.options.shuffles]
        return [found[place] for place in sorted(chosen.tolist())]


def section(bench: Bench, rows: list[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    lines = [
        f"## {TITLE}",
        "",
        "| fewer bytes | one size for all layers, by search | by layer | ratio | by layer, shuffled | ratio | one "
        "size, as deep | ratio of by layer to it |",
        "|" + "--:|" * 8,
    ]
    for row in rows:
        shuffled = mean(row["shuffled"])
        lines.append(
            f"| {row['percent']} % | {row['uniform']:.4f} | {row['per_layer']:.4f} | "
            f"{row['per_layer'] / row['uniform']:.2f} | {shuffled:.4f} ({min(row['shuffled']):.4f} to "
            f"{max(row['shuffled']):.4f}) | {shuffled / row['uniform']:.2f} | {row['alike']:.4f} | "
            f"{row['per_layer'] / row['alike']:.2f} |"
        )
    options, first = bench.options, rows[0]
    lines += [
        "",
        f"KL to the built-in model on {len(bench.heldout)} held-out sequences of {SEQUENCE_LENGTH} tokens; choices "
        f"were made by {options.judging} others, on scores of {options.calibration}. Sizes by layer take no more bytes "
        "than the one size for all layers that the search chose. Shuffled: each layer has the sizes of another one of "
        f"its kind, {len(first['shuffled'])} ways. As deep: one size for all layers of a kind by the same curves and "
        "with the same freedom, which goes further down than the search's lattice. Measured for sizes by layer: "
        f"{first['curves']} cuts of one layer alone, of use at every budget, and {first['candidates']} candidates at "
        "each.",
        "",
        "What was chosen:",
        "",
    ]
    for row in rows:
        best, chosen = row["best"], row["chosen"]
        sizes = ", ".join(f"{key} {n}" for key, n in best.sizes.items() if n != bench.spec.named_sizes.get(key))
        own = ", ".join(
            f"{key} {'/'.join(str(sizes[layer]) for layer in sorted(sizes))}" for key, sizes in chosen.by_layer.items()
        )
        others = "".join(f", {key} {size}" for key, size in chosen.sizes.items())
        lines.append(
            f"- {row['percent']} %: one size `{best.letters}` {sizes}; by layer, in the order of layers: {own}{others}"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--points", default="20,35")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--judging", type=int, default=8)
    parser.add_argument("--heldout", type=int, default=24)
    parser.add_argument("--shuffles", type=int, default=4)
    parser.add_argument("--combinations", type=int, default=16)
    parser.add_argument("--finalists", type=int, default=12)
    bench = Bench(options := parser.parse_args())
    rows = [bench.point(int(percent)) for percent in options.points.split(",")]
    write_section(RESULTS, section(bench, rows))


if __name__ == "__main__":
    main()
