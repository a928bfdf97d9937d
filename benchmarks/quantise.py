"""What quantising costs: SmolLM2-135M-Instruct in every format that is written, by rounding and with feedback.

    python benchmarks/quantise.py --work runs/quantise --text wikitext.txt

The first fifth of the text judges, the others calibrate.  Weights are read back as they were written,
in fp32; what linears read is not rounded.  What is measured already in the work folder is not measured again.  At the
end the table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2 import RESULTS, convert, find_gguf, write_section

from minitron.files import file_hash, read_json, write_json, write_text
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.memory.formats import FORMATS as ALL
from minitron.model.loading import load_model, load_tokenizer
from minitron.quantise.scales import searched_scales
from pipeline import Quantising, quantise

WAYS = ("nearest", "best")
FORMATS = ("fp8", "fp8-dynamic", "int8", "nvfp4a16", "int4")
"""nvfp4 holds the same weights as nvfp4a16."""

LENGTH, FEW, MANY = 256, 6, 48
"""Tokens of a sequence that judges, and how many of them: the first of the text, and more from
all over what judges."""


def split(text: Path, work: Path) -> tuple[Path, Path]:
    """(calibration, judging): all but the first fifth of the text, and that."""
    whole = text.read_text(encoding="utf-8")
    place = whole.index("\n", len(whole) // 5)
    parts = work / "calibration.txt", work / "judging.txt"
    for path, part in zip(parts, (whole[place:], whole[:place]), strict=True):
        write_text(path, part)
    return parts


@dataclass
class Judge:
    """Holds models against the parent."""

    parent: Path
    judging: Path
    kept: Path
    """A file for what is known of the parent."""

    few: float = 0.0
    """Perplexity of the parent on FEW sequences."""

    many: float = 0.0
    """The same on MANY."""

    def __post_init__(self) -> None:
        every = token_blocks(load_tokenizer(self.parent), self.judging, sequence_length=LENGTH)
        self.blocks = every[:FEW], every[np.linspace(0, len(every) - 1, MANY).round().astype(int)]
        model = load_model(self.parent, dtype=torch.float32)
        self.teacher = Teacher(model)
        if not self.kept.exists():
            write_json(self.kept, [measure_quality(model, blocks).perplexity for blocks in self.blocks])
        self.few, self.many = read_json(self.kept)

    def judged(self, folder: Path) -> dict[str, float | None]:
        """Perplexity on both, and the KL divergence from the parent on the larger."""
        model = load_model(folder, dtype=torch.float32)
        few, many = self.blocks
        found = measure_quality(model, many, teacher=self.teacher)
        return {"few": measure_quality(model, few).perplexity, "many": found.perplexity, "kl": found.kl_to_teacher}


def measured(options: argparse.Namespace, form: str, way: str, calibration: Path, judge: Judge) -> dict[str, Any]:
    """One row, made if it is not there."""
    path = options.work / f"{form}-{way}.json"
    if not path.exists():
        folder, started = options.work / f"{form}-{way}", time.process_time()
        # Rounding needs text only where a format holds scales of inputs.
        text = calibration if way == "best" or form == "fp8" else None
        asked = {"samples": options.samples if way == "best" else 1, "device": "cpu", "overwrite": True}
        result = quantise(Quantising(judge.parent, folder, form, rounding=way, data=text, **asked))  # type: ignore[arg-type]
        seconds = time.process_time() - started
        own = {"bytes": result.weight_bytes, "planned": result.planned_bytes, "seconds": seconds}
        write_json(path, own | {"samples": options.samples if way == "best" else 0} | judge.judged(folder))
    found: dict[str, Any] = read_json(path)
    return found


def speeds() -> list[str]:
    """How fast scales are searched, by one thread, of a matrix of 8 MiB."""
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    importance, found = torch.ones(2048), []
    for form in FORMATS:
        took = []
        for _ in range(3):
            started = time.process_time()
            searched_scales(ALL[form], [weight], importance)
            took.append(time.process_time() - started)
        found.append(f"{form} {weight.nbytes / min(took) / 1e6:.0f}")
    return found


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="text, of which the first fifth judges")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences of 512 tokens")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="those that are measured")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="how numbers are rounded")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.work / "parent").exists():
        convert(find_gguf(options.work), options.work / "parent")
    calibration, judging = split(options.text, options.work)
    judge = Judge(options.work / "parent", judging, options.work / "parent.json")
    lines = [
        "## Quantised weights (`benchmarks/quantise.py`)",
        "",
        f"| format | rounded | bytes planned | bytes written | perplexity, {FEW} x {LENGTH} | x bf16 "
        f"| {MANY} x {LENGTH} | x bf16 | KL, nats | sequences | CPU seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| bf16 | - | 269,030,016 | 269,030,016 | {judge.few:.2f} | 1 | {judge.many:.2f} | 1 | 0 | - | - |",
    ]
    for form in options.formats:
        for way in options.ways:
            row = measured(options, form, way, calibration, judge)
            lines.append(
                f"| {form} | {way} | {row['planned']:,} | {row['bytes']:,} | {row['few']:.2f} | "
                f"{row['few'] / judge.few:.3f} | {row['many']:.2f} | {row['many'] / judge.many:.3f} | "
                f"{row['kl']:.4f} | {row['samples'] or '-'} | {row['seconds']:.0f} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "SmolLM2-135M-Instruct; int4 in groups of 64: 128 do not divide its hidden size of 576. `nearest` is plain "
        "rounding (`--round nearest`), `best` rounds by so many calibration sequences of 512 tokens (`--data`). The "
        f"first fifth of `{options.text.name}` (SHA-256 {file_hash(options.text)[:16]}) judges, the rest calibrates: "
        f"its first {FEW} x {LENGTH} tokens, and {MANY} sequences from all over it. "
        "Weights are read back as they were written; inputs of linears are not rounded. KL from bf16, on the "
        f"larger text. Seconds are those of one thread. Scales are searched at {', '.join(speeds())} MB of bf16 "
        "weights a second by one thread.",
        "",
    ]
    section = "\n".join(lines)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
