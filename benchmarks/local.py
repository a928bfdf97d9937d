"""Block-local distillation: does it pay when every layer of a student learns alone first, what its parent's layer did?

    python benchmarks/local.py --work runs/local --training minitron/builtin/text/distill.txt [--points 35]
        [--local 8192] [--total 49152] [--candidates 6] [--ranking 24576]

For each point (so many per cent fewer bytes of weights), the student of benchmarks/recovery.py: the held-out KL right
after its layers have learned alone (published as a first stage: Bercovich et al. 2024, Puzzle, arXiv 2411.19146), and
after distilling on what is left of the same total of tokens, beside distilling on all of them.  And as a criterion of
the search: candidates of one budget by the KL right after the cut, by that after local learning, by that after a short
distillation on as many tokens, each compared with the KL after a longer distillation.  Every figure is a line of the
work folder: a run that was stopped goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from local_learning import Learning, Parent, learn_alone, learn_together
from recovery import Recovery
from search import SEQUENCE_LENGTH, WORKLOAD, bench_options
from smollm2 import write_section

from distill.recipe import STREAM_WEIGHT
from importance.search.least_squares import spearman
from minitron.allocator import keep_freed_memory
from minitron.cut.plan import make_plan
from minitron.cut.stream_map import StreamMap, read_stream_maps
from minitron.measure.quality import measure_quality
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec
from minitron.search.counting import Worth
from minitron.search.search import build_lattice, search

TITLE = "Block-local distillation: the built-in model (`benchmarks/local.py`)"

CHANCE = 24
"""Architectures drawn by chance beside the closed form's best."""

EACH = 2
"""Candidates of each depth that are taken from the closed form's choices, and from those drawn by chance."""


