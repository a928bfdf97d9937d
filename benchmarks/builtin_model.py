"""How good the built-in model is, and how much each of its layers and experts does.

    python benchmarks/builtin_model.py [--model FOLDER] [--windows 80]

Everything is measured on the held-out text, which the model was never trained on; a part's cost is the rise of the loss
on the same windows without it. Some minutes on one thread.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from cli import show
from minitron.builtin import HELDOUT, MODEL
from minitron.measure.quality import measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer

SEQUENCE_LENGTH = 512
PROMPTS = ("And it came to pass in those days that", "Elizabeth was so much surprised that", "KING HENRY.\nMy lord,")


def loss(model: PreTrainedModel, blocks: NDArray[np.int64]) -> float:
    """Nats a token."""
    return log(measure_quality(model, blocks, batch_size=4).perplexity)


@contextmanager
def without_layer(model: PreTrainedModel, index: int) -> Iterator[None]:
    """The model with one layer passing its input on."""
    layer = model.base_model.layers[index]
    layer.forward = lambda hidden_states, **_: hidden_states
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def without_experts(router: nn.Module, experts: list[int]) -> Iterator[None]:
    """The model with experts that no token is routed to."""
    bias = router.e_score_correction_bias.clone()
    router.e_score_correction_bias[experts] = -100.0
    try:
        yield
    finally:
        router.e_score_correction_bias.copy_(bias)


def expert_shares(model: PreTrainedModel, blocks: NDArray[np.int64]) -> dict[int, Tensor]:
    """For each MoE layer the share [E] of the routed tokens that each expert gets."""
    counts: dict[int, Tensor] = {}
    handles = []
    for index, layer in enumerate(model.base_model.layers):
        if layer.block_type == "moe":

            def count(module: nn.Module, _inputs: object, output: tuple[Tensor, ...], index: int = index) -> None:
                found = torch.bincount(output[2].flatten(), minlength=module.num_experts)
                counts[index] = counts.get(index, torch.zeros_like(found)) + found

            handles.append(layer.mixer.gate.register_forward_hook(count))
    loss(model, blocks)
    for handle in handles:
        handle.remove()
    return {index: found / found.sum() for index, found in counts.items()}


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A continuation of 120 tokens at temperature 0.8 from the 40 likeliest."""
    set_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=120, do_sample=True, temperature=0.8, top_k=40)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def main(folder: Path, windows: int) -> None:
    """Measure and print."""
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    every = token_blocks(tokenizer, HELDOUT, sequence_length=SEQUENCE_LENGTH)
    few = token_blocks(tokenizer, HELDOUT, sequence_length=SEQUENCE_LENGTH, samples=windows)
    text = HELDOUT.read_text(encoding="utf-8")
    bytes_per_token = len(text.encode()) / len(tokenizer(text, verbose=False)["input_ids"])
    quality = measure_quality(model, every, batch_size=4)
    bits = log(quality.perplexity) / log(2) / bytes_per_token
    rows = [[quality.tokens, quality.perplexity, log(quality.perplexity), bytes_per_token, bits]]
    columns = ["held-out tokens", "perplexity", "nats a token", "bytes a token", "bits a byte"]
    show.table("Held-out text", columns, rows)

    base = loss(model, few)
    costs = []
    for index, layer in enumerate(model.base_model.layers):
        with without_layer(model, index):
            costs.append([index, layer.block_type, loss(model, few) - base])
    show.table(f"Nats a token that a layer is worth ({len(few)} windows)", ["layer", "kind", "cost"], costs)

    rows = []
    for index, shares in expert_shares(model, few).items():
        router = model.base_model.layers[index].mixer.gate
        order = shares.argsort().tolist()
        for name, experts in (("two least used", order[:2]), ("two most used", order[-2:])):
            with without_experts(router, experts):
                rows.append([index, name, float(shares[experts].sum()), loss(model, few) - base])
        show.line(f"layer {index}: " + " ".join(f"{share:.3f}" for share in shares.tolist()))
    show.table("What experts are worth", ["layer", "masked", "share of tokens", "cost in nats"], rows)

    for prompt in PROMPTS:
        show.line(sample(model, tokenizer, prompt) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="another folder with this tokenizer")
    parser.add_argument("--windows", type=int, default=40, help="windows of 512 tokens for what a part is worth")
    arguments = parser.parse_args()
    main(arguments.model, arguments.windows)
