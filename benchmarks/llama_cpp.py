"""GGUF files against transformers: four models exported, run by llama.cpp, and what they say next compared.

    python benchmarks/llama_cpp.py --work runs/gguf --smollm2 runs/smollm2/parent

`--smollm2` is the folder that `benchmarks/smollm2.py --convert-only` makes.  The other models are cut from it and from
the built-in model: what is compared is two programs, not how good a model is.
transformers computes in fp32.  Needs `pip install 'minitron[gguf]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

# The other scripts beside this one.
from llama_cpp_runs import continued, distribution, opened
from smollm2 import RESULTS, minitron, write_section

from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.gguf.export import export
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

BUILTIN = Path(__file__).parent.parent / "minitron/builtin/model"
PROMPT = "The king said to the people of the city that the water of the river"
TOKENS = 16
TYPES = ("f32", "bf16", "q8_0", "q4_k_m")


def models(work: Path, smollm2: Path) -> dict[str, Path]:
    """The four checkpoint folders by name; what is there is not made again."""
    found = {"SmolLM2-135M": smollm2, "SmolLM2-135M, MLPs of 1016": work / "pruned"}
    if not (work / "pruned").exists():
        text = ("--data", BUILTIN.parent / "text/calibration.txt", "--samples", 8, "--sequence-length", 256)
        by_hand = ("--set", "intermediate_size=1016", "--layer-scores", "none")
        minitron("prune", smollm2, *by_hand, *text, "-o", work / "pruned")
    spec = read_spec(BUILTIN)
    for name, letters in (("hybrid with experts", "ME*"), ("dense hybrid", "M*-")):
        folder = work / name.replace(" ", "-")
        if not folder.exists():
            layers = tuple(place for place, letter in enumerate(spec.letters) if letter in letters)
            prune(BUILTIN, make_plan(spec, {}, layers), folder)
        found[f"built-in model, {name}"] = folder
    return found


def expected(folder: Path) -> tuple[list[int], list[list[int]], list[np.ndarray]]:
    """The tokens of PROMPT, what transformers reads at each of TOKENS steps, and its log-probabilities there."""
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    ids = [int(token) for token in tokenizer(PROMPT)["input_ids"]]
    prompt, read, found = list(ids), [], []
    for _ in range(TOKENS):
        with torch.inference_mode():
            likely = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
        read.append(list(ids))
        found.append(likely)
        ids.append(int(likely.argmax()))
    return prompt, read, found


def compare(name: str, folder: Path, work: Path) -> list[str]:
    """A row of the table for each of TYPES."""
    prompt, read, likely = expected(folder)
    said = [int(one.argmax()) for one in likely]
    (printable, *_) = load_tokenizer(folder)("a")["input_ids"]
    rows = []
    for kind in TYPES:
        file = work / "model.gguf"
        written = export(folder, file, kind, overwrite=True)
        server = opened(file)
        own = [token for token, _ in continued(server, prompt, TOKENS)]
        same = next((place for place, pair in enumerate(zip(own, said, strict=False)) if pair[0] != pair[1]), len(own))
        divergences, differences = [], []
        for ids, one in zip(read, likely, strict=True):
            other = np.array(distribution(server, ids, len(one), printable))
            divergences.append(float((np.exp(one) * (one - np.maximum(other, -100))).sum()))
            differences.append(abs(float(other[one.argmax()] - one.max())))
        rows.append(
            f"| {name} | {kind} | {written.weight_bytes:,} | {same} of {TOKENS} | {max(differences):.4f} | "
            f"{np.mean(divergences):.5f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse the command line, compare, and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--smollm2", type=Path, required=True, help="SmolLM2-135M as a checkpoint folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Markdown file that gets the table")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lines = [
        "## GGUF files in llama.cpp (`benchmarks/llama_cpp.py`)",
        "",
        "| model | type | bytes of tensors | same greedy tokens | largest difference of their log-probability | KL |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, folder in models(options.work, options.smollm2).items():
        lines += compare(name, folder, options.work)
    lines += [
        "",
        "Exported by `minitron export`, run by xllamacpp on the CPU with its fp16 KV cache; transformers in fp32. "
        f"{TOKENS} tokens behind {PROMPT!r}; log-probabilities and KL(transformers || llama.cpp), both in nats, over "
        "the whole vocabulary where transformers' own tokens are read. The cut models are not trained after the cut.",
        "",
    ]
    write_section(options.results, "\n".join(lines))


if __name__ == "__main__":
    main()
