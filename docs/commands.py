"""The page of all commands and their options, made from the command line itself; docs/site.py puts it into the site."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import typer

from cli.app import build
from cli.option_table import GENERAL, GROUPS, OPTIONS
from minitron.escapes import html

_SIGNS: Final = str.maketrans({sign: f"&#{ord(sign)};" for sign in "|*_[]{}\\"})
"""What Markdown would read -> its entity."""

_HEAD: Final = """# Commands

Made from the code. `minitron COMMAND --help-all` prints the same in a terminal.

Every command prints results on stdout, progress and notes on stderr; `--json` prints one JSON document on stdout and
nothing else. Exit codes: 0 success, 1 an unexpected error (`--debug` shows where), 2 an error that you can fix, 130
interrupted. Sizes are written `128k` (tokens, 2^10), `1.3GiB` (2^30 bytes) or `22GB` (10^9 bytes).
`minitron --install-completion` sets up shell completion.
"""


def commands_page() -> str:
    """The page in Markdown: of every command its help, and a table of its options."""
    group: Any = typer.main.get_command(build())
    parts = [_HEAD]
    for name, command in group.commands.items():
        if not command.hidden:
            parts.append(_section(name, command, group))
    return "\n".join(parts)


def _section(name: str, command: Any, group: Any) -> str:
    context = command.make_context(
        name, [], parent=group.context_class(group, info_name="minitron"), resilient_parsing=True
    )
    usage = " ".join([f"minitron {name}", *command.collect_usage_pieces(context)])
    lines = [f"## minitron {name}", "", *_paragraphs(command.help or ""), f"    {usage}", ""]
    for panel, parameters in _panels(command.params).items():
        rows = [row for parameter in parameters if (row := _row(parameter, context))]
        if rows:
            lines += [f"**{panel}**", "", "| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterable[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield from (_prose(paragraph), "")


def _panels(parameters: Iterable[Any]) -> dict[str, list[Any]]:
    """Parameters by the heading under which the help shows them."""
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        row = OPTIONS.get(parameter.opts[0])
        own = "Arguments" if parameter.param_type_name == "argument" else GENERAL
        panels.setdefault(own if row is None else row.group, []).append(parameter)
    return {name: panels[name] for name in ("Arguments", *GROUPS) if name in panels}


def _row(parameter: Any, context: Any) -> str | None:
    """A row of the table; None of what the help hides."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, help = record
    return f"| {_code(names)} | {_prose(help)} |"


def _prose(text: str) -> str:
    """Text of a help as Markdown shows it, what stands between backticks as code."""
    parts = " ".join(text.split()).split("`")
    return "".join(_code(part) if i % 2 else html(part).translate(_SIGNS) for i, part in enumerate(parts))


def _code(text: str) -> str:
    return f"<code>{html(text).translate(_SIGNS)}</code>"
