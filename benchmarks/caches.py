"""What caches in fewer bits cost: keys and values, and states, of the built-in model, SmolLM2 and others.

    python benchmarks/caches.py --work runs/caches --text wikitext.txt [--model FOLDER --model-text TEXT]

The built-in model reads its own held-out text, SmolLM2 --text.  Every row is what `minitron eval --kv ... --ssm-state
...` says in fp32.  What is measured already in the work folder is not measured again.  At the end the table goes into
benchmarks/RESULTS.md.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm2 import RESULTS, convert, find_gguf, write_section

from minitron import builtin
from minitron.files import read_json, write_json
from minitron.measure.cache_options import CacheOptions
from minitron.measure.options import EvaluationOptions
from minitron.model.configs import spec_if_known
from pipeline import evaluate

STATES = ("bf16", "fp16", "int8", "fp8")
KEYS_VALUES = ("fp8", "int8", "nvfp4")


@dataclass(frozen=True)
class Case:
    """A model on a text."""

    title: str
    folder: Path
    text: Path
    sequences: int
    """For keys and values; states are decoded token by token on `decoded`."""

    length: int
    decoded: int = 0


def rows(case: Case, work: Path) -> list[dict[str, Any]]:
    """What every format costs a model; made where it is not there."""
    asked = [CacheOptions(kv=kv) for kv in KEYS_VALUES]
    if case.decoded:
        asked += [CacheOptions(ssm_state=state) for state in STATES]
    found: list[dict[str, Any]] = []
    for options in asked:
        path = work / f"{case.title}-{options.kv}-{options.ssm_state}.json"
        if not path.exists():
            started = time.monotonic()
            samples = case.sequences if options.ssm_state is None else case.decoded
            settings = EvaluationOptions(
                sequence_length=case.length, samples=samples, dtype="fp32", speed=False, caches=options
            )
            (evaluation,) = evaluate([case.folder], case.text, settings, device="cpu")
            seconds = time.monotonic() - started
            counted = {"tokens": evaluation.quality.tokens, "seconds": seconds}
            write_json(path, {"rows": [cache.to_json() | counted for cache in evaluation.caches]})
        found += read_json(path)["rows"]
    return found


def cases(options: argparse.Namespace) -> list[Case]:
    """The models."""
    parent = options.work / "smollm2"
    if not parent.exists():
        convert(find_gguf(options.work), parent)
    found = [
        Case("built-in model", builtin.MODEL, builtin.HELDOUT, 48, 512, 8),
        Case("SmolLM2-135M-Instruct", parent, options.text, 16, 256),
    ]
    for model, text in zip(options.model or [], options.model_text or [], strict=True):
        spec = spec_if_known(model)
        decoded = 8 if spec is not None and any(c.dim("state") for k in spec.layers if (c := spec.cache(k))) else 0
        found.append(Case(model.name, model, text, 16, 512, decoded))
    return found


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--text", type=Path, required=True, help="text that SmolLM2 reads")
    parser.add_argument("--model", type=Path, action="append", help="another model; may be repeated")
    parser.add_argument("--model-text", type=Path, action="append", help="its text, in the order of --model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lines = [
        "## Caches in fewer bits (`benchmarks/caches.py`)",
        "",
        "| model | tokens | keys and values | states | states rounded | KL, nats | perplexity | top-1 agreement |",
        "|---|--:|---|---|---|--:|--:|--:|",
    ]
    for case in cases(options):
        for row in rows(case, options.work):
            rounded = row["rounding"] if row["ssm_state"] else "-"
            lines.append(
                f"| {case.title} | {row['tokens']:,} | {row['kv'] or 'fp32'} | {row['ssm_state'] or 'fp32'} | "
                f"{rounded} | "
                f"{row['kl']:.2e} | {row['perplexity_ratio'] - 1:+.4%} | {row['top1_agreement']:.2%} |"
            )
    lines += [
        "",
        "KL of the model with its cache as it is (all in fp32) and the same model with keys and values, or states, "
        "rounded as they are stored. States: decoded token by token, each rounded at every token, one fp32 scale a "
        "channel of the state; keys and values: rounded once, to nearest, fp8 and nvfp4 with a layer's scale of 1, "
        "int8 with one fp32 scale a head and token. Stochastic rounding: one seed.",
        "",
    ]
    section = "\n".join(lines)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
