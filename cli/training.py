"""Options that make a recipe, for `minitron distill` and, fewer of them, for `minitron compress`."""

from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import SeedOption, SequenceLengthOption, tokens_option, words
from distill.losses.divergences import DIVERGENCES, written

DEFAULT_TOKENS: Final = 2**20


def _number(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, show_default=False)


TRAINING: Final[dict[str, Option]] = {
    "tokens": Option(tokens_option("--tokens", "Tokens to train on: 1M unless --steps is given.", show_default=False)),
    "steps": Option(_number("--steps", "Optimiser steps, instead of --tokens.")),
    "sequence_length": Option.of(SequenceLengthOption),
    "batch_tokens": Option(tokens_option("--batch-tokens", "Tokens of one optimiser step.")),
    "micro_batch": Option(_number("--micro-batch", "Sequences in one forward pass; about 2,048 tokens unless given.")),
    "learning_rate": Option(typer.Option("--learning-rate", help="The highest, after the warm-up.")),
    "minimum_learning_rate": Option(
        _number("--minimum-learning-rate", "The last one; a tenth of the highest unless given.")
    ),
    "warmup_steps": Option(
        _number("--warmup-steps", "Steps of linear rise; 100, at most a tenth of the run, unless given.")
    ),
    "weight_decay": Option(typer.Option("--weight-decay", help="Of matrices; vectors are not decayed.")),
    "gradient_clip": Option(typer.Option("--gradient-clip", help="The largest norm of a gradient.")),
    "loss": Option(
        typer.Option(
            "--loss",
            help=f"What is made small, with the number it takes: {', '.join(map(written, DIVERGENCES))}.",
            metavar="NAME",
        )
    ),
    "loss_kernel": Option(
        typer.Option(
            "--loss-kernel",
            help="liger: liger-kernel's fused loss, on a GPU, where it is exact for the request (untested so far).",
            metavar="own|liger",
        )
    ),
    "temperature": Option(typer.Option("--temperature", help="Divides the logits of both models.")),
    "lm_weight": Option(
        typer.Option("--lm-weight", help="Times the cross entropy of the next token, added to the loss.")
    ),
    "mtp_weight": Option(
        typer.Option("--mtp-weight", help="Times the loss of the multi-token-prediction block, trained along then.")
    ),
    "mtp_lm_weight": Option(
        typer.Option("--mtp-lm-weight", help="Within it, times the cross entropy of the token after the next.")
    ),
    "cosine_weight": Option(
        typer.Option("--cosine-weight", help="Times 1 - cosine of the last hidden states, added to the loss.")
    ),
    "train": Option(typer.Option("--train", help="all parameters, the routers' alone, or all others.", metavar="NAME")),
    "activation_checkpointing": Option(
        typer.Option("--activation-checkpointing", help="Make activations anew on the way back: less memory.")
    ),
    "compile": Option(
        typer.Option("--compile", help="Run layers and loss as torch.compile makes them: faster, less memory.")
    ),
    "vocab_chunk": Option(_number("--vocab-chunk", "Columns of the logits in memory at a time; all unless given.")),
    "most_skipped": Option(
        typer.Option("--most-skipped", help="Steps in a row that may be skipped where a loss is not finite.")
    ),
    "precision": Option(typer.Option("--precision", help="bf16: matmuls in bf16 over fp32 weights; fp32: everything.")),
    "validate_every": Option(
        _number("--validate-every", "Steps between validations; a fifth of the run unless given.")
    ),
    "validation_sequences": Option(typer.Option("--validation-sequences", help="Held-out sequences, at most.")),
    "tasks": Option(
        typer.Option(
            "--tasks",
            help="lm-eval tasks that every validation asks too, comma-separated: names or YAML files.",
            metavar="TASKS",
            show_default=False,
        ),
        type=str,
        default="",
        read=words,
    ),
    "task_limit": Option(_number("--task-limit", "Items of a task that are asked; all unless given.")),
    "patience": Option(
        _number("--patience", "End after so many validations in a row without a lower KL; never unless given.")
    ),
    "select": Option(
        typer.Option("--select", help="The weights that become OUTPUT; the others go beside it.", metavar="last|best")
    ),
    "checkpoint_every": Option(
        _number("--checkpoint-every", "Steps between checkpoints; a tenth of the run, at most 500, unless given.")
    ),
    "keep_checkpoints": Option(typer.Option("--keep-checkpoints", help="How many of the newest stay on the disk.")),
    "async_checkpoints": Option(
        typer.Option(
            "--async-checkpoints/--sync-checkpoints",
            help="Write them behind the steps that follow, from a copy in memory; async on a GPU unless given.",
            show_default=False,
        )
    ),
    "assistant_only": Option(
        typer.Option("--assistant-only", help="Of conversations learn only what the assistant says.")
    ),
    "most_broken": Option(
        typer.Option("--most-broken", help="Records of a source that may be broken; they are left out and named.")
    ),
    "seed": Option.of(SeedOption),
}
"""Field of distill.recipe.Recipe -> how it is typed."""

COMPRESSION: Final[dict[str, Option]] = {
    "tokens": Option(tokens_option("--tokens", "Tokens to distil on."), type=int, default=DEFAULT_TOKENS),
    "sequence_length": Option(
        tokens_option("--distill-sequence-length", "Tokens of one sequence of the distillation.")
    ),
    "batch_tokens": TRAINING["batch_tokens"],
    "learning_rate": Option(typer.Option("--learning-rate", help="The highest; a tenth of it at the end.")),
    "precision": TRAINING["precision"],
    "seed": TRAINING["seed"],
}
"""The same for `minitron compress`."""
