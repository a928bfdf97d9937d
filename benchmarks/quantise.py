"""What quantising costs: SmolLM2-135M-Instruct in every format that is written, by rounding and with feedback.

    python benchmarks/quantise.py --work runs/quantise --text wikitext.txt

The first four fifths of the text calibrate, the last fifth judges.  Weights are read back as they were written,
in fp32; what linears read is not rounded.  What is measured already in the work folder is not measured again.  At the
end the table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from smollm2 import RESULTS, convert, find_gguf, write_section

from minitron.files import file_hash, read_json, write_json, write_text
from minitron.measure.quality import measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer
from pipeline import Quantising, quantise

WAYS = ("nearest", "best")
FORMATS = ("fp8", "fp8-dynamic", "int8", "nvfp4a16", "int4")
"""nvfp4 holds the same weights as nvfp4a16."""

LENGTH, FEW, MANY = 256, 6, 48
"""Tokens of a sequence that judges, and how many of them: as many as earlier figures were made on, and more."""


def split(text: Path, work: Path) -> tuple[Path, Path]:
    """(calibration, judging): the first four fifths of the text and the rest."""
    whole = text.read_text(encoding="utf-8")
    place = whole.index("\n", len(whole) * 4 // 5)
    parts = work / "calibration.txt", work / "judging.txt"
    for path, part in zip(parts, (whole[:place], whole[place:]), strict=True):
        write_text(path, part)
    return parts


def perplexities(folder: Path, judging: Path) -> list[float]:
    """On FEW and on MANY sequences."""
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    blocks = [token_blocks(tokenizer, judging, sequence_length=LENGTH, samples=count) for count in (FEW, MANY)]
    return [measure_quality(model, each).perplexity for each in blocks]


def measured(options: argparse.Namespace, form: str, way: str, calibration: Path, judging: Path) -> dict[str, Any]:
    """One row, made if it is not there."""
    path = options.work / f"{form}-{way}.json"
    if not path.exists():
        folder, started = options.work / f"{form}-{way}", time.monotonic()
        # Rounding needs text only where a format holds scales of inputs.
        text = calibration if way == "best" or form == "fp8" else None
        asked = {"samples": options.samples if way == "best" else 1, "device": "cpu", "overwrite": True}
        result = quantise(Quantising(options.work / "parent", folder, form, rounding=way, data=text, **asked))  # type: ignore[arg-type]
        seconds = time.monotonic() - started
        few, many = perplexities(folder, judging)
        write_json(path, {"bytes": result.weight_bytes, "few": few, "many": many, "seconds": seconds})
    found: dict[str, Any] = read_json(path)
    return found


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="text, of which the last fifth judges")
    parser.add_argument("--samples", type=int, default=128, help="calibration sequences of 512 tokens")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    if not (options.work / "parent").exists():
        convert(find_gguf(options.work), options.work / "parent")
    calibration, judging = split(options.text, options.work)
    few, many = perplexities(options.work / "parent", judging)
    lines = [
        "## Quantised weights (`benchmarks/quantise.py`)",
        "",
        f"| format | rounded | bytes | perplexity, {FEW} x {LENGTH} | x bf16 | {MANY} x {LENGTH} | x bf16 | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        f"| bf16 | - | 269,030,016 | {few:.2f} | 1 | {many:.2f} | 1 | - |",
    ]
    for form in FORMATS:
        for way in WAYS:
            row = measured(options, form, way, calibration, judging)
            lines.append(
                f"| {form} | {way} | {row['bytes']:,} | {row['few']:.2f} | {row['few'] / few:.3f} | "
                f"{row['many']:.2f} | {row['many'] / many:.3f} | {row['seconds']:.0f} |"
            )
    lines += [
        "",
        "SmolLM2-135M-Instruct; int4 in groups of 64, which its hidden size of 576 takes. `nearest` is plain rounding "
        f"(`--round nearest`), `best` rounds with feedback by {options.samples} calibration sequences of 512 tokens "
        f"(`--data`). The first four fifths of `{options.text.name}` (SHA-256 {file_hash(options.text)[:16]}) "
        "calibrate, the rest judges. Weights are read back as they were written; inputs of linears are not rounded. "
        "Seconds of one thread, which other work shared.",
        "",
    ]
    section = "\n".join(lines)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
