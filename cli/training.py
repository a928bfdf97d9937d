"""Options of the training recipe, for `minitron distill` and, fewer of them, for `minitron compress`."""

from typing import Any, Final

import typer

from cli.option_groups import Option
from cli.options import SeedOption, SequenceLengthOption, tokens_option, words
from distill.losses.divergences import DIVERGENCES, written
from distill.rate import PUBLISHED, WIDTH
from distill.recipe import AUTO, STREAM_DIRECTIONS, STREAM_NORMS, STREAM_WEIGHT
from minitron.errors import MinitronError

DEFAULT_TOKENS: Final = 2**20


def _number(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, show_default=False)


def _rate(text: str | None) -> float | str | None:
    """A learning rate as typed."""
    if text is None or text == AUTO:
        return text
    try:
        return float(text)
    except ValueError:
        raise MinitronError(f"{text!r} is no learning rate; give a number such as 1e-4, or {AUTO}.") from None


def _rate_option(help: str) -> Option:
    usual = (
        f"default: {PUBLISHED:g} for a hidden size of {WIDTH:,} or more and for a student in fewer bits, else times "
        f"sqrt({WIDTH:,} / hidden size)."
    )
    told = f"{help} {AUTO}: found by a range test, short runs before the first step; {usual}"
    info = typer.Option("--learning-rate", help=told, metavar=f"RATE|{AUTO}", show_default=False)
    return Option(info, type=str | None, default=None, read=_rate)