class Local(Recovery):
    """One model, its students, and what they learn."""

    @cached_property
    def parent(self) -> Parent:
        """What it says of all training sequences that are used."""
        options = self.options
        every = self._blocks(options.training or options.data, 10**9)
        count = max(options.total, options.ranking, *options.local) // SEQUENCE_LENGTH
        return Parent.ask(self.model, self.spec, every[np.random.default_rng(1).permutation(len(every))[:count]])

    def kl(self, student: Any) -> float:
        """On held-out text."""
        found = measure_quality(student, self.heldout, teacher=self.teacher, batch_size=self.options.batch)
        return found.kl_to_teacher or 0.0

    def learned(self, folder: Path, local: int, total: int, batch_tokens: int) -> dict[str, Any]:
        """A student whose layers learn alone on `local` tokens, then together on what is left of `total`."""
        store, options = self.work / "learned.jsonl", self.options
        key = [folder.name, local, total, batch_tokens, options.rate, options.local_rate, options.reads]
        lines = store.read_text().splitlines() if store.exists() else []
        for known in map(json.loads, lines):
            if known["key"] == key:
                return dict(known)
        student, spec, stream = self._load(folder)
        found: dict[str, Any] = {"key": key, "cut": self.kl(student), "curve": []}
        ours = local // SEQUENCE_LENGTH
        if local:
            how = Learning(options.local_rate, options.local_batch)
            own = options.reads == "own"
            found["local_seconds"] = learn_alone(student, spec, stream, self.parent, ours, how, own=own)
            found["local"] = self.kl(student)

        def told(step: int, steps: int) -> None:
            if step % max(1, steps // 3) == 0 or step == steps:
                found["curve"].append([step * batch_tokens, self.kl(student)])

        if total > local:
            how = Learning(options.rate, batch_tokens, weight_decay=0.1)
            which = range(ours, total // SEQUENCE_LENGTH)
            found["seconds"] = learn_together(student, spec, stream, self.parent, which, how, STREAM_WEIGHT, told)
        with store.open("a") as file:
            file.write(json.dumps(found) + "\n")
        return found

    def _load(self, folder: Path) -> tuple[Any, ModelSpec, StreamMap]:
        spec = read_spec(folder)
        (stream, *_) = read_stream_maps(folder, spec)
        return load_model(folder, dtype=torch.float32, device=torch.device("cpu")), spec, stream

    def candidates(self, percent: int) -> Iterator[Path]:
        """The student, and others of the same budget that lose the least: of each depth some that the closed form
        thinks best, and some drawn by chance."""
        yield self.student(percent)
        scores, rng = self.scores(0, rival=False), np.random.default_rng(7)
        lattice = build_lattice(self.spec, WORKLOAD, scores=scores, **self.lattice)
        chance = Worth(lambda points: rng.random(points.shape), "chance")
        asked: dict[str, dict[str, Any]] = {"chance": {"worth": chance, "top": CHANCE}, "best": {"top": 8}}
        drawn = [
            (who, one)
            for who, how in asked.items()
            for one in search(lattice, WORKLOAD, self.budget(percent), scores=scores, **how).candidates
        ]
        first = next(one for who, one in drawn if who == "best")
        plans = [(who, one, make_plan(self.spec, one.sizes, one.kept, scores)) for who, one in drawn]
        losses = [self.quality(plan, 2)["kl"] for _, _, plan in plans]
        taken: dict[tuple[str, int], int] = {}
        chosen = []
        for place in np.argsort(losses, kind="stable"):
            who, one, plan = plans[place]
            key = who, len(one.kept)
            if (one.sizes, one.kept) != (first.sizes, first.kept) and taken.get(key, 0) < EACH:
                taken[key] = taken.get(key, 0) + 1
                chosen.append(plan)
        for number, plan in enumerate(chosen[: self.options.candidates]):
            folder = self.work / f"candidate-{percent}-{number}"
            if not folder.exists():
                self.prune(plan, folder)
            yield folder


def section(bench: Local, title: str) -> str:
    """The section of RESULTS.md."""
    options = bench.options
    lines = [
        f"## {title}",
        "",
        "| fewer bytes | tokens alone | together | KL after the cut | after the first | at the end |",
    ]
    lines += ["|--:|--:|--:|--:|--:|--:|"]
    points = [int(percent) for percent in options.points.split(",")]
    for percent in points:
        for local in (0, *options.local):
            found = bench.learned(bench.student(percent), local, options.total, options.batch_tokens)
            after = f"{found['local']:.4f}" if local else ""
            rest = f"{options.total - local:,} | {found['cut']:.4f} | {after} | {found['curve'][-1][1]:.4f}"
            lines.append(f"| {percent} % | {local:,} | {rest} |")
    if options.ranking:
        lines += ["", *(line for percent in points for line in _ranking(bench, percent))]
    return "\n".join([*lines, ""])


def _ranking(bench: Local, percent: int) -> Iterator[str]:
    options, rows = bench.options, []
    local = options.local[0]
    yield "| candidate | after the cut | after local learning | distilled as long | distilled |"
    yield "|---|--:|--:|--:|--:|"
    for folder in bench.candidates(percent):
        alone = bench.learned(folder, local, local, options.ranking_batch)
        whole = bench.learned(folder, 0, options.ranking, options.ranking_batch)
        (short, *_) = [kl for tokens, kl in whole["curve"] if tokens >= local]
        rows.append([alone["cut"], alone["local"], short, whole["curve"][-1][1]])
        yield f"| {folder.name} | " + " | ".join(f"{kl:.4f}" for kl in rows[-1]) + " |"
    table = np.array(rows)
    told = [f"{spearman(table[:, column], table[:, 3]):.2f}" for column in range(3)]
    yield f"| rank correlation with the last | {' | '.join(told)} | |"


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    bench_options(parser)
    parser.add_argument("--title", default=TITLE)
    parser.add_argument("--points", default="35")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--local", type=int, nargs="+", default=[8192], help="tokens on which layers learn alone")
    parser.add_argument("--local-rate", type=float, default=1e-3)
    parser.add_argument("--local-batch", type=int, default=1024, help="tokens of a step of one layer")
    parser.add_argument("--reads", choices=("own", "parent"), default="own", help="whose stream a layer reads")
    parser.add_argument("--total", type=int, default=49_152, help="tokens, those of local learning counted")
    parser.add_argument("--rate", type=float, default=1e-3, help="of distillation")
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--ranking", type=int, default=24_576, help="tokens on which candidates are distilled; 0: none")
    parser.add_argument("--ranking-batch", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    options.work.mkdir(parents=True, exist_ok=True)
    text = section(Local(options), options.title)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
