"""Train a tiny model of another type on the built-in texts: a million parameters or two, minutes on one CPU thread.

    OMP_NUM_THREADS=1 python examples/train_tiny.py --type qwen3_moe --minutes 8 -o runs/qwen3_moe

The result is a Hugging Face folder with the built-in tokenizer: something real to score, prune and distil, where
random weights say nothing of what a cut costs. `benchmarks/families.py` does all of that.

AdamW (Loshchilov and Hutter 2019). The learning rate follows the clock, not the step count, so that it reaches zero
when the time is up on any machine.

Shape letters: B batch, T tokens.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from minitron.builtin import CALIBRATION, DISTILL, HELDOUT, MODEL
from minitron.errors import MinitronError
from minitron.files import new_folder
from minitron.measure.quality import measure_quality
from minitron.measure.text import token_blocks
from minitron.model.loading import load_tokenizer

SEQUENCE_LENGTH, BATCH_SIZE = 256, 4
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.1
WARMUP, DECAY_FROM = 0.03, 0.35  # shares of the run's time

COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TYPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_hidden_layers": 6,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.01,
    },
    "gemma3_text": {
        "num_hidden_layers": 6,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "intermediate_size": 384,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": {
        "num_hidden_layers": 6,
        "layer_types": ["mamba", "mamba", "attention"] * 2,
        "intermediate_size": 64,
        "shared_intermediate_size": 128,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.01,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 32,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 64,
        "tie_word_embeddings": True,
        "position_embedding_type": "rope",
    },
    "llama": {"num_hidden_layers": 6, "head_dim": 32, "intermediate_size": 384},
}
"""model_type -> what its config has beside COMMON."""


def build(model_type: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A fresh model of the type; raises MinitronError where TYPES has none."""
    if model_type not in TYPES:
        raise MinitronError(f"{model_type} has no tiny config in examples/train_tiny.py; choose {', '.join(TYPES)}.")
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **COMMON | TYPES[model_type])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model


def batches(blocks: Tensor) -> Iterator[Tensor]:
    """Endless [B, T] batches of the [N, T] blocks, each epoch in an order of its own."""
    epoch = 0
    while True:
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(epoch))
        for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE):
            yield blocks[rows]
        epoch += 1


def schedule(progress: float) -> float:
    """Share of the peak learning rate at a share of the run's time: warm-up, flat, linear to zero."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    return 1.0 if progress < DECAY_FROM else max(0.0, (1 - progress) / (1 - DECAY_FROM))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, which decays matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))


def train(model: PreTrainedModel, blocks: Tensor, minutes: float) -> int:
    """Train until the time is up; returns the tokens that were read."""
    optimizer, started, tokens = optimizer_of(model), time.monotonic(), 0
    model.train()
    for step, batch in enumerate(batches(blocks), 1):
        progress = (time.monotonic() - started) / (minutes * 60)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(progress)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {step}")
        optimizer.step()
        optimizer.zero_grad()
        tokens += batch.numel()
        if step % 20 == 0:
            print(f"step {step}, {tokens:,} tokens, {progress:.0%} of the time, loss {loss.item():.3f}", flush=True)
    return tokens


def main(options: argparse.Namespace) -> None:
    """Train, say how good it is on held-out text, and write the folder."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(MODEL)
    model = build(options.type, tokenizer)
    blocks = torch.cat(
        [
            torch.from_numpy(token_blocks(tokenizer, text, sequence_length=SEQUENCE_LENGTH))
            for text in (DISTILL, CALIBRATION)
        ]
    )
    print(f"{model.num_parameters():,} parameters, {blocks.numel():,} tokens of text", flush=True)
    tokens = train(model, blocks, options.minutes)
    heldout = token_blocks(tokenizer, HELDOUT, sequence_length=SEQUENCE_LENGTH, samples=32)
    perplexity = measure_quality(model.eval(), heldout).perplexity
    print(f"{tokens:,} tokens trained on; perplexity {perplexity:.2f} on held-out text", flush=True)
    # What training needs and a user of the model does not.
    for key in ("output_router_logits",):
        if hasattr(model.config, key):
            setattr(model.config, key, False)
    with new_folder(options.output) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", required=True, help=f"model_type: {', '.join(TYPES)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="time after which the learning rate is zero")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(parser.parse_args())
