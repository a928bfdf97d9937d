"""What `--help` and `--help-all` show: options in the groups of cli/option_table.py, every name whole at 80 columns.

typer's own tables give a name a share of the line and cut what is longer; here a long name has a line of its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from cli.option_table import GENERAL, GROUPS, OPTIONS

ALL: Final = "minitron.help_all"
"""The key in a context's meta that says that all options are shown."""

_NAMES: Final = 26
"""Columns of names; a longer one stands above its help."""


_PLACES: Final = {name: place for place, name in enumerate(OPTIONS)}

_SORT: Final = re.compile(r"<([^<>]+)>")
_SORTS: Final = {"int": "N", "float": "NUMBER", "str": "TEXT"}

_TRIVIAL: Final = re.compile(r"  \[x>=[01]\]|; x>=[01](?=\])")
"""A limit that nobody would cross."""


class Command(TyperCommand):
    """A command whose help is in groups."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what the command does, and its options: the common ones, or all with `--help-all`."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        every = bool(ctx.meta.get(ALL))
        arguments: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        rare = 0
        for parameter in sorted(self.get_params(ctx), key=_place):
            if (record := _record(parameter, ctx)) is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
                continue
            row = OPTIONS.get(parameter.opts[0])
            if every or parameter.required or row is None or row.is_common(str(self.name)):
                groups[GENERAL if row is None else row.group].append(record)
            else:
                rare += 1
        write_sections(formatter, {"Arguments": arguments, **groups})
        if rare:
            told = f"{rare} more option{'s' * (rare > 1)}: {ctx.command_path} --help-all"
            formatter.write(f"\n{told}\n")


def _record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """(how it is typed, help)."""
    record: tuple[str, str] | None = parameter.get_help_record(ctx)
    if record is None:
        return None
    typed, help = record
    if "--help" in parameter.opts:
        help = f"{OPTIONS['--help'].meaning}."
    if parameter.param_type_name == "argument":
        typed = parameter.metavar or typed
    return _SORT.sub(_sort, typed), _TRIVIAL.sub("", help)


def _sort(found: re.Match[str]) -> str:
    """What stands for a value: its choices, or a word of the right sort."""
    return _SORTS.get(found[1].split()[0], found[1])


class Commands(TyperGroup):
    """The application, whose commands are shown by subject."""

    subjects: Mapping[str, Sequence[str]] = {}
    """Subject -> the names of its commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what the program does and its commands."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        write_sections(
            formatter,
            {
                subject: [(name, _first(self.commands[name].help)) for name in names if name in self.commands]
                for subject, names in self.subjects.items()
            },
        )
        records = [record for parameter in self.get_params(ctx) if (record := _record(parameter, ctx)) is not None]
        write_sections(formatter, {"Options": records})
        formatter.write("\nminitron COMMAND --help shows the common options of a command, --help-all all of them.\n")


def _place(parameter: Any) -> int:
    """Where a parameter stands in the table; arguments first."""
    return _PLACES.get(parameter.opts[0], -1)


def _first(help: str | None) -> str:
    """The first paragraph of a help."""
    return " ".join((help or "").split("\n\n")[0].split())


def write_sections(formatter: Any, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write every section that is not empty: its heading, then names with their help beside or below them."""
    for heading, records in sections.items():
        if records:
            with formatter.section(typer.style(heading, bold=True)):
                formatter.write_dl(list(records), col_max=_NAMES)
