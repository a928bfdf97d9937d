"""Sizes that another tool chose, against what our closed form and our measured search choose for the same bytes.

    python benchmarks/peers.py --work runs/peers [--model NAME=FOLDER --text NAME=FILE] [--most KEY=SHARE] ...

The other tool's choices are in benchmarks/peer_choices.json, with their source.  For each point of a model that is
given: its sizes, cut our way; the closed form's choice, which is that of `minitron prune --scores`; and the least loss
of those that the measured search tries, as `minitron compress` does before finalists are distilled.  None takes more
bytes of weights than the other tool's choice.  All are cut in memory by the same scores and judged on the same held-out
text.  The built-in model needs no folder.  Every measurement is one file of the work folder: a run that was stopped
goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import re
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from search import SEQUENCE_LENGTH, WORKLOAD, Bench, bench_options, pair
from smollm2 import write_section

from importance.search.sieves import SieveOptions, sieve
from minitron import builtin
from minitron.cut.plan import make_plan
from minitron.files import read_json, write_json
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.limits import Limits
from minitron.search.candidate import Candidate
from minitron.search.depth import Kept, match_pattern
from minitron.search.search import build_lattice, search

CHOICES = Path(__file__).with_name("peer_choices.json")
TITLE = "Sizes that another tool chose (`benchmarks/peers.py`)"
BUILT_IN = "the built-in model"

Point = Mapping[str, Any]
"""One of the choices, with the model and the bytes that it was made for."""


class Peers(Bench):
    """One model, and three choices of sizes for each point."""

    def within(self, point: Point) -> Budget:
        """As many parameters as the other tool's choice has, all of which are stored in 16 bits."""
        limits = Limits(parameters=point["weight_bytes"] // 2)
        return Budget(footprint(self.spec, WORKLOAD, 0).total, workspace=0, limits=limits)

    def judged(self, sizes: Mapping[str, int], kept: Kept) -> dict[str, Any]:
        """An architecture cut by our scores, on the held-out text."""
        plan = make_plan(self.spec, sizes, kept, self.scores(0, rival=False))
        letters = "".join(self.spec.letters[layer] for layer in kept)
        bytes_ = int(footprint(plan.target(self.spec), WORKLOAD, 0).weights)
        return self.quality(plan) | {"sizes": dict(sizes), "layers": letters, "bytes": bytes_}

    def theirs(self, point: Point) -> dict[str, Any]:
        """The other tool's sizes; of equal layers those stay that our scores like best."""
        sizes = {key: size for key, size in point["sizes"].items() if key in self.spec.keys}
        return self.judged(sizes, match_pattern(self.spec, point["layers"], self.scores(0, rival=False)))

    def closed_form(self, point: Point) -> dict[str, Any]:
        """The best by scores alone."""
        scores = self.scores(0, rival=False)
        lattice = build_lattice(self.spec, WORKLOAD, scores=scores, **self.lattice)
        return self._of(search(lattice, WORKLOAD, self.within(point), scores=scores).best)

    def measured(self, point: Point) -> dict[str, Any]:
        """The best of those that the search measures."""
        scores, trials, started = self.scores(0, rival=False), self.trials("trials"), time.monotonic()
        lattice = build_lattice(self.spec, WORKLOAD, scores=scores, **self.lattice)
        found = sieve(trials, lattice, WORKLOAD, self.within(point), scores, options=SieveOptions())
        about = {"evaluations": found.evaluations, "seconds": time.monotonic() - started}
        return self._of(found.result.best) | about

    def _of(self, candidate: Candidate) -> dict[str, Any]:
        return self.judged(candidate.sizes, candidate.kept)

    def row(self, point: Point) -> dict[str, Any]:
        """All choices at one point."""
        row: dict[str, Any] = {"point": dict(point)}
        for name, of in {"theirs": self.theirs, "closed": self.closed_form, "measured": self.measured}.items():
            path = self.work / f"{name}-{point['fewer_parameters_percent']}.json"
            if not path.exists():
                write_json(path, of(point))
            row[name] = dict(read_json(path))
        return row


def section(options: Namespace, rows: list[dict[str, Any]], title: str) -> str:
    """The section of RESULTS.md."""
    columns = [
        "fewer parameters",
        "the tool's sizes, cut by it",
        "cut our way",
        "closed form",
        "of its sizes cut our way",
    ]
    columns += ["measured search", "of its sizes cut our way", "of its own cut", "measured"]
    lines = [f"## {title}", "", "| model | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for row in rows:
        point, theirs, closed, measured = row["point"], row["theirs"], row["closed"], row["measured"]
        own = point["kl_cut_by_the_tool"]
        lines.append(
            f"| {point['model']} | {point['fewer_parameters_percent']} % | {own:.4f} | {theirs['kl']:.4f} | "
            f"{closed['kl']:.4f} | {closed['kl'] / theirs['kl']:.2f} | {measured['kl']:.4f} | "
            f"{measured['kl'] / theirs['kl']:.2f} | {measured['kl'] / own:.3f} | "
            f"{measured['evaluations']} in {measured['seconds']:.0f} s |"
        )
    counts = read_json(CHOICES)["models"]
    told = ", ".join(f"{counts[name]['heldout']} for {name}" for name in dict.fromkeys(_models(rows)))
    lines += [
        "",
        "KL to the model in nats a token, right after the cut. The sizes are those of nvidia-modelopt 0.43.0's "
        "Minitron pruning, chosen on the same models and calibration text, and so is the KL of its own cut "
        "(`benchmarks/peer_choices.json`). All else is cut by our scores, with no more bytes of weights: the closed "
        "form's choice is that of `minitron prune --scores`, the other the least of "
        f"{SieveOptions().combinations} random and {SieveOptions().finalists} chosen architectures, beside each axis "
        f"alone. Held-out sequences of {SEQUENCE_LENGTH} tokens: {told}; {options.calibration} others to score on, "
        f"{options.judging} to search by. Seconds are of what no earlier point had measured, on one thread of a "
        "machine with other work.",
        "",
        "    python benchmarks/peers.py --work WORK "
        + " ".join(f"--model {name}=FOLDER --text {name}=FILE" for name in dict(options.model)),
        "",
        "What was chosen, beside the model:",
        "",
    ]
    for row in rows:
        point = row["point"]
        told = "; ".join(f"{name} {_told(row[way], row['whole'])}" for name, way in _WAYS.items())
        lines.append(f"- {point['model']}, {point['fewer_parameters_percent']} %: {told}")
    return "\n".join([*lines, ""])


_WAYS = {"the tool": "theirs", "closed form": "closed", "measured": "measured"}


def _models(rows: list[dict[str, Any]]) -> list[str]:
    return [row["point"]["model"] for row in rows]


def _told(found: Mapping[str, Any], whole: Mapping[str, int]) -> str:
    sizes = [f"{key} {size}" for key, size in found["sizes"].items() if whole.get(key, size) != size]
    return f"`{found['layers']}` " + ", ".join(sizes)


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], conflict_handler="resolve")
    bench_options(parser)
    parser.set_defaults(judging=16, layer_samples=16)
    parser.add_argument("--model", type=pair(Path), action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--text", type=pair(Path), action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--title", default=TITLE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    choices, rows = read_json(CHOICES), []
    folders = {BUILT_IN: builtin.MODEL, **dict(options.model)}
    texts = {BUILT_IN: builtin.HELDOUT, **dict(options.text)}
    for name, folder in folders.items():
        if name not in choices["models"] or name not in texts:
            parser.error(f"{name}: give --text {name}=FILE, and a model of {CHOICES.name}")
        here = {"model": folder, "text": texts[name], "heldout": choices["models"][name]["heldout"]}
        work = options.work / re.sub(r"\W+", "-", name)
        work.mkdir(parents=True, exist_ok=True)
        bench = Peers(Namespace(**{**vars(options), **here, "work": work}))
        points = [point for point in choices["points"] if point["model"] == name]
        rows += [bench.row(point) | {"whole": dict(bench.spec.named_sizes)} for point in points]
    text = section(options, rows, options.title)
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
