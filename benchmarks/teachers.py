"""What a cheaper teacher costs its student: in bf16, in FP8, and as a cache of sampled logits, over three seeds.

    python benchmarks/teachers.py --work runs/teachers --model PARENT --student CUT --data TRAIN --text HELDOUT

CUT is made of PARENT by `minitron prune`.  Every student is trained on the same tokens in the same order, which is
another for each seed, and measured against PARENT in bf16 on text that nobody trained on.  Every run leaves one file in
the work folder: what is there is not made again.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, Final

import torch
from smollm2 import write_section

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.files import read_json, write_json
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer

RESULTS = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH = 512

WAYS: Final[dict[str, dict[str, Any]]] = {
    "bf16": {},
    "fp8": {"teacher_precision": "fp8"},
    "cache of sampled:12": {"loss": "sampled:12"},
    "cache of sampled:50": {"loss": "sampled:50"},
}
"""Row of the table -> what differs; of the cache its loss."""


def train(options: argparse.Namespace, way: str, seed: int, output: Path) -> dict[str, Any]:
    """One run; what it says of itself."""
    asked = dict(WAYS[way])
    loss = asked.pop("loss", "forward_kl")
    recipe = Recipe(
        tokens=options.tokens,
        sequence_length=SEQUENCE_LENGTH,
        batch_tokens=options.batch_tokens,
        learning_rate=options.learning_rate,
        validation_sequences=options.heldout,
        validate_every=options.tokens,
        checkpoint_every=options.tokens,
        seed=seed,
        loss=loss,
    )
    if loss != "forward_kl":
        asked["cache"] = options.work / f"cache-{loss.replace(':', '-')}-{seed}"
    found = distill(
        Distillation(options.student, options.model, options.data, output, validation=options.text, **asked), recipe
    )
    return {"drift": None if found.drift is None else asdict(found.drift), "kl_before": found.kl_before}


def measure(options: argparse.Namespace, teacher: Teacher, student: Path) -> dict[str, float]:
    """KL to the teacher in bf16 and agreement with it, on the held-out text."""
    blocks = token_blocks(
        load_tokenizer(options.model), options.text, sequence_length=SEQUENCE_LENGTH, samples=options.heldout
    )
    model = load_model(student, dtype=torch.bfloat16, device=torch.device("cpu"))
    found = measure_quality(model, blocks, teacher=teacher)
    return {"kl": found.kl_to_teacher or 0.0, "top1_agreement": found.top1_agreement or 0.0}


def report(options: argparse.Namespace, found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    seeds = range(options.seeds)
    means = {way: mean(found[way, seed]["kl"] for seed in seeds) for way in WAYS}
    drift, before = found["fp8", 0]["drift"], found["bf16", 0]["kl_before"]
    each = {way: ", ".join(f"{found[way, seed]['kl']:.4f}" for seed in seeds) for way in WAYS}
    rows = [
        f"| {way} | {each[way]} | {means[way]:.4f} | "
        f"{means[way] / means['bf16'] - 1:+.2%} | {mean(found[way, seed]['top1_agreement'] for seed in seeds):.2%} |"
        for way in WAYS
    ]
    return "\n".join(
        [
            f"## Cheaper teachers: {options.name} (`benchmarks/teachers.py`)",
            "",
            f"The teacher in FP8 takes {drift['stored_bytes'] / drift['bf16_bytes']:.3f} of its bytes in bf16 and "
            f"drifts from itself by a KL of {drift['kl']:.5f} nats with {drift['top1_agreement']:.2%} of the likeliest "
            f"tokens the same ({drift['tokens']:,} held-out tokens); the student begins at a KL of {before:.4f}.",
            "",
            "| teacher | KL to the bf16 teacher after training, by seed | mean | against bf16 | top-1 agreement |",
            "|---|---|--:|--:|--:|",
            *rows,
            "",
            f"{options.tokens:,} tokens, {options.batch_tokens:,} a step, highest learning rate "
            f"{options.learning_rate:g}, {options.heldout} held-out sequences of {SEQUENCE_LENGTH}.",
            "",
        ]
    )


def main() -> None:
    """Parse the command line, run what is not done yet, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("work", "model", "student", "data", "text"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the model, for the heading")
    parser.add_argument("--tokens", type=int, default=2**18)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heldout", type=int, default=32)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(load_model(options.model, dtype=torch.bfloat16, device=torch.device("cpu")))
    found = {}
    for seed in range(options.seeds):
        for way in WAYS:
            path = options.work / f"{way.replace(' ', '-').replace(':', '-')}-{seed}.json"
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=options.work) as scratch:
                    output = Path(scratch) / "student"
                    write_json(path, train(options, way, seed, output) | measure(options, teacher, output))
            found[way, seed] = dict(read_json(path))
            print(way, seed, found[way, seed]["kl"], flush=True)
    section = report(options, found)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
