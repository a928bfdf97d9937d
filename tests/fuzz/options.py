"""Command lines: sound ones on a model, and ones with values of options that are not."""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz import corpus
from fuzz.values import NUMBERS, TEXTS

LONG = {"--steps", "--tokens", "--finalist-tokens", "--samples", "--layer-samples", "--validation-sequences", "--seed"}
"""Options of which a large value asks for long work."""

LEFT_OUT = {
    "--help",
    "--debug",
    "--help-all",
    "--config",
    "--save-config",
    "--progress",
    "--track",
    "--compile",
    "--tasks",
    "--list",
    "--output",
    "--html",
    "--markdown",
    "--work",
    "--cache-teacher",
    "--offload-folder",
    "--report",
    "--judge-output",
    "--cache",
}
"""Options that need a service or a compiler, or are places (the kinds `path` and `output`)."""


def json_now_and_then(rng: Random) -> list[str]:
    """--json in half of the cases."""
    return ["--json"] if rng.random() < 0.5 else []


def command_on(rng: Random, command: str, model: str, inputs: Path, *, text: str = "in/a.txt") -> list[str]:
    """A command line that reads a model, short work if the model is sound."""
    lines: dict[str, list[list[str]]] = {
        "inspect": [[model]],
        "plan": [
            [model, "--budget", "350KiB", "--context", "64"],
            [model, "--gpu-memory", "1MiB", "--context", "64", "--engine", "vllm", "-o", "out/x"],
            [model, "--budget", "350KiB", "--context", "64", "-o", "out/x.json"],
        ],
        "compare": [[model, model, "--gpu", "H100", "--context", "64"]],
        "score": [[model, "--data", text, "-o", "out/x.json", *corpus.SCORING]],
        "prune": [
            [model, "-o", "out/x", "--set", "hidden_size=24"],
            [model, "-o", "out/x", "--set", "intermediate_size=40"],
            [model, "-o", "out/x", "--layers", "3", "--budget", "1MiB", "--context", "64"],
            [model, "-o", "out/x", "--dequantise"],
            [model, "-o", "out/x", "--budget", "300KiB", "--context", "64"],
        ],
        "eval": [[model, "--text", text, "--sequence-length", "16", "--samples", "2", "--no-speed"]],
        "distill": [
            [
                student(inputs, model),
                "--teacher",
                model,
                "--data",
                text,
                "-o",
                "out/x",
                "--steps",
                "1",
                *corpus.TRAINING,
            ]
        ],
        "compress": [
            [
                model,
                "--data",
                text,
                "-o",
                "out/x",
                "--budget",
                "350KiB",
                "--context",
                "64",
                "--samples",
                "2",
                "--sequence-length",
                "16",
                "--tokens",
                "64",
                "--batch-tokens",
                "32",
                "--no-speed",
            ]
        ],
    }
    return [command, *rng.choice(lines[command]), *json_now_and_then(rng)]


def student(inputs: Path, model: str) -> str:
    """A sound student beside a damaged teacher: a copy of the model's folder in the corpus."""
    import shutil

    name = Path(model).name
    folder = inputs / "student-of-it"
    if SOUND and (SOUND[0] / name).is_dir():
        shutil.copytree(SOUND[0] / name, folder)
    return "in/student-of-it"


SOUND: list[Path] = []
"""The corpus's folder, once it is made."""


@cache
def options_of(command: str) -> tuple[tuple[str, bool], ...]:
    """(option, whether it takes a value) of a command."""
    import typer

    from cli.app import build

    found = typer.main.get_command(build(command)).commands[command]  # type: ignore[attr-defined]
    return tuple(
        (option.opts[0], not option.is_flag)
        for option in found.params
        if option.opts[0].startswith("--") and option.opts[0] not in LEFT_OUT
    )


def command_with_options(rng: Random, command: str, model: str, inputs: Path) -> list[str]:
    """A command line with values that are not sound in one to three options."""
    line = command_on(rng, command, model, inputs)
    for _ in range(rng.choice((1, 1, 2, 3))):
        option, takes_value = rng.choice(options_of(command))
        line += [option, _value(rng, option)] if takes_value else [option]
    return line


NAMES = (
    "hidden_size",
    "intermediate_size",
    "layers",
    "ffn",
    "kv",
    "mlp",
    "attention",
    "hidden",
    "x",
    "num_hidden_layers",
)


def _value(rng: Random, option: str) -> str:
    what = rng.random()
    if what < 0.35:
        value: Any = rng.choice([0, 1, 2, -1, "", "x"] if option in LONG else NUMBERS)
        return json.dumps(value).strip('"')
    if what < 0.5:
        name, number = (
            rng.choice(NAMES),
            rng.choice(("0", "8", "-1", "0.5", "8,16", "8-", "1e9", "", "nan", "99999999999")),
        )
        return f"{name}={number}"
    if what < 0.6:
        return rng.choice(
            ("1k", "8EiB", "1e400GiB", "1,2", "128k", "9" * 5000 + "GiB", "٣", "1_0", "0x10", "4.5", "1/0")
        )
    return rng.choice(TEXTS).encode("utf-8", "replace").decode().replace("\0", "")
