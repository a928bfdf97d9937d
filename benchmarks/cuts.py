"""What each way of cutting saves: KL to the parent and perplexity, on text that nothing was fitted on.

    python benchmarks/cuts.py [--seed 0]
    python benchmarks/cuts.py --model PARENT --data TRAIN --text HELDOUT --scores SCORES --title ...

One axis is cut at a time, in memory: the residual stream by selecting channels or by rotation; channels of MLPs and
experts as they are, refitted, and chosen by the surgeon for it; heads to channels or to directions.  The table goes
into benchmarks/RESULTS.md.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2 import write_section

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from minitron import builtin
from minitron.cut.in_memory import cut_model
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import make_plan
from minitron.cut.scores import load_scores
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512

PLAIN: Mapping[str, Any] = {"rotate": False, "refit": False, "project": False}
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "selected": ("activation", PLAIN),
    "rotated": ("activation", {**PLAIN, "rotate": True}),
    "refitted": ("activation", {**PLAIN, "refit": True}),
    "chosen by the surgeon, refitted": ("surgeon", {**PLAIN, "refit": True}),
    "chosen by the surgeon, outputs weighted, refitted": ("fisher", {**PLAIN, "refit": True}),
    "projected": ("activation", {**PLAIN, "project": True}),
}
"""Name -> (estimator, options of minitron.cut.plan.make_plan)."""

ESTIMATORS = ("activation", "surgeon", "fisher")

CHOSEN = (
    *("selected", "refitted"),
    *("chosen by the surgeon, refitted", "chosen by the surgeon, outputs weighted, refitted"),
)

AXES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("selected", "rotated"),
    "intermediate_size": CHOSEN,
    "moe_intermediate_size": CHOSEN,
    "moe_shared_expert_intermediate_size": CHOSEN,
    "num_attention_heads": CHOSEN,
    "mamba_num_heads": ("selected", "refitted"),
    "mamba_head_dim": ("selected", "refitted"),
    "head_dim": ("selected", "projected"),
}
"""Config key -> the ways that are to be compared there."""


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=builtin.MODEL)
    parser.add_argument("--data", type=Path, default=builtin.CALIBRATION)
    parser.add_argument("--text", type=Path, default=builtin.HELDOUT)
    parser.add_argument("--scores", type=Path, help="by the surgeon; made anew unless given")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--heldout", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sizes",
        default="hidden_size=240,224,192,160 intermediate_size=576,384 "
        "moe_intermediate_size=120,80 moe_shared_expert_intermediate_size=192,128 "
        "num_attention_heads=6,4 mamba_num_heads=12 mamba_head_dim=24 head_dim=24,16,8",
    )
    parser.add_argument("--title", default="Ways to lose less at the cut (`benchmarks/cuts.py`)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = read_spec(options.model)
    model = load_model(options.model, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = load_tokenizer(options.model)
    every = token_blocks(tokenizer, options.data, sequence_length=SEQUENCE_LENGTH, samples=10**6)
    blocks = np.random.default_rng(options.seed).permutation(every)[: options.calibration]
    heldout = token_blocks(tokenizer, options.text, sequence_length=SEQUENCE_LENGTH, samples=options.heldout)
    teacher, layers = Teacher(model), tuple(range(len(spec.layers)))
    fallback = weight_magnitude(Checkpoint(options.model), spec)
    scores = {
        name: score_model(model, spec, blocks, ScoringOptions(batch_size=4, layers="none", estimator=name))
        for name in (ESTIMATORS if options.scores is None else ())
    }
    if options.scores is not None:
        scores = dict.fromkeys(ESTIMATORS, load_scores(options.scores))

    def measured(way: str, key: str, size: int) -> str:
        estimator, how = WAYS[way]
        plan = make_plan(spec, {key: size}, layers, scores[estimator], fallback=fallback, **how)
        found = measure_quality(cut_model(model, spec, plan), heldout, teacher=teacher, batch_size=4)
        print(key, size, way, found.kl_to_teacher, flush=True)
        return f"{found.kl_to_teacher:.4f}, {found.perplexity:.2f}"

    parent = measure_quality(model, heldout, batch_size=4).perplexity
    lines = [
        f"## {options.title}",
        "",
        f"KL to the parent in nats and perplexity (the parent's is {parent:.2f}) on {len(heldout)} held-out sequences "
        f"of {SEQUENCE_LENGTH} tokens; scores, directions and fits from {len(blocks)} others, ridges from an eighth of "
        "those. One axis cut at a time.",
        "",
        "| size | of | left | " + " | ".join(WAYS) + " |",
        "|---|--:|--:|" + "--:|" * len(WAYS),
    ]
    for part in options.sizes.split():
        key, sizes = part.split("=")
        for size in map(int, sizes.split(",")):
            cells = [measured(way, key, size) if way in AXES[key] else "" for way in WAYS]
            lines.append(f"| {key} | {spec.named_sizes[key]} | {size} | {' | '.join(cells)} |")
    write_section(options.results, "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
