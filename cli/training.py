"""Options of `minitron distill` that make a recipe."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import spread_options
from cli.options import ComputeDtype, SeedOption, SequenceLengthOption, count_option
from distill.losses.divergences import DEFAULT_LOSS, DIVERGENCES, written

if TYPE_CHECKING:
    from distill.recipe import Recipe

DEFAULT_TOKENS = 2**20


def _tokens(flag: str, help: str, **settings: Any) -> Any:
    return typer.Option(flag, parser=count_option, help=help, metavar="TOKENS", **settings)


def _number(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, show_default=False)


@dataclasses.dataclass(frozen=True)
class Training:
    """The recipe as typed; the names are those of distill.recipe.Recipe."""

    tokens: Annotated[
        int | None, _tokens("--tokens", "Tokens to train on: 1M unless --steps is given.", show_default=False)
    ] = None
    steps: Annotated[int | None, _number("--steps", "Optimiser steps, instead of --tokens.")] = None
    sequence_length: SequenceLengthOption = 512
    batch_tokens: Annotated[int, _tokens("--batch-tokens", "Tokens of one optimiser step.")] = 4096
    micro_batch: Annotated[
        int | None, _number("--micro-batch", "Sequences in one forward pass; about 2,048 tokens unless given.")
    ] = None
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest, after the warm-up.")] = 1e-4
    minimum_learning_rate: Annotated[
        float | None, _number("--minimum-learning-rate", "The last one; a tenth of the highest unless given.")
    ] = None
    warmup_steps: Annotated[
        int | None, _number("--warmup-steps", "Steps of linear rise; 100, at most a tenth of the run, unless given.")
    ] = None
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of matrices; vectors are not decayed.")] = 0.1
    gradient_clip: Annotated[float, typer.Option("--gradient-clip", help="The largest norm of a gradient.")] = 1.0
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            help=f"What is made small, with the number it takes: {', '.join(map(written, DIVERGENCES))}.",
            metavar="NAME",
        ),
    ] = DEFAULT_LOSS
    loss_kernel: Annotated[
        str,
        typer.Option(
            "--loss-kernel",
            help="liger: liger-kernel's fused loss, on a GPU, where it is exact for the request (untested so far).",
            metavar="own|liger",
        ),
    ] = "own"
    temperature: Annotated[float, typer.Option("--temperature", help="Divides the logits of both models.")] = 1.0
    lm_weight: Annotated[
        float, typer.Option("--lm-weight", help="Times the cross entropy of the next token, added to the loss.")
    ] = 0.0
    mtp_weight: Annotated[
        float,
        typer.Option("--mtp-weight", help="Times the loss of the multi-token-prediction block, trained along then."),
    ] = 0.0
    mtp_lm_weight: Annotated[
        float,
        typer.Option("--mtp-lm-weight", help="Within it, times the cross entropy of the token after the next."),
    ] = 0.0
    cosine_weight: Annotated[
        float, typer.Option("--cosine-weight", help="Times 1 - cosine of the last hidden states, added to the loss.")
    ] = 0.0
    train: Annotated[
        str, typer.Option("--train", help="all parameters, the routers' alone, or all others.", metavar="NAME")
    ] = "all"
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Make activations anew on the way back: less memory.")
    ] = False
    compile: Annotated[
        bool, typer.Option("--compile", help="Run layers and loss as torch.compile makes them: faster, less memory.")
    ] = False
    vocab_chunk: Annotated[
        int | None, _number("--vocab-chunk", "Columns of the logits in memory at a time; all unless given.")
    ] = None
    most_skipped: Annotated[
        int, typer.Option("--most-skipped", help="Steps in a row that may be skipped where a loss is not finite.")
    ] = 3
    precision: Annotated[
        ComputeDtype, typer.Option("--precision", help="bf16: matmuls in bf16 over fp32 weights; fp32: everything.")
    ] = ComputeDtype.BF16
    validate_every: Annotated[
        int | None, _number("--validate-every", "Steps between validations; a fifth of the run unless given.")
    ] = None
    validation_sequences: Annotated[
        int, typer.Option("--validation-sequences", help="Held-out sequences, at most.")
    ] = 16
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            help="lm-eval tasks that every validation asks too, comma-separated: names or YAML files.",
            metavar="TASKS",
            show_default=False,
        ),
    ] = ""
    task_limit: Annotated[int | None, _number("--task-limit", "Items of a task that are asked; all unless given.")] = (
        None
    )
    patience: Annotated[
        int | None,
        _number("--patience", "End after so many validations in a row without a lower KL; never unless given."),
    ] = None
    select: Annotated[
        str,
        typer.Option("--select", help="The weights that become OUTPUT; the others go beside it.", metavar="last|best"),
    ] = "last"
    checkpoint_every: Annotated[
        int | None,
        _number("--checkpoint-every", "Steps between checkpoints; a tenth of the run, at most 500, unless given."),
    ] = None
    keep_checkpoints: Annotated[
        int, typer.Option("--keep-checkpoints", help="How many of the newest stay on the disk.")
    ] = 2
    async_checkpoints: Annotated[
        bool | None,
        typer.Option(
            "--async-checkpoints/--sync-checkpoints",
            help="Write them behind the steps that follow, from a copy in memory; async on a GPU unless given.",
            show_default=False,
        ),
    ] = None
    assistant_only: Annotated[
        bool, typer.Option("--assistant-only", help="Of conversations learn only what the assistant says.")
    ] = False
    most_broken: Annotated[
        int, typer.Option("--most-broken", help="Records of a source that may be broken; they are left out and named.")
    ] = 10
    seed: SeedOption = 0

    @property
    def recipe(self) -> "Recipe":
        """The same for distill; raises MinitronError for settings that contradict each other."""
        from distill.recipe import Recipe

        tasks = tuple(name.strip() for name in self.tasks.split(",") if name.strip())
        typed = dict(vars(self)) | {"precision": self.precision.value, "tasks": tasks}
        if self.tokens is None and self.steps is None:
            typed["tokens"] = DEFAULT_TOKENS
        return Recipe(**typed)


def takes_training(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `training` spread out into the options of Training, as typer reads them."""
    return spread_options(function, "training", Training)
