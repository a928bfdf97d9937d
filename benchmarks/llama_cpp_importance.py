"""What an importance matrix is worth: SmolLM2 as a GGUF file in a few types, with one and without.

    python benchmarks/llama_cpp_importance.py --work runs/gguf --smollm2 runs/smollm2/parent --text wiki.txt

The weights of each file are read back by transformers and run in fp32: perplexity, and KL(whole || rounded), of 6 x 256
tokens of the text.  The importance matrix is computed from the built-in calibration text, 16 x 512 tokens of it.
Needs `pip install 'minitron[gguf]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

# The other script beside this one.
from smollm2 import RESULTS, write_section
from torch import Tensor
from transformers import AutoModelForCausalLM

from importance.rounding.squares import input_squares
from minitron import builtin
from minitron.gguf.export import export
from minitron.measure.text import token_blocks
from minitron.model.dequantised import open_plain
from minitron.model.loading import load_model, load_tokenizer
from minitron.units import MiB

CALIBRATION = builtin.MODEL.parent / "text" / "calibration.txt"
TYPES = ("q4_k_m", "q2_k", "iq3_xxs", "iq2_xxs")


def likelihoods(model: torch.nn.Module, blocks: Tensor) -> Tensor:
    """[S, T - 1, V] log-probabilities in fp32."""
    with torch.inference_mode():
        return torch.cat([model(block[None]).logits[:, :-1].float().log_softmax(-1) for block in blocks])


def main() -> None:
    """Parse the command line, measure, and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--smollm2", type=Path, required=True, help="SmolLM2-135M as a checkpoint folder")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.smollm2)
    blocks = torch.from_numpy(token_blocks(tokenizer, options.text, sequence_length=256, samples=6))
    whole = likelihoods(load_model(options.smollm2, dtype=torch.float32), blocks)
    targets = blocks[:, 1:, None]
    spec, checkpoint, _ = open_plain(options.smollm2)
    read = token_blocks(tokenizer, CALIBRATION, sequence_length=512, samples=16)
    squares = input_squares(options.smollm2, spec, checkpoint, read, torch.device("cpu"))
    rows = [f"| bf16 | | | {float((-whole.gather(-1, targets)).mean().exp()):.2f} | 0 |"]
    for kind in TYPES:
        for known in (False, True):
            if not known and kind.startswith(("iq3_xxs", "iq2")):
                rows.append(f"| {kind} | no | refused | | |")
                continue
            file = options.work / "importance.gguf"
            given = (lambda *asked: squares) if known else None
            size = export(options.smollm2, file, kind, importance=given, overwrite=True).weight_bytes
            model = AutoModelForCausalLM.from_pretrained(
                options.work, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
            found = likelihoods(model, blocks)
            perplexity = float((-found.gather(-1, targets)).mean().exp())
            divergence = float((whole.exp() * (whole - found)).sum(-1).mean())
            told = "yes" if known else "no"
            rows.append(f"| {kind} | {told} | {size / MiB:.1f} | {perplexity:.2f} | {divergence:.4f} |")
            print(rows[-1], flush=True)
            file.unlink()
    lines = [
        "## Importance matrices (`benchmarks/llama_cpp_importance.py`)",
        "",
        "| SmolLM2-135M | importance matrix | MiB of tensors | perplexity | KL |",
        "|---|---|--:|--:|--:|",
        *rows,
        "",
        f"6 x 256 tokens of {options.text.name}; the matrix from 16 x 512 tokens of the built-in calibration text. "
        "Rows of 576 are no whole blocks of 256: most matrices of these files are in iq4_nl, q5_0 or q4_0, and only "
        "the 30 of 1536 columns in the type itself.",
        "",
    ]
    write_section(options.results, "\n".join(lines))


if __name__ == "__main__":
    main()
