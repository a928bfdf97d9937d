"""The options that say what a model must serve, in which numbers and by which engine.

`plan`, `prune` and `compress` have them among those of cli/planning.py; `compare` has them alone."""

from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import assignments, option, size_option, tokens_option
from minitron.memory.formats import Use, formats_for


def _dtype(flag: str, what: str, use: Use, default: str, note: str = "") -> Any:
    return option(flag, f"How {what} are kept: {', '.join(formats_for(use))}{note}; {default} by default.", "DTYPE")


SERVING: Final[dict[str, Option]] = {
    "context": Option(
        tokens_option(
            "--context",
            "Tokens of one sequence: 4096, 128k; the longest that the config names by default.",
            show_default=False,
        )
    ),
    "batch": Option(typer.Option("--batch", "--concurrency", min=1, help="Sequences at the same time.")),
    "prompt": Option(
        tokens_option(
            "--prompt",
            "Of the context, tokens of the prompt, for the speed: 32k; the rest is written.",
            show_default=False,
        )
    ),
    "engine": Option(
        typer.Option("--engine", help="plain: nothing rounded. vllm: vLLM's blocks, buffers and settings.")
    ),
    "utilization": Option(
        option("--utilization", "The share of a GPU's memory to use; 0.95 by default, 0.92 with vllm.", "SHARE")
    ),
    "reserve": Option(size_option("--reserve", "Memory kept free for something else: 1.3GiB.")),
    "vision_encoder": Option(size_option("--vision", "Memory of a vision encoder, as a line of its own: 1.3GiB.")),
    "workspace": Option(
        size_option("--workspace", "Memory for activations and buffers; an estimate with a GPU, 0 with --budget.")
    ),
    "weights": Option(
        _dtype(
            "--weights",
            "weights",
            "weights",
            "as in the config",
            " (quantised ones as published for the family where known)",
        )
    ),
    "keep": Option(
        option("--keep", "Keep a part of the model in another format: attention=bf16. Repeatable.", "PART=DTYPE"),
        type=list[str] | None,
        default=None,
        read=assignments("--keep", "attention=bf16"),
    ),
    "kv": Option(_dtype("--kv", "keys and values", "kv", "as activations")),
    "ssm_state": Option(_dtype("--ssm-state", "states of Mamba layers", "state", "as in the config, else fp32,")),
    "conv_state": Option(_dtype("--conv-state", "inputs of Mamba's convolutions", "state", "as activations")),
    "tensor_parallel": Option(typer.Option("--tp", min=1, help="Split the model among so many such GPUs.")),
    "speculative_tokens": Option(typer.Option("--mtp", min=0, help="Tokens that the MTP block drafts at a step.")),
    "lora_rank": Option(typer.Option("--lora-rank", min=0, help="Rank of LoRA adapters served along.")),
    "loras": Option(typer.Option("--loras", min=1, help="How many such adapters at once.")),
    "max_num_seqs": Option(
        option("--max-num-seqs", "vllm: sequences to make room for; the batch by default.", "N", min=1)
    ),
    "max_num_batched_tokens": Option(
        tokens_option(
            "--max-num-batched-tokens",
            "vllm: tokens of a step; 2048, or 8192 on GPUs of 70 GiB and more.",
            show_default=False,
        )
    ),
    "prefix_caching": Option(
        typer.Option("--prefix-caching/--no-prefix-caching", help="vllm: keep states of finished prefixes.")
    ),
    "cuda_graphs": Option(
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="vllm: record decoding as full CUDA graphs.")
    ),
}
"""Field of pipeline.serving.Serving -> how it is typed."""
