"""`minitron judge-train`: a judge that learns from pairs of which the better answer is known.

The document of --json: {"output", "inputs", "settings", "results", "seconds"}; results are those of
judge_training.json: "judge", "turns", "pairs", "steps", "generated_tokens", "stopped", "before" and "after" (null, or
{"pairs", "accuracy", "right_in_both_orders", "broken", "took_the_first", "tokens"}), "settings", "curve".
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import typer

from cli import show
from cli.option_groups import Group, Option, takes
from cli.options import (
    ON_THE_HUB,
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    SeedOption,
    model_path,
    option,
    seconds_option,
)
from judge.learning import Learning
from judge.reward import Rewards
from pipeline.judge_training import TRAINING, JudgeTraining, train_judge

_REWARDS: Final[dict[str, Option | Group]] = {
    "right": Option(typer.Option("--reward-right", help="Reward of a ruling for the better answer.")),
    "wrong": Option(typer.Option("--reward-wrong", help="Reward of a ruling for the worse answer.")),
    "broken": Option(typer.Option("--reward-broken", help="Reward where a turn is not in the format.")),
}

_LEARNING: Final[dict[str, Option | Group]] = {
    "turns": Option(typer.Option("--turns", help="How often the judge reads: twice, or once.")),
    "steps": Option(typer.Option("--steps", min=1, help="Optimiser steps; default: all pairs once, in both orders.")),
    "prompts": Option(typer.Option("--pairs-per-step", min=1, help="Pairs per step, each in one order.")),
    "group": Option(typer.Option("--group-size", min=2, help="Rollouts of one pair, compared with each other.")),
    "updates": Option(
        typer.Option("--updates", min=1, help="Updates of the weights per step; the clips bind from the second on.")
    ),
    "learning_rate": Option(
        typer.Option("--learning-rate", metavar="RATE", help="Peak learning rate of Adam; BR-RM takes 5e-7 to 1e-6.")
    ),
    "warmup": Option(typer.Option("--warmup-steps", min=0, help="Steps of linear warm-up.")),
    "kl": Option(
        typer.Option(
            "--kl-weight", help="Weight of the KL divergence from the judge before training; BR-RM takes 0.001 to 0.02."
        )
    ),
    "clip_low": Option(typer.Option("--clip-low", help="How far below 1 a ratio of probabilities counts.")),
    "clip_high": Option(typer.Option("--clip-high", help="How far above 1 a ratio of probabilities counts.")),
    "temperature": Option(typer.Option("--judge-temperature", help="Sampling temperature of the judge.")),
    "max_tokens": Option(typer.Option("--judge-tokens", min=1, help="Tokens of a turn of the judge at most.")),
    "rewards": Group(Rewards, _REWARDS),
    "seed": Option.of(SeedOption),
    "batch_size": Option.of(BatchSizeOption),
    "generation_batch_size": Option(
        typer.Option("--generation-batch-size", min=1, help="Rollouts generated together at most.")
    ),
    "activation_checkpointing": Option(
        typer.Option("--activation-checkpointing", help="Recompute activations in the backward pass, to save memory.")
    ),
    "checkpoint_every": Option(typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")),
    "evaluate_every": Option(
        typer.Option("--validate-every", min=1, help="Steps between validations on the held-out pairs.")
    ),
    "max_seconds": Option(
        option(
            "--time",
            "Time after which training stops, at the end of a step, and the judge is written as it is: 2h.",
            "TIME",
            parser=seconds_option,
        )
    ),
}

JUDGE_TRAINING: Final[dict[str, Option | Group]] = {
    "model": Option(
        typer.Argument(
            help=f"Judge: a checkpoint folder, or {ON_THE_HUB}.",
            metavar="MODEL",
            show_default=False,
            parser=model_path,
        )
    ),
    "pairs": Option(
        option(
            "--pairs",
            "Preference pairs: `prompt`, `chosen` and `rejected`, or the layout of RewardBench, RM-Bench, RMB or "
            "HelpSteer3.",
            "FILE",
        )
    ),
    "held_out": Option(option("--held-out", "Held-out pairs, on which the judge is tried in both orders.", "FILE")),
    "held_out_pairs": Option(typer.Option("--held-out-samples", min=1, help="Held-out pairs to read at most.")),
    "samples": Option(option("--samples", "Samples to read at most: rows of --pairs, spread over the file.", "COUNT")),
    "instructions": Option(
        option("--instructions", "What the judge is told: an edited copy of judge/instructions.toml.", "FILE")
    ),
    "learning": Group(Learning, _LEARNING),
    "dtype": Option.of(DtypeOption),
    "device": Option.of(DeviceOption),
    "output": Option.of(OutputOption),
}
"""Field of pipeline.judge_training.JudgeTraining -> how it is typed."""


@takes("request", JudgeTraining, JUDGE_TRAINING)
def command(request: JudgeTraining, overwrite: OverwriteOption = False, as_json: JsonOption = False) -> None:
    """Train a judge that reads twice, on pairs of which the better answer is known, by GRPO."""
    started = time.monotonic()
    results = train_judge(request, overwrite=overwrite, progress=show.bar, note=show.note).to_json()
    if as_json:
        inputs = {"model": request.model, "pairs": request.pairs, "held_out": request.held_out}
        seconds = time.monotonic() - started
        show.document(show.run_document(request.output, inputs, request.settings, results, seconds))
        return
    if results["after"] is not None:
        tried = {"before": results["before"], "after": results["after"]}
        rows: list[list[show.Cell]] = [
            ["accuracy, both orders", *(_shown(found["accuracy"]) for found in tried.values())],
            ["right in both orders", *(_shown(found["right_in_both_orders"]) for found in tried.values())],
            ["broken", *(f"{found['broken']:.1%}" for found in tried.values())],
        ]
        show.table(f"{results['judge']} on {results['after']['pairs']:,} held-out pairs", ["", *tried], rows)
    cut = ", which the time cut short" if results["stopped"] else ""
    show.line(f"{results['steps']:,} steps{cut}, {results['generated_tokens']:,} generated tokens.")
    show.line(f"The judge: {request.output}")
    show.line(f"The curve: {Path(request.output) / TRAINING}")


def _shown(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['value']:.1%} ({low:.1%} to {high:.1%})"
