"""The command `minitron`: the table of its commands, and the exit code of each kind of error.

A command is a function `command` in cli/<name>.py with typer annotations (see cli/options.py); its docstring is its
help.  Exit codes: 0 success, 1 an unexpected error, 2 an error the user can fix, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

import minitron
from cli import (
    compare,
    compress,
    demo,
    distill,
    eval,
    export,
    gpus,
    inspect,
    judge,
    plan,
    prune,
    quantise,
    schema,
    score,
    show,
)
from cli.failures import shortened, told_of
from cli.general import DebugOption, Settings, with_general
from cli.help_text import Command, Commands
from cli.invocation import remember
from cli.old_names import renamed, warning
from minitron.errors import MinitronError
from minitron.escapes import one_line, visible

COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "inspect": inspect.command,
    "plan": plan.command,
    "compare": compare.command,
    "score": score.command,
    "prune": prune.command,
    "quantize": quantise.command,
    "distill": distill.command,
    "eval": eval.command,
    "judge": judge.command,
    "export": export.command,
    "compress": compress.command,
    "demo": demo.command,
    "gpus": gpus.command,
    "schema": schema.command,
}

SUBJECTS: Final = {
    "What fits": ("inspect", "plan", "compare", "gpus"),
    "All in one": ("compress", "demo"),
    "Step by step": ("score", "prune", "quantize", "distill", "export"),
    "How good it is": ("eval", "judge"),
    "For programs": ("schema",),
}
"""Subject -> the commands that `minitron --help` shows under it."""

ENVIRONMENT: Final = {
    # Waiting OpenMP threads that spin take the processor from every other process on the machine.
    "OMP_WAIT_POLICY": "passive",
    # For every new shape of a matmul, such as each count of tokens that an expert gets, oneDNN keeps a compiled
    # primitive of 0.7 MiB in two caches of 1,024 each.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # stderr belongs to our own bars and remarks; of transformers, errors are enough.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # A panic of a library in Rust is told as an error of ours.
    "RUST_BACKTRACE": "0",
    # Tensors are read when they have their turn: those read ahead of a merge of many would be in memory twice.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
}
"""Variables set before torch and transformers are imported, where the user has not decided otherwise."""

_EXIT_FAILURE: Final = 1
_EXIT_USER: Final = 2
_EXIT_INTERRUPTED: Final = 130


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"minitron {minitron.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
]


def _callback(version: VersionOption = False, debug: DebugOption = False) -> None:
    """Compress a hybrid Mamba-Transformer-MoE language model to fit one GPU, and recover its accuracy."""


class _Application(Commands):
    subjects = SUBJECTS


def build(only: str = "") -> typer.Typer:
    """The typer application with every command of COMMANDS, or with one alone: options take a while to read."""
    app = typer.Typer(name="minitron", cls=_Application, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_callback)
    for name, function in COMMANDS.items():
        if not only or name == only:
            app.command(name, cls=Command)(with_general(function))
    return app


def main() -> None:
    """What the command `minitron` runs: leaves the process with the exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if sys.stdout is None:  # closed by the caller; the next file to be opened would become stdout
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- open until the process ends
    show.guard_libraries()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # `run` has told of it; Python flushes once more at the end, and would fail and complain once more.
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; any error is printed on stderr as one line."""
    Settings.debug = False
    show.begin()
    remember(arguments)
    try:
        code = _call(arguments)
        sys.stdout.flush()
        return code
    except MinitronError as error:
        return _tell(str(error), _EXIT_USER)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        return _EXIT_FAILURE  # whoever read our output left early, as `head` does: nothing to complain of
    # The last stop of every error, the panics of libraries in Rust among them, which are no Exception: a user sees one
    # line, not a traceback.
    except BaseException as error:  # noqa: BLE001
        if (mendable := told_of(error)) is not None:
            return _tell(mendable, _EXIT_USER)
        told = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        hint = "" if Settings.debug else " (run again with --debug to see where)"
        return _tell(f"unexpected {told}{hint}", _EXIT_FAILURE)


def _call(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), "")
    if "--progress=json" in arguments or ("--progress", "json") in zip(arguments, arguments[1:], strict=False):
        show.begin("json")  # warnings, too
    arguments, old = renamed(command, arguments)
    for before, now in old.items():
        show.note(warning(before, now))
    try:
        build(command if arguments[:1] == [command] and command in COMMANDS else "")(arguments, prog_name="minitron")
    except SystemExit as left:
        # typer leaves this way also when all went well.
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def _tell(message: str, code: int) -> int:
    if Settings.debug:
        sys.stderr.write(visible(traceback.format_exc(), keep="\n"))
    if show.Telling.way == "json":
        show.event("error", text=shortened(one_line(message)), code=code)
        return code
    print(f"minitron: error: {shortened(one_line(message))}", file=sys.stderr)
    return code
