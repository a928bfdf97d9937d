"""What pruning is worth: the demo's architecture with random weights, distilled for the same steps on the same text.

    minitron demo -o runs/demo
    python benchmarks/from_scratch.py --run runs/demo

Prints one row a model, as a Markdown table: the demo's teacher, pruned and distilled models and the one from scratch.
"""

import argparse
from pathlib import Path

import torch

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.output import write_student
from distill.run.train import distill
from minitron import builtin
from minitron.files import read_json
from minitron.measure.evaluate import evaluate_folders
from minitron.measure.options import EvaluationOptions
from minitron.model.loading import build_model


def random_student(pruned: Path, output: Path) -> None:
    """A checkpoint of the architecture of `pruned` as transformers initialises it."""
    torch.manual_seed(0)
    write_student(build_model(pruned), pruned, output, card="Random weights.\n")


def main() -> None:
    """Parse the command line and run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the folder that `minitron demo -o` wrote")
    options = parser.parse_args()

    recipe = read_json(options.run / "run.json")["asked"]["training"]
    random, trained = options.run / "random", options.run / "from_scratch"
    if not random.exists():
        random_student(options.run / "pruned", random)
    if not trained.exists():
        distill(
            Distillation(random, builtin.MODEL, builtin.DISTILL, trained),
            Recipe(**recipe | {"betas": tuple(recipe["betas"])}),
        )
    models = {
        "teacher": builtin.MODEL,
        "pruned": options.run / "pruned",
        "pruned, distilled": options.run / "distilled",
        "random weights, distilled": trained,
    }
    found = evaluate_folders(
        list(models.values()),
        options=EvaluationOptions(sequence_length=512, batch_size=4, speed=False),
        text=builtin.HELDOUT,
        against=builtin.MODEL,
    )
    print("| model | parameters | weight bytes | perplexity | KL to teacher | top-1 agreement |")
    print("|---|---|---|---|---|---|")
    for name, one in zip(models, found, strict=True):
        quality = one.quality
        print(
            f"| {name} | {one.parameters:,} | {one.weight_bytes:,} | {quality.perplexity:.2f} | "
            f"{quality.kl_to_teacher:.4f} | {quality.top1_agreement:.1%} |"
        )


if __name__ == "__main__":
    main()
