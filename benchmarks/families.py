"""Other types than NemotronH, trained for minutes, cut by a quarter and distilled: what rotation and refit are worth.

    python benchmarks/families.py --work runs/families --types qwen3_moe gemma3_text granitemoehybrid --minutes 8

Every step is `examples/train_tiny.py` or one of minitron's own commands and leaves one artefact in the work folder;
what is there is not made again.  At the end the table goes into benchmarks/RESULTS.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from smollm2 import write_section

from minitron.builtin import CALIBRATION, DISTILL, HELDOUT
from minitron.cut.rotation import unrotatable
from minitron.files import read_json, write_json
from minitron.model.spec import read_spec

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).with_name("RESULTS.md")
SEQUENCE_LENGTH: Final = 256

CUTS: Final[dict[str, dict[str, int]]] = {
    "qwen3_moe": {"hidden_size": 112, "num_local_experts": 7, "moe_intermediate_size": 56},
    "gemma3_text": {"hidden_size": 112, "intermediate_size": 296},
    "granitemoehybrid": {
        "hidden_size": 112,
        "mamba_d_head": 28,
        "num_local_experts": 7,
        "intermediate_size": 56,
        "shared_intermediate_size": 112,
    },
}
"""model_type -> sizes with about a quarter fewer parameters."""

WAYS: Final[dict[str, tuple[str, ...]]] = {
    "channels selected": ("--no-rotate", "--no-refit", "--no-fit", "--no-project", "--estimator", "activation"),
    "selected, refitted": ("--no-rotate",),
    "default": (),
}
"""How a model is cut -> the options of `minitron prune`; the default rotates where a model can be rotated."""

DISTILLED: Final = ("channels selected", "default")


def run(*command: object) -> str:
    """Run a Python program and return what it printed; its progress goes to our stderr."""
    print(*command, file=sys.stderr)
    done = subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return done.stdout


def minitron(*arguments: object) -> str:
    """Run one command of minitron."""
    return run("-m", "cli", *arguments)


def folders(options: argparse.Namespace, model_type: str) -> dict[str, Path]:
    """Train, cut each way and distil: the folders by the name of their row."""
    work = options.work / model_type
    parent = work / "parent"
    if not parent.exists():
        run("examples/train_tiny.py", "--type", model_type, "--minutes", options.minutes, "-o", parent)
    found = {"parent": parent}
    sizes = [f"--set={name}={size}" for name, size in CUTS[model_type].items()]
    text = ("--data", CALIBRATION, "--samples", 128, "--sequence-length", SEQUENCE_LENGTH, "--layer-scores", "none")
    for way, how in WAYS.items():
        pruned = work / way.replace(", ", "-").replace(" ", "-")
        if not pruned.exists():
            minitron("prune", parent, *sizes, *text, *how, "-o", pruned)
        found[way] = pruned
        if way not in DISTILLED:
            continue
        distilled = pruned.with_name(f"{pruned.name}-distilled")
        if not distilled.exists():
            training = ("--tokens", options.tokens, "--batch-tokens", 2048, "--sequence-length", SEQUENCE_LENGTH)
            rest = ("--dtype", "fp32", "--learning-rate", options.learning_rate, "--validate-every", options.tokens)
            minitron("distill", pruned, "--teacher", parent, "--data", DISTILL, *training, *rest, "-o", distilled)
        found[f"{way}, distilled"] = distilled
    return found


def measured(options: argparse.Namespace, model_type: str) -> dict[str, dict[str, Any]]:
    """row -> what `minitron eval` says of its folder."""
    path = options.work / model_type / "evaluation.json"
    found = folders(options, model_type)
    if not path.exists():
        spread = ("--sequence-length", SEQUENCE_LENGTH, "--samples", options.samples, "--no-speed", "--json")
        write_json(
            path,
            json.loads(minitron("eval", *found.values(), "--teacher", found["parent"], "--text", HELDOUT, *spread)),
        )
    results = read_json(path)["results"]
    return {name: results[str(folder)] for name, folder in found.items()}


def not_rotated(work: Path) -> str:
    """Why the stream of the parent in the work folder of its type is not rotated by default; empty where it is."""
    spec = read_spec(work / "parent")
    if unrotatable(spec) is not None:
        return "its norms multiply what is written to the stream"
    return "its output layer is tied to the embedding, which a rotation would part" if spec.is_tied else ""


def report(options: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## Other types, trained for minutes (`benchmarks/families.py`)",
        "",
        "| type | model | parameters | perplexity | KL to parent | top-1 agreement |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for model_type in options.types:
        for name, found in measured(options, model_type).items():
            lines.append(
                f"| `{model_type}` | {name} | {found['parameters']:,} | {found['perplexity']:.2f} | "
                f"{found['kl_to_teacher']:.4f} | {found['top1_agreement']:.1%} |"
            )
    cuts = "; ".join(
        f"{name}: {', '.join(f'{key} {size}' for key, size in CUTS[name].items())}" for name in options.types
    )
    reasons = "; ".join(f"{name}, as {why}" for name in options.types if (why := not_rotated(options.work / name)))
    unrotated = f" Not rotated: {reasons}." if reasons else ""
    layers = ", ".join(
        f"{name} {len(read_spec(options.work / name / 'parent').layers)} layers" for name in options.types
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Parents ({layers}): {options.minutes:g} minutes of `examples/train_tiny.py` each, on one thread. "
            f"Cut to {cuts}, after 128 sequences of {SEQUENCE_LENGTH} tokens of calibration text. Where channels are "
            "selected, those of highest activation stay (heads and experts too) and no weight changes; the default "
            "rotates the residual stream where the type allows it, selects by the best estimator of each axis, and "
            f"refits.{unrotated} Distilled on {options.tokens:,} tokens, 2,048 a step, highest learning rate "
            f"{options.learning_rate:g}. Quality: {options.samples} held-out sequences.",
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all artefacts")
    parser.add_argument("--types", nargs="+", default=list(CUTS), choices=list(CUTS), help="model types")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time of a parent")
    parser.add_argument("--tokens", type=int, default=2**18, help="tokens of each distillation")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest learning rate of a distillation")
    parser.add_argument("--samples", type=int, default=64, help="held-out sequences of the evaluation")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    write_section(RESULTS, report(arguments))
