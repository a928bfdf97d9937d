"""Options of a plan: the GPU or budget, the workload, and which architectures to search.

`plan`, `prune` and `compress` share them."""

from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import (
    GPU_HELP,
    assignments,
    complete_gpu,
    numbers,
    option,
    parameters_option,
    seconds_option,
    size_option,
)
from cli.serving import SERVING


def _listed(flag: str, help: str, metavar: str, read: Any) -> Option:
    """An option that may be repeated."""
    return Option(option(flag, help, metavar), type=list[str] | None, default=None, read=read)


def _lattice(texts: list[str] | None) -> dict[str, tuple[str, ...]]:
    # An empty word stays: the search says that it is no size.
    found = assignments("--lattice")(texts)
    return {key: tuple(word.strip() for word in sizes.split(",")) for key, sizes in found.items()}


PLANNING: Final[dict[str, Option]] = SERVING | {
    "gpu": Option(option("--gpu", f"{GPU_HELP}.", "GPU", autocompletion=complete_gpu)),
    "gpu_memory": Option(
        size_option(
            "--gpu-memory", "Usable memory of the GPU, if it is not in the table or to override the table: 22.06GiB."
        )
    ),
    "budget": Option(size_option("--budget", "Total memory, instead of --gpu: 8MiB.")),
    "params": Option(
        option(
            "--params",
            "Most parameters: 7B, 350M; instead of --gpu and --budget, or beside one of them.",
            "N",
            parser=parameters_option,
        )
    ),
    "active_params": Option(
        option("--active-params", "Most parameters that a token uses: 3B.", "N", parser=parameters_option)
    ),
    "max_latency": Option(
        option(
            "--max-latency",
            "Most time until all sequences of --concurrency are read and answered (--prompt-tokens, the rest of "
            "--context "
            "written), by a roofline estimate: 30s, 500ms. Needs --gpu.",
            "TIME",
            parser=seconds_option,
        )
    ),
    "min_throughput": Option(
        option(
            "--min-throughput",
            "Fewest output tokens per second of all sequences of --concurrency, by the same estimate. Needs --gpu.",
            "N",
        )
    ),
    "lattice": _listed(
        "--lattice",
        "Sizes to try: hidden_size=4480,4800 or intermediate_size=3x,3.5x (times hidden_size). "
        "Repeatable; if given, sizes that no --lattice names stay unchanged.",
        "NAME=SIZES",
        _lattice,
    ),
    "layers": Option(option("--layers", "Keep exactly this many layers.", "N", min=1)),
    "pattern": Option(option("--pattern", "Keep exactly this layer pattern, one letter per layer: M-M*-.", "LETTERS")),
    "keep_attention": Option(
        option("--keep-attention", "Keep at least this many attention layers; default: two thirds of them.", "N", min=0)
    ),
    "multiples": _listed(
        "--multiple",
        "Search an axis in multiples of N: ffn=512. Repeatable.",
        "AXIS=N",
        numbers("--multiple", int),
    ),
    "most": _listed(
        "--most",
        "Prune at most this share of an axis: ffn=0.3, ssm_state=0.5. Repeatable.",
        "AXIS=SHARE",
        numbers("--most", float),
    ),
    "leave": _listed("--leave", "Do not prune this axis. Repeatable.", "AXIS", lambda typed: tuple(typed or ())),
    "may_go": _listed(
        "--may-go",
        "Drop layers of this kind only: M, mamba, mlp, moe. Repeatable.",
        "KIND",
        lambda typed: tuple(typed) if typed else None,
    ),
    "at_least": _listed(
        "--at-least",
        "Keep at least this many layers of a kind: mlp=20. Repeatable.",
        "KIND=N",
        numbers("--at-least", int),
    ),
    "at_most": _listed(
        "--at-most",
        "Keep at most this many layers of a kind: mamba=24. Repeatable.",
        "KIND=N",
        numbers("--at-most", int),
    ),
    "every_mix": Option(
        typer.Option("--every-mix", help="Try every number of each kind of layer, not one mix per depth.")
    ),
    "formats": Option(
        option(
            "--formats",
            "Let the search choose a format for each part of the model, of these: bf16,int8,int4; native: those that "
            "the engine reads and the GPU runs.",
            "FORMATS",
        ),
        type=str | None,
        default=None,
        read=lambda typed: () if typed is None else tuple(word.strip() for word in typed.split(",")),
    ),
    "search_kv": Option(
        typer.Option(
            "--search-kv",
            help="Let the search choose the format of keys and values too, and keep recurrent states in fp16 where the "
            "engine can.",
        )
    ),
    "sort": Option(
        typer.Option(
            "--sort",
            help="What comes first among what fits. score: rank by importance kept, or by parameters if there are no "
            "scores. memory: the "
            "largest that fits first.",
        )
    ),
    "top": Option(typer.Option("--top", min=1, help="Number of candidates to list.")),
}
"""Field of pipeline.planning.Planning -> how it is typed."""
