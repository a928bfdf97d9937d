"""Options of serving: workload, number formats, engine and its settings.

`plan`, `prune` and `compress` have them among those of cli/planning.py; `compare` has them alone."""

from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import assignments, option, size_option, tokens_option
from minitron.memory.formats import Use, formats_for


def _dtype(flag: str, what: str, use: Use, default: str, note: str = "") -> Any:
    return option(flag, f"Number format of {what}: {', '.join(formats_for(use))}{note}; default: {default}.", "FORMAT")


SERVING: Final[dict[str, Option]] = {
    "context": Option(
        tokens_option(
            "--context",
            "Tokens per sequence that is served: 4096, 128k; default: the longest that the config names.",
            show_default=False,
        )
    ),
    "batch": Option(typer.Option("--concurrency", min=1, help="Number of sequences at the same time.")),
    "prompt": Option(
        tokens_option(
            "--prompt-tokens",
            "Prompt tokens in the context, for the speed estimate: 32k; the rest is generated.",
            show_default=False,
        )
    ),
    "engine": Option(
        typer.Option(
            "--engine",
            help="Whose memory is counted. plain: the sum of weights, KV cache and states, without an engine's block "
            "rounding and "
            "buffers. vllm: memory as vLLM allocates it, with its blocks, buffers and settings. llama.cpp: memory as "
            "llama.cpp allocates it for a GGUF file, with its cells and compute buffer.",
        )
    ),
    "utilization": Option(
        option("--utilization", "Share of the GPU's memory to use; default: 0.95, or 0.92 with vllm.", "SHARE")
    ),
    "reserve": Option(size_option("--reserve", "Memory to keep free for other uses: 1.3GiB.")),
    "vision_encoder": Option(size_option("--vision", "Memory of a vision encoder, counted on its own line: 1.3GiB.")),
    "workspace": Option(
        size_option(
            "--workspace", "Memory for activations and buffers; default: an estimate with --gpu, 0 with --budget."
        )
    ),
    "weights": Option(
        _dtype(
            "--weights",
            "the weights to plan for",
            "weights",
            "as in the config",
            " (quantised formats as published for the model family, where known)",
        )
    ),
    "keep": Option(
        option("--keep", "Number format of one part of the model: attention=bf16. Repeatable.", "PART=FORMAT"),
        type=list[str] | None,
        default=None,
        read=assignments("--keep", "attention=bf16"),
    ),
    "kv": Option(_dtype("--kv", "keys and values", "kv", "that of activations")),
    "ssm_state": Option(_dtype("--ssm-state", "recurrent states", "state", "as in the config, else fp32")),
    "conv_state": Option(_dtype("--conv-state", "Mamba convolution states", "conv", "that of activations")),
    "tensor_parallel": Option(
        typer.Option("--tp", min=1, help="Tensor parallelism: number of such GPUs to split the model across.")
    ),
    "speculative_tokens": Option(
        typer.Option("--mtp", min=0, help="Tokens that the multi-token-prediction block drafts per step.")
    ),
    "lora_rank": Option(typer.Option("--lora-rank", min=0, help="Rank of the LoRA adapters served with the model.")),
    "loras": Option(typer.Option("--loras", min=1, help="Number of LoRA adapters loaded at once.")),
    "max_num_seqs": Option(
        option("--max-num-seqs", "vllm: maximum number of concurrent sequences; default: --concurrency.", "N", min=1)
    ),
    "max_num_batched_tokens": Option(
        tokens_option(
            "--max-num-batched-tokens",
            "vllm, llama.cpp: maximum tokens per step; default: 2048, or 8192 on GPUs of 70 GiB and more; 512 with "
            "llama.cpp.",
            show_default=False,
        )
    ),
    "prefix_caching": Option(
        typer.Option("--prefix-caching/--no-prefix-caching", help="vllm: cache the states of finished prefixes.")
    ),
    "cuda_graphs": Option(
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="vllm: capture decoding in full CUDA graphs.")
    ),
    "block_size": Option(
        option("--block-size", "vllm: tokens of the smallest block; multiples of 16, on a CPU of 32.", "N", min=16)
    ),
}
"""Field of pipeline.serving.Serving -> how it is typed."""
