"""The options of every command: settings from a file and to one, all of the help, progress, tracebacks."""

import functools
import inspect as signatures
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import typer

from cli import show
from cli.config_file import read_config, written
from cli.help_text import ALL
from cli.invocation import remember_settings
from minitron.files import refuse_existing, write_text

ProgressName = Literal["auto", "live", "lines", "json", "none"]


class Settings:
    """Settings of the whole process."""

    debug = False


def _set_debug(value: bool) -> bool:
    Settings.debug = Settings.debug or value
    return value


def _read_config(context: typer.Context, value: Path | None) -> Path | None:
    if value is not None and not context.resilient_parsing:
        command: Any = context.command
        # Where the parser looks for what was not typed.
        context.default_map = read_config(value, str(context.info_name), command.params, show.note)
    return value


def _show_all(context: typer.Context, value: bool) -> bool:
    if value and not context.resilient_parsing:
        context.meta[ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit
    return value


DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of any error.", callback=_set_debug, is_eager=True)
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings from a TOML file, with options' names as keys; what is typed goes before them, and relative "
        "paths are relative to the file.",
        metavar="FILE",
        show_default=False,
        callback=_read_config,
        is_eager=True,
    ),
]
SaveConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--save-config",
        help="Write the settings of this command line to a TOML file, for --config.",
        metavar="FILE",
        show_default=False,
    ),
]
ProgressOption = Annotated[
    ProgressName,
    typer.Option(
        "--progress",
        help="How progress is told on stderr. live: a line that moves; lines: one a minute; json: an object a line, "
        "for "
        "programs; none: not at all; auto: live in a terminal, else lines.",
    ),
]
HelpAllOption = Annotated[
    bool,
    typer.Option("--help-all", help="Show all options and exit.", callback=_show_all, is_eager=True),
]

_ADDED: Final[dict[str, tuple[Any, Any]]] = {
    "config": (ConfigOption, None),
    "save_config": (SaveConfigOption, None),
    "progress": (ProgressOption, "auto"),
    "debug": (DebugOption, False),
    "help_all": (HelpAllOption, False),
}


def with_general(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the options of every command added."""

    @functools.wraps(function)
    def command(*args: Any, context: typer.Context, **kwargs: Any) -> None:
        to, way = kwargs["save_config"], kwargs["progress"]
        for name in _ADDED:
            del kwargs[name]
        given = _given(context)
        show.begin(way, _subject(given))
        remember_settings(functools.partial(written, str(context.info_name), given))
        if to is not None:
            refuse_existing(to, overwrite=bool(context.params.get("overwrite", False)))
            write_text(to, written(str(context.info_name), given, to.parent))
        function(*args, **kwargs)

    # typer reads the options off the signature and the annotations.
    signature = signatures.signature(function, eval_str=True)
    kind = signatures.Parameter.KEYWORD_ONLY
    added = [
        signatures.Parameter(name, kind, default=default, annotation=what) for name, (what, default) in _ADDED.items()
    ]
    added.append(signatures.Parameter("context", kind, annotation=typer.Context))
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    hints = {name: what for name, (what, _) in _ADDED.items()} | {"context": typer.Context}
    command.__annotations__ = {**get_type_hints(function, include_extras=True), **hints}
    return command


def _subject(given: list[tuple[Any, Any]]) -> str:
    """The model that a command is for: the last part of its path."""
    models = [value for parameter, value in given if parameter.param_type_name == "argument"]
    first = models[0][:1] if models and isinstance(models[0], list) else models[:1]
    return "".join(Path(str(model)).name for model in first)


def _given(context: typer.Context) -> list[tuple[Any, Any]]:
    """(parameter, value) of what was typed or read from a file."""
    command: Any = context.command
    found = []
    for parameter in command.params:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP"):
            found.append((parameter, context.params[parameter.name]))
    return found
