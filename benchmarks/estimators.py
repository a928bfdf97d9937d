"""Which estimator picks best on each axis: KL to the parent after cutting one axis alone.

    python benchmarks/estimators.py [--seeds 0,1] [--shares 0.75,0.5]
    python benchmarks/estimators.py --cost

For every axis, estimator and calibration seed the built-in model is cut in memory and read over held-out text; the
table holds the mean over seeds.  `--cost` measures instead how much longer a pass takes while it is observed: plain and
observed batches take turns in one process, and the medians are compared.  Both go into benchmarks/RESULTS.md.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from smollm2 import write_section

from importance.score.calibrate import score_model
from importance.score.calibration_pass import CalibrationPass
from importance.score.estimators import DEFAULTS, ESTIMATORS, find_estimator
from importance.score.moments import PERIOD
from importance.score.observe import observing
from importance.score.options import SAMPLES, ScoringOptions
from importance.score.options import SEQUENCE_LENGTH as LONG
from importance.score.totals import Totals
from minitron import builtin
from minitron.cut.in_memory import cut_model
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import make_plan
from minitron.cut.scores import Scores
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512

AXES: Mapping[str, Callable[[Mapping[str, int], float], dict[str, int]]] = {
    "hidden": lambda size, share: {"hidden_size": _eighths(size["hidden_size"], share)},
    "ffn": lambda size, share: {"intermediate_size": _eighths(size["intermediate_size"], share)},
    "shared_ffn": lambda size, share: {
        "moe_shared_expert_intermediate_size": _eighths(size["moe_shared_expert_intermediate_size"], share)
    },
    "expert": lambda size, share: {"n_routed_experts": round(size["n_routed_experts"] * share)},
    "expert_ffn": lambda size, share: {"moe_intermediate_size": _eighths(size["moe_intermediate_size"], share)},
    "query_head": lambda size, share: {"num_attention_heads": round(size["num_attention_heads"] * share)},
    "mamba_head": lambda size, share: {"mamba_num_heads": round(size["mamba_num_heads"] * share)},
    "mamba_head_dim": lambda size, share: {"mamba_head_dim": _eighths(size["mamba_head_dim"], share)},
    "ssm_state": lambda size, share: {"ssm_state_size": _eighths(size["ssm_state_size"], share)},
}
"""Axis -> the sizes that leave a share of it; `kv_head` follows query heads and is cut by half at the least."""

HOW: Mapping[str, Mapping[str, Any]] = {
    "plain": {"rotate": False, "refit": False, "project": False},
    "refitted": {"rotate": False, "refit": True, "project": False},
}


def _eighths(size: int, share: float) -> int:
    return round(size * share / 8) * 8


class Bench:
    """The built-in model and its texts."""

    def __init__(self, heldout: int) -> None:
        torch.set_num_threads(1)
        self.spec = read_spec(builtin.MODEL)
        self.model = load_model(builtin.MODEL, dtype=torch.float32, device=torch.device("cpu"))
        self.every = self._blocks(builtin.CALIBRATION, 10**6)
        self.heldout = self._blocks(builtin.HELDOUT, heldout)

    def _blocks(self, path: Path, samples: int) -> NDArray[np.int64]:
        tokenizer = load_tokenizer(builtin.MODEL)
        return token_blocks(tokenizer, path, sequence_length=SEQUENCE_LENGTH, samples=samples)

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model)

    @cached_property
    def fallback(self) -> Any:
        return weight_magnitude(Checkpoint(builtin.MODEL), self.spec)

    def calibration(self, seed: int, count: int = 64) -> NDArray[np.int64]:
        return np.random.default_rng(seed).permutation(self.every)[:count]

    def scores(self, name: str, seed: int) -> Scores:
        return score_model(
            self.model,
            self.spec,
            self.calibration(seed),
            ScoringOptions(batch_size=4, layers="none", estimator=name, seed=seed),
        )

    def divergence(self, scores: Scores, sizes: Mapping[str, int], how: Mapping[str, Any]) -> float:
        plan = make_plan(self.spec, sizes, tuple(range(len(self.spec.layers))), scores, fallback=self.fallback, **how)
        small = cut_model(self.model, self.spec, plan)
        found = measure_quality(small, self.heldout, teacher=self.teacher, batch_size=4)
        return max(found.kl_to_teacher or 0.0, 0.0)


def table(bench: Bench, seeds: list[int], shares: list[float]) -> str:
    """The section of RESULTS.md."""
    found: dict[tuple[str, float, str, str], list[float]] = {}
    for seed in seeds:
        for name in ESTIMATORS:
            scores = bench.scores(name, seed)
            # Chance has no states of its own making; give it some, so that every row has its control.
            if name == "random":
                random = np.random.default_rng(seed)
                extra = {
                    ("ssm_state", layer): random.random(bench.spec.sizes["ssm_state"])
                    for layer, letter in enumerate(bench.spec.letters)
                    if letter == "M"
                }
                extra |= {key: random.random(len(v)) for key, v in scores.importance.items() if key[0] == "expert"}
                scores = replace(scores, importance={**scores.importance, **extra})
            for axis, sizes in AXES.items():
                for share in shares:
                    for how, options in HOW.items():
                        if how == "plain" or axis not in ("hidden", "expert", "ssm_state"):
                            kl = bench.divergence(scores, sizes(bench.spec.named_sizes, share), options)
                            found.setdefault((axis, share, how, name), []).append(kl)
            print(seed, name, {key[:3]: value[-1] for key, value in found.items() if key[3] == name}, flush=True)
    lines = [
        "## Estimators (`benchmarks/estimators.py`)",
        "",
        "KL to the parent in nats after cutting one axis alone to a share of its size, mean over calibration seeds "
        f"{', '.join(map(str, seeds))}; built-in model, 64 sequences of {SEQUENCE_LENGTH} tokens to score on, "
        f"{len(bench.heldout)} others to judge by. *Refitted*: what loses inputs is fitted to those that stay. The "
        "least of each row is bold. Routed experts as wholes are judged by REAP whatever the estimator but for chance; "
        "states by the energy of their part of the output wherever activations are looked at.",
        "",
        "| axis | kept | cut | " + " | ".join(ESTIMATORS) + " | default |",
        "|---|--:|---|" + "--:|" * len(ESTIMATORS) + "---|",
    ]
    for axis, share, how in dict.fromkeys(key[:3] for key in found):
        row = {name: mean(found[axis, share, how, name]) for name in ESTIMATORS}
        cells = [f"**{value:.3g}**" if value == min(row.values()) else f"{value:.3g}" for value in row.values()]
        default = next(name for name, estimator in ESTIMATORS.items() if estimator is find_estimator("best").of(axis))
        lines.append(f"| {axis} | {share:.0%} | {how} | {' | '.join(cells)} | {default} |")
    assert set(DEFAULTS) <= {*AXES, "kv_head"}
    return "\n".join([*lines, ""])


def cost(bench: Bench, rounds: int) -> str:
    """Section: the time of an observed pass against that of a plain one."""
    rows = []
    for samples, length in ((64, SEQUENCE_LENGTH), (SAMPLES, LONG)):
        text = bench.every.reshape(-1)[: 4 * SEQUENCE_LENGTH if length == SEQUENCE_LENGTH else length]
        rows.append(
            [f"{samples:,} x {length:,}", *_ratios(bench, torch.from_numpy(text).view(-1, length), samples, rounds)]
        )
    return "\n".join(
        [
            "## Cost of scoring (`benchmarks/estimators.py --cost`)",
            "",
            "A pass of the built-in model while it is observed against a plain one, taking turns on one thread, "
            f"medians of {rounds}. Of long texts a part is enough for second moments; the last row is what `score` "
            "reads unless told otherwise.",
            "",
            "| calibration tokens | channels, experts and norms (`activation`) | and covariance, spaces and states "
            "(`--no-refit`) | and second moments (`best`, the default) |",
            "|---|--:|--:|--:|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


def _ratios(bench: Bench, batch: torch.Tensor, samples: int, rounds: int) -> list[str]:
    """What each kind of observing adds to a pass over `batch` [B, T], one of a run over `samples` sequences."""

    def plain() -> None:
        bench.model.base_model(input_ids=batch, use_cache=False)

    def findings(estimator: str, refit: bool) -> CalibrationPass:
        tokens = samples * batch.shape[1]
        return CalibrationPass(bench.model, bench.spec, find_estimator(estimator), tokens=tokens, refit=refit)

    totals = Totals()
    kinds: list[Callable[[], Any]] = [
        lambda: observing(bench.model, bench.spec, totals),
        findings("activation", False).observing,
        findings("best", True).observing,
    ]
    found = []
    for observed in kinds:
        plainly, while_observed = [], []
        with torch.inference_mode():
            plain()
            for _ in range(rounds):
                started = time.perf_counter()
                plain()
                between = time.perf_counter()
                with observed():
                    plain()
                plainly.append(between - started)
                while_observed.append(time.perf_counter() - between)
        # Of a long text second moments are taken of one batch in PERIOD: a median would not see them.
        dear = [value for place, value in enumerate(while_observed) if place % PERIOD == 0]
        cheap = [value for place, value in enumerate(while_observed) if place % PERIOD]
        mixed = (median(dear) + (PERIOD - 1) * median(cheap)) / PERIOD
        found.append(f"{mixed / median(plainly) - 1:+.1%}")
    return found


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--shares", default="0.75,0.5")
    parser.add_argument("--heldout", type=int, default=8)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(options.heldout)
    if options.cost:
        text = cost(bench, options.rounds)
    else:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        text = table(bench, seeds, [float(share) for share in options.shares.split(",")])
    write_section(options.results, text)
    print(text)


if __name__ == "__main__":
    main()
