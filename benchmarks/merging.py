"""Whether dropped experts are worth merging into kept ones: KL to the parent of both, on the built-in model.

    python benchmarks/merging.py [--seeds 0,1] [--counts 6,5,4]

Experts are chosen by REAP.  Dropping forgets the others.  Merging gives each of them to the kept expert most like it,
its channels put in the order that fits best (linear assignment), weights averaged by routing mass; the router's rows
stay those of the kept experts, or are averaged too.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from estimators import SEQUENCE_LENGTH, Bench
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from smollm2 import write_section
from torch import Tensor, nn

from importance.score.estimators import ACTIVATION
from importance.score.observe import observing
from importance.score.observed_modules import expert_sites
from importance.score.totals import Totals
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import make_plan
from minitron.cut.scores import Scores
from minitron.measure.quality import measure_quality

RESULTS = Path(__file__).with_name("RESULTS.md")
WAYS = ("dropped", "merged", "merged, router rows too", "merged by likeness of router rows")


def routing_mass(bench: Bench, blocks: NDArray[np.int64]) -> dict[int, NDArray[np.float64]]:
    """Layer -> [E] tokens that each expert got."""
    totals = Totals()
    with torch.inference_mode(), observing(bench.model, bench.spec, totals, estimator=ACTIVATION):
        for start in range(0, len(blocks), 4):
            bench.model.base_model(input_ids=torch.from_numpy(blocks[start : start + 4]), use_cache=False)
    return {site.layer: totals[site, "tokens"] for site in expert_sites(bench.spec)}


def merged(
    layer: nn.Module, kept: NDArray[np.int64], mass: NDArray[np.float64], way: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(up, down, router rows) of the kept experts of a layer of the parent, with the others merged into them."""
    experts, router = layer.get_submodule("mixer.experts"), layer.get_submodule("mixer.gate").get_parameter("weight")
    up, down = experts.get_parameter("up_proj").double(), experts.get_parameter("down_proj").double()
    rows = router.double()
    new_up, new_down, new_rows = (
        tensor[kept] * torch.tensor(mass[kept]).view(-1, *(1,) * (tensor.ndim - 1)) for tensor in (up, down, rows)
    )
    weights = mass[kept].copy()
    for gone in np.setdiff1d(np.arange(len(mass)), kept):
        orders, likeness = [], []
        for stays in kept:
            # Channels are alike when they read and write alike.
            gains = up[gone] @ up[stays].T * (down[gone].T @ down[stays])
            left, right = linear_sum_assignment(-gains.numpy())
            orders.append(left[np.argsort(right)])
            likeness.append(
                float(torch.cosine_similarity(rows[gone], rows[stays], 0))
                if "likeness" in way
                else float(gains.numpy()[left, right].sum())
                / float(up[stays].square().sum() * down[stays].square().sum()) ** 0.5
            )
        place = int(np.argmax(likeness))
        new_up[place] += up[gone][orders[place]] * mass[gone]
        new_down[place] += down[gone][:, orders[place]] * mass[gone]
        new_rows[place] += rows[gone] * mass[gone]
        weights[place] += mass[gone]
    scale = torch.tensor(weights)
    return new_up / scale[:, None, None], new_down / scale[:, None, None], new_rows / scale[:, None]


def divergence(bench: Bench, scores: Scores, mass: Mapping[int, NDArray[np.float64]], count: int, way: str) -> float:
    """KL to the parent with `count` experts a layer."""
    layers = tuple(range(len(bench.spec.layers)))
    plan = make_plan(bench.spec, {"n_routed_experts": count}, layers, scores, refit=False)
    small = cut_model(bench.model, bench.spec, plan)
    if way != "dropped":
        for layer, tokens in mass.items():
            kept = np.asarray(plan.keep["expert", layer])
            up, down, rows = merged(bench.model.get_submodule(f"model.layers.{layer}"), kept, tokens, way)
            mixer = small.get_submodule(f"model.layers.{layer}.mixer")
            mixer.get_submodule("experts").get_parameter("up_proj").data = up.float()
            mixer.get_submodule("experts").get_parameter("down_proj").data = down.float()
            if "too" in way:
                mixer.get_submodule("gate").get_parameter("weight").data = rows.float()
    found = measure_quality(small, bench.heldout, teacher=bench.teacher, batch_size=4)
    return max(found.kl_to_teacher or 0.0, 0.0)


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--counts", default="6,5,4")
    parser.add_argument("--heldout", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    bench = Bench(options.heldout)
    found: dict[tuple[int, str], list[float]] = {}
    for seed in map(int, options.seeds.split(",")):
        scores, mass = bench.scores("activation", seed), routing_mass(bench, bench.calibration(seed))
        for count in map(int, options.counts.split(",")):
            for way in WAYS:
                found.setdefault((count, way), []).append(divergence(bench, scores, mass, count, way))
                print(seed, count, way, found[count, way][-1], flush=True)
    lines = [
        "## Merging experts (`benchmarks/merging.py`)",
        "",
        "KL to the parent in nats, built-in model (8 experts, 2 a token), mean over calibration seeds "
        f"{options.seeds}, {len(bench.heldout)} held-out sequences of {SEQUENCE_LENGTH} tokens; experts chosen by "
        "REAP, nothing else cut. Merging loses everywhere, so `prune` drops.",
        "",
        "| experts left | " + " | ".join(WAYS) + " |",
        "|--:|" + "--:|" * len(WAYS),
        *(
            f"| {count} | " + " | ".join(f"{mean(found[count, way]):.4f}" for way in WAYS) + " |"
            for count in map(int, options.counts.split(","))
        ),
        "",
    ]
    write_section(options.results, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