TRAINING: Final[dict[str, Option]] = {
    "tokens": Option(
        tokens_option("--tokens", "Tokens to train on; default: 1M unless --steps is given.", show_default=False)
    ),
    "steps": Option(_number("--steps", "Optimiser steps, instead of --tokens.")),
    "sequence_length": Option.of(SequenceLengthOption),
    "batch_tokens": Option(
        tokens_option(
            "--batch-tokens",
            "Tokens per optimiser step; default: 1,024 in runs of up to 1M tokens, else 4,096, and at least one "
            "sequence per process.",
            show_default=False,
        )
    ),
    "micro_batch": Option(_number("--batch-size", "Sequences per forward pass; default: about 2,048 tokens.")),
    "learning_rate": _rate_option("Peak learning rate, reached after the warm-up."),
    "minimum_learning_rate": Option(
        _number("--minimum-learning-rate", "Final learning rate; default: a tenth of the peak.")
    ),
    "warmup_steps": Option(
        _number("--warmup-steps", "Steps of linear warm-up; default: 100, at most a tenth of the run.")
    ),
    "weight_decay": Option(typer.Option("--weight-decay", help="Weight decay of matrices; vectors are not decayed.")),
    "gradient_clip": Option(typer.Option("--gradient-clip", help="Maximum norm of the gradient.")),
    "loss": Option(
        typer.Option(
            "--loss",
            help=f"Divergence to minimise, with its parameter if it has one: {', '.join(map(written, DIVERGENCES))}.",
            metavar="NAME",
        )
    ),
    "loss_kernel": Option(
        typer.Option(
            "--loss-kernel",
            help="Who computes the loss. own: Minitron's loss. liger: liger-kernel's fused loss, on a GPU, where it "
            "is exact for "
            "the request (untested so far).",
            metavar="own|liger",
        )
    ),
    "temperature": Option(
        typer.Option("--temperature", help="Softmax temperature of the loss: divides the logits of both models.")
    ),
    "lm_weight": Option(typer.Option("--lm-weight", help="Weight of the next-token cross entropy, added to the loss.")),
    "mtp_weight": Option(
        typer.Option(
            "--mtp-weight",
            help="Weight of the loss of the multi-token-prediction block, which is trained only if this is above 0.",
        )
    ),
    "mtp_lm_weight": Option(
        typer.Option(
            "--mtp-lm-weight",
            help="Weight within the loss of that block of the cross entropy of the token after the next.",
        )
    ),
    "cosine_weight": Option(
        typer.Option(
            "--cosine-weight", help="Weight of 1 - cosine similarity of the last hidden states, added to the loss."
        )
    ),
    "stream_weight": Option(
        _number(
            "--stream-weight",
            "Weight of the error of the residual stream after every layer, for a student that was pruned from the "
            f"teacher; default: {STREAM_WEIGHT:g} for such a student.",
        )
    ),
    "stream_directions": Option(
        _number(
            "--stream-directions",
            "Random directions of the residual stream to compare; default: all, or "
            f"{STREAM_DIRECTIONS} with --offload-teacher or --cache-teacher.",
        )
    ),
    "stream_norm": Option(
        typer.Option(
            "--stream-norm",
            help="What errors of the residual stream are divided by: the mean square of the whole stream, or the "
            "variance of each channel.",
            metavar="|".join(STREAM_NORMS),
        )
    ),
    "on_policy": Option(
        typer.Option(
            "--on-policy",
            help="Share of sequences that the student writes itself, after prompts from the text: 0 to 1.",
        )
    ),
    "on_policy_loss": Option(
        typer.Option(
            "--on-policy-loss", help="Divergence on the student's own answers: reverse_kl, jsd:B.", metavar="NAME"
        )
    ),
    "on_policy_temperature": Option(
        typer.Option("--on-policy-temperature", help="Sampling temperature of the student's own answers; 0: greedy.")
    ),
    "on_policy_answer": Option(
        _number("--on-policy-answer", "Tokens of one of the student's own answers at most; default: half a sequence.")
    ),
    "train": Option(
        typer.Option(
            "--train",
            help="Parameters to train: all, router (the routers only), all-but-router, or mtp (the "
            "multi-token-prediction block only, with --mtp-weight).",
            metavar="NAME",
        )
    ),
    "activation_checkpointing": Option(
        typer.Option("--activation-checkpointing", help="Recompute activations in the backward pass, to save memory.")
    ),
    "compile": Option(
        typer.Option("--compile", help="Compile layers and loss with torch.compile: faster, less memory.")
    ),
    "vocab_chunk": Option(
        _number("--vocab-chunk", "Vocabulary columns of the logits in memory at a time; default: all.")
    ),
    "most_skipped": Option(
        typer.Option(
            "--most-skipped",
            help="Maximum number of steps in a row to skip because the loss is not finite; after more the run stops.",
        )
    ),
    "precision": Option(
        typer.Option(
            "--dtype",
            help="Number format that models compute in. bf16: matmuls in bf16, weights in fp32. fp32: everything in "
            "fp32.",
        )
    ),
    "validate_every": Option(_number("--validate-every", "Steps between validations; default: a fifth of the run.")),
    "validation_sequences": Option(
        typer.Option("--validation-sequences", help="Sequences of held-out text to validate on, at most.")
    ),
    "tasks": Option(
        typer.Option(
            "--tasks",
            help="lm-eval tasks, comma-separated: names or YAML files; here they are run at every validation.",
            metavar="TASKS",
            show_default=False,
        ),
        type=str,
        default="",
        read=words,
    ),
    "task_limit": Option(_number("--task-limit", "Items per task at most; default: all.")),
    "patience": Option(
        _number("--patience", "Stop after this many validations in a row without a lower KL; default: never.")
    ),
    "select": Option(
        typer.Option(
            "--select",
            help="Weights to write to OUTPUT; the others are written beside it, if they differ.",
            metavar="last|best",
        )
    ),
    "checkpoint_every": Option(
        _number("--checkpoint-every", "Steps between checkpoints; default: a tenth of the run, at most 500.")
    ),
    "keep_checkpoints": Option(
        typer.Option("--keep-checkpoints", help="Number of newest checkpoints to keep on disk.")
    ),
    "async_checkpoints": Option(
        typer.Option(
            "--async-checkpoints/--sync-checkpoints",
            help="Write checkpoints in the background, from a copy in memory; default: async on a GPU.",
            show_default=False,
        )
    ),
    "assistant_only": Option(
        typer.Option("--assistant-only", help="Train on the assistant's messages only, in conversations.")
    ),
    "most_broken": Option(
        typer.Option("--most-broken", help="Maximum number of broken records per source; they are skipped and named.")
    ),
    "seed": Option.of(SeedOption),
}
"""Field of distill.recipe.Recipe -> how it is typed."""

COMPRESSION: Final[dict[str, Option]] = {
    "tokens": Option(tokens_option("--tokens", "Tokens to train on."), type=int, default=DEFAULT_TOKENS),
    "sequence_length": Option(tokens_option("--distill-sequence-length", "Tokens per sequence that is trained on.")),
    "batch_tokens": TRAINING["batch_tokens"],
    "learning_rate": _rate_option("Peak learning rate; the final one is a tenth of it."),
    "precision": TRAINING["precision"],
    "stream_weight": TRAINING["stream_weight"],
    "seed": TRAINING["seed"],
}
"""The same for `minitron compress`."""
