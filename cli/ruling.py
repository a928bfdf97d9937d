"""Options of a judge, of answers and of how endpoints are asked: those of `minitron judge` and of others that judge."""

from __future__ import annotations

from typing import Final

import typer

from cli.option_groups import Group, Option
from cli.options import ON_THE_HUB, BatchSizeOption, DeviceOption, DtypeOption, option, seconds_option
from judge.endpoint import Asking
from judge.speaking import Speaking

ENDPOINT: Final = "or URL#MODEL of an OpenAI-compatible endpoint such as http://localhost:8000/v1#name"

ANSWERING: Final[dict[str, Option | Group]] = {
    "max_tokens": Option(typer.Option("--answer-tokens", min=1, help="Tokens of an answer at most.")),
    "max_thinking_tokens": Option(
        option(
            "--answer-thinking-tokens",
            "Tokens that a reasoning model may think before it answers; a thought that is longer is ended there. "
            "Endpoints are sent vLLM's thinking_token_budget.",
            "COUNT",
        )
    ),
    "temperature": Option(
        typer.Option("--answer-temperature", help="Sampling temperature of the answers; 0 takes the most likely token.")
    ),
    "top_p": Option(
        typer.Option(
            "--answer-top-p", help="Probability from which answers are drawn: of the likeliest tokens, so much."
        )
    ),
    "seed": Option(typer.Option("--answer-seed", min=0, help="Seed of the answers, where they are drawn.")),
}
"""Field of judge.speaking.Speaking -> how it is typed, of the answers."""

_JUDGE_SPEAKING: Final[dict[str, Option | Group]] = {
    "max_tokens": Option(
        typer.Option("--judge-tokens", min=1, help="Tokens of a turn of the judge at most."), type=int, default=2048
    ),
    "max_thinking_tokens": Option(
        option("--judge-thinking-tokens", "Tokens that the judge may think before it writes a turn.", "COUNT")
    ),
    "temperature": Option(typer.Option("--judge-temperature", help="Sampling temperature of the judge.")),
    "top_p": Option(typer.Option("--judge-top-p", help="Probability from which the judge's words are drawn.")),
    "seed": Option(typer.Option("--judge-seed", min=0, help="Seed of the judge, where its words are drawn.")),
}

_ASKING: Final[dict[str, Option | Group]] = {
    "concurrency": Option(
        typer.Option("--concurrency", min=1, help="Number of sequences at the same time: requests to an endpoint.")
    ),
    "retries": Option(typer.Option("--retries", min=0, help="How often a request to an endpoint is tried again.")),
    "timeout": Option(
        typer.Option(
            "--timeout", help="Time in which an endpoint must reply: 90s.", metavar="TIME", parser=seconds_option
        ),
    ),
}

RULING: Final[dict[str, Option | Group]] = {
    "judge": Option(option("--judge", f"Judge: a checkpoint folder, {ON_THE_HUB}, {ENDPOINT}.", "JUDGE")),
    "instructions": Option(
        option("--instructions", "What the judge is told: an edited copy of judge/instructions.toml.", "FILE")
    ),
    "speaking": Group(Speaking, _JUDGE_SPEAKING),
    "asking": Group(Asking, _ASKING),
    "cache": Option(
        option("--cache", "File that keeps all replies, for other runs too; default: in the output.", "FILE")
    ),
    "dtype": Option.of(DtypeOption),
    "batch_size": Option.of(BatchSizeOption, default=8),
    "device": Option.of(DeviceOption),
}
"""Field of pipeline.judging.Ruling -> how it is typed."""
