"""Quantisation-aware distillation: SmolLM2-135M-Instruct taught by itself in 16 bits, beside rounding alone.

    python benchmarks/qad.py --work runs/qad --text wikitext.txt [--formats int4 nvfp4a16] [--seeds 0 1 2]
                            [--tokens 24576]

Four ways to the same bytes: every number to the nearest (`minitron quantize --round nearest`), rounded with feedback
(`--data`), and from there distilled (`minitron distill --format`), a row a seed.  The first fifth of the
text judges, the rest calibrates and trains.  Folders are read back as they were written.  What is measured already
in the work folder is not measured again.  At the end the table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from quantise import LENGTH, MANY, split
from smollm2 import RESULTS, convert, find_gguf, write_section

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.teacher.teacher_source import answers
from minitron.files import file_hash, read_json, write_json
from minitron.measure.quality import measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer
from pipeline import Quantising, distill, quantise

BATCH: Final = 2048
"""Tokens of a step."""

CALIBRATION: Final = 128
"""Sequences that a rounding with feedback sees; distillation begins with as many."""


def judged(folder: Path, parent: Path, judging: Path) -> dict[str, float]:
    """Perplexity, and KL to the parent, in nats a token."""
    model, whole = (load_model(path, dtype=torch.float32) for path in (folder, parent))
    teacher = None if folder == parent else answers(whole, torch.device("cpu"))
    blocks = token_blocks(load_tokenizer(parent), judging, sequence_length=LENGTH, samples=MANY)
    found = measure_quality(model, blocks, teacher=teacher)
    return {"perplexity": found.perplexity, "kl": found.kl_to_teacher or 0.0}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, made if it is not there."""
    if not path.exists():
        started = time.monotonic()
        found = make()
        write_json(path, found | {"seconds": time.monotonic() - started})
    result: dict[str, Any] = read_json(path)
    return result


def rows(options: argparse.Namespace, form: str, training: Path, judging: Path) -> list[tuple[str, dict[str, Any]]]:
    """(way, what was measured), in the order of the table."""
    parent = options.work / "parent"

    def rounded(data: Path | None) -> dict[str, Any]:
        folder = options.work / f"{form}-{'feedback' if data else 'nearest'}"
        asked = Quantising(
            parent,
            folder,
            form,
            rounding="best" if data else "nearest",
            data=data,
            samples=CALIBRATION,
            sequence_length=LENGTH,
            device="cpu",
            overwrite=True,
        )
        quantise(asked)
        return judged(folder, parent, judging)

    def taught(seed: int) -> dict[str, Any]:
        folder = options.work / f"{form}-{seed}"
        recipe = Recipe(
            tokens=options.tokens,
            sequence_length=LENGTH,
            batch_tokens=BATCH,
            micro_batch=2,
            learning_rate=options.learning_rate,
            warmup_steps=2,
            validation_sequences=8,
            validate_every=6,
            checkpoint_every=6,
            precision="fp32",
            seed=seed,
        )
        asked = Distillation(parent, parent, training, folder, student_format=form, device="cpu")
        result = distill(asked, recipe).result
        return judged(folder, parent, judging) | {"curve": [dict(point) for point in result.curve]}

    found = [
        ("nearest", kept(options.work / f"{form}-nearest.json", lambda: rounded(None))),
        ("with feedback", kept(options.work / f"{form}-feedback.json", lambda: rounded(training))),
    ]
    for seed in options.seeds:
        made = kept(options.work / f"{form}-{seed}.json", lambda seed=seed: taught(seed))  # type: ignore[misc]
        found.append((f"distilled, seed {seed}", made))
    return found


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="text, of which the first fifth judges")
    parser.add_argument("--formats", nargs="+", default=["int4", "nvfp4a16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=24_576)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parent = options.work / "parent"
    if not parent.exists():
        convert(find_gguf(options.work), parent)
    training, judging = split(options.text, options.work)
    whole = kept(options.work / "parent.json", lambda: judged(parent, parent, judging))
    lines = [
        "## Quantisation-aware distillation (`benchmarks/qad.py`)",
        "",
        "| format | way | KL to bf16 | of nearest | of feedback | perplexity | x bf16 | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        f"| bf16 | - | 0 | - | - | {whole['perplexity']:.2f} | 1 | - |",
    ]
    for form in options.formats:
        found = rows(options, form, training, judging)
        nearest, feedback = found[0][1]["kl"], found[1][1]["kl"]
        for way, row in found:
            lines.append(
                f"| {form} | {way} | {row['kl']:.4f} | {row['kl'] / nearest:.2f} | {row['kl'] / feedback:.2f} | "
                f"{row['perplexity']:.2f} | {row['perplexity'] / whole['perplexity']:.3f} | {row['seconds']:.0f} |"
            )
    lines += [
        "",
        f"SmolLM2-135M-Instruct, student and teacher; {options.tokens:,} tokens in steps of {BATCH:,}, AdamW at "
        f"{options.learning_rate:g}, fp32. int4 in groups of 64. Feedback sees {CALIBRATION} sequences of {LENGTH} "
        f"tokens, and distillation begins with such a rounding of its own first {CALIBRATION} sequences. Judged on "
        f"{MANY} x {LENGTH} tokens of the first fifth of `{options.text.name}` "
        f"(SHA-256 {file_hash(options.text)[:16]}) from the folders that were written; what linears "
        "read is not rounded. Seconds of one thread, which other work "
        "shared.",
        "",
    ]
    section = "\n".join(lines)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
