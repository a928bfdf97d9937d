"""Bits and sizes chosen together, against the best cut alone and the best single format, at the same bytes.

    python benchmarks/joint.py --work runs/joint [--points 60,45,30,22] [--tokens 49152] [--distilled 45,30]
    python benchmarks/joint.py --work runs/joint-smollm2 --model PARENT --data TRAIN --text HELDOUT ...

For each budget (per cent of the model's bytes in bf16): the search with formats, the same search without, and each
format alone on the whole model where that fits.  All are measured on the same held-out text, in memory, rounded by the
same calibration text.  With --tokens the chosen ones are distilled, quantised students as they will be written.  Every
measurement is one file of the work folder: a run that was stopped goes on.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from search import SEQUENCE_LENGTH, WORKLOAD, Bench, bench_options
from smollm2 import write_section

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from importance.rounding.calibrated import Calibrated
from importance.search.sieves import SieveOptions, planner, sieve
from importance.search.trial import Trials
from minitron.cut.plan import Plan
from minitron.cut.prune import prune
from minitron.errors import NothingFits
from minitron.files import read_json, write_json
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.search.format_choices import Formats, format_choices, written_of
from minitron.search.offered_formats import parts_of
from minitron.search.search import build_lattice

PLAIN = "bf16"
ROUNDED_BY = 8
"""Sequences of the calibration text by which candidates are rounded."""


class Joint(Bench):
    """One model and three ways to choose at each budget."""

    def trials_on(self, blocks: Any, name: str | None) -> Trials:
        """Candidates measured on `blocks`, with a store for those of a search."""
        store = None if name is None else self.work / f"{name}.jsonl"
        few = self.calibration(0)[:ROUNDED_BY]
        return Trials(self.model, self.spec, blocks, batch_size=self.options.batch, store=store, calibration=few)

    def share(self, percent: int) -> Budget:
        """So many per cent of the bytes of the weights in bf16, and what the model takes beside them."""
        whole = footprint(self.spec, self.workload, 0)
        return Budget(int(whole.weights * percent / 100) + whole.total - whole.weights, workspace=0)

    @property
    def workload(self) -> Any:
        """That of benchmarks/search.py in 16 bits."""
        return replace(WORKLOAD, weights=PLAIN)

    def searched(self, percent: int, forms: list[str]) -> dict[str, Any] | None:
        """What the search finds in these formats; None where nothing fits."""
        path = self.work / f"{'joint' if len(forms) > 1 else 'cut'}-{percent}.json"
        if not path.exists():
            scores, started = self.scores(0, rival=False), time.monotonic()
            trials = self.trials_on(self.judging, "trials")
            lattice = build_lattice(self.spec, self.workload, scores=scores, **self.lattice)
            if len(forms) > 1:
                lattice = replace(lattice, formats=format_choices(self.spec, self.workload, forms))
            options = SieveOptions(combinations=self.options.combinations, finalists=self.options.finalists)
            try:
                found = sieve(trials, lattice, self.workload, self.share(percent), scores, options=options)
            except NothingFits:
                return None
            best = found.result.best
            formats = {} if best.formats is None else best.formats.to_json()
            plan = planner(trials, scores)(best.sizes, best.kept, formats)
            write_json(
                path,
                self.judged(plan)
                | {"sizes": dict(best.sizes), "layers": best.letters, "formats": formats}
                | {"bytes": best.footprint.weights, "seconds": time.monotonic() - started}
                | {"evaluations": found.evaluations, "kept": list(best.kept)},
            )
        return dict(read_json(path))

    def judged(self, plan: Plan) -> dict[str, float]:
        """On the held-out text."""
        found = self.trials_on(self.heldout, None).run(plan)
        return {"kl": found.kl, "perplexity": found.perplexity}

    def whole_in(self, form: str) -> dict[str, Any]:
        """The whole model with every part that can be in one format."""
        path = self.work / f"whole-{form}.json"
        if not path.exists():
            formats = dict.fromkeys(parts_of(self.spec), form)
            kept = tuple(range(len(self.spec.layers)))
            plan = planner(self.trials_on(self.judging, None), self.scores(0, rival=False))({}, kept, formats)
            bytes_ = footprint(self.spec, Formats(form, tuple(formats.items())).on(self.workload), 0).weights
            found = {"sizes": {}, "layers": self.spec.letters, "formats": formats, "kept": list(kept)}
            write_json(path, self.judged(plan) | found | {"bytes": int(bytes_)})
        return dict(read_json(path))

    def plan_of(self, found: Mapping[str, Any]) -> Plan:
        """The plan of something that was chosen."""
        make = planner(self.trials_on(self.judging, None), self.scores(0, rival=False))
        return make(found["sizes"], tuple(found["kept"]), found["formats"])

    def taught(self, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """What is left of its KL after distillation, as it is written."""
        path = self.work / f"taught-{name}.json"
        if not path.exists():
            options, plan = self.options, self.plan_of(found)
            folder = self.work / f"cut-{name}"
            if not folder.exists():
                prune(options.model, plan, folder)
            counts = plan.target(self.spec).parameters().by_component
            form, keep = written_of(plan.formats, counts) or (None, {})
            recipe = Recipe(
                tokens=options.tokens,
                sequence_length=SEQUENCE_LENGTH // 2,
                batch_tokens=options.batch_tokens,
                learning_rate=options.learning_rate,
                precision="fp32",
                validate_every=max(1, options.tokens // options.batch_tokens // 4),
                validation_sequences=2 * len(self.heldout),
            )
            asked = Distillation(
                *(folder, options.model, options.training or options.data, self.work / f"distilled-{name}"),
                student_format=form,
                student_keep=keep,
                validation=options.text,
                device="cpu",
                overwrite=True,
            )
            result = distill(asked, recipe, calibrate=partial(Calibrated, device=torch.device("cpu")))
            write_json(path, {"kl": result.kl_after, "curve": [dict(point) for point in result.curve]})
        return dict(read_json(path))

    def row(self, percent: int) -> dict[str, Any]:
        """All ways at one budget."""
        forms = self.options.formats.split(",")
        limit = footprint(self.spec, self.workload, 0).weights * percent / 100
        ways: dict[str, dict[str, Any]] = {}
        if cut := self.searched(percent, [PLAIN]):
            ways["cut alone"] = cut
        for form in forms:
            if form != PLAIN and (found := self.whole_in(form))["bytes"] <= limit:
                ways[f"all in {form}"] = found
        best = min(ways, key=lambda way: ways[way]["kl"], default=None)
        joint = self.searched(percent, forms)
        assert joint is not None
        row = {"percent": percent, "joint": joint, "other": best, "ways": ways}
        if self.options.tokens and str(percent) in self.options.distilled.split(","):
            row["after"] = {
                "joint": self.taught(f"joint-{percent}", joint)["kl"],
                **({} if best is None else {best: self.taught(f"other-{percent}", ways[best])["kl"]}),
            }
        return row


def section(bench: Joint, rows: list[dict[str, Any]], title: str) -> str:
    """The section of RESULTS.md."""
    columns = ["bytes of bf16", "cut alone", "one format", "joint", "joint / the better one", "after distillation"]
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "--:|" * len(columns)]
    for row in rows:
        ways, joint, after = row["ways"], row["joint"], row.get("after", {})
        cut = ways.get("cut alone")
        single = [(found["kl"], way) for way, found in ways.items() if way != "cut alone"]
        told = ""
        if row["other"] in after:
            other = after[row["other"]]
            told = f"{after['joint']:.4f} / {other:.4f} = {after['joint'] / other:.2f}"
        lines.append(
            f"| {row['percent']} % | {'none fits' if cut is None else format(cut['kl'], '.4f')} | "
            f"{'{:.4f} ({})'.format(*min(single)) if single else 'none fits'} | {joint['kl']:.4f} | "
            f"{'' if row['other'] is None else format(joint['kl'] / ways[row['other']]['kl'], '.3f')} | {told} |"
        )
    options = bench.options
    lines += [
        "",
        f"`{options.model.name}`, KL to the model in nats on {bench.heldout.size:,} held-out tokens, in memory; "
        f"formats {options.formats}; {options.calibration} sequences of {SEQUENCE_LENGTH} tokens to score on, "
        f"{ROUNDED_BY} of them to round by, {len(bench.judging)} others to search by. "
        + (
            f"Distilled on {options.tokens:,} tokens, learning rate {options.learning_rate:g}. "
            if options.tokens
            else ""
        )
        + "Search, with formats: "
        + ", ".join(f"{row['joint']['seconds']:.0f} s for {row['joint']['evaluations']}" for row in rows)
        + " measured architectures, on one thread of a machine with other work.",
        "",
        "What was chosen together:",
        "",
        *(f"- {row['percent']} %: {_told(bench, row['joint'])}" for row in rows),
        "",
    ]
    return "\n".join(lines)


def _told(bench: Joint, found: Mapping[str, Any]) -> str:
    whole = bench.spec.named_sizes
    sizes = [f"{key} {size}" for key, size in found["sizes"].items() if whole.get(key) != size]
    return f"`{found['layers']}` " + ", ".join([*sizes, *(f"{part} {form}" for part, form in found["formats"].items())])


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    bench_options(parser)
    parser.add_argument("--title", default="Bits and sizes together: the built-in model (`benchmarks/joint.py`)")
    parser.add_argument("--formats", default="bf16,int8,int4")
    parser.add_argument("--points", default="60,45,30,22")
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--combinations", type=int, default=16)
    parser.add_argument("--finalists", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=0, help="to distil on; 0 for no distillation")
    parser.add_argument("--distilled", default="45,30", help="the points that are distilled")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Joint(options)
    rows = [bench.row(int(percent)) for percent in options.points.split(",")]
    write_section(options.results, section(bench, rows, options.title))


if __name__ == "__main__":
    main()
