"""Options in groups: from a request dataclass, which knows nothing of typer, and a table of options to a command.

    PLANNING = {"gpu": Option(option("--gpu", "A GPU's name.", "GPU")), ...}

    @takes("planning", Planning, PLANNING)
    def command(model: ModelArgument, planning: Planning) -> None: ...

A field's type and default are the request's own unless the row says otherwise, and what a row leaves out keeps its
default.  A row may be a Group: a field that is a request itself.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Final, get_args, get_type_hints

OWN: Final = object()
"""Means: use the default of the field itself."""


@dataclass(frozen=True)
class Option:
    """How a field is typed."""

    info: Any
    """What typer.Option or typer.Argument gives: flag, help, metavar, parser."""

    type: Any = None
    """The type as typed, where it is not the field's own; there is a default then."""

    default: Any = OWN
    """The default as typed, where it is not the field's own."""

    read: Callable[[Any], Any] | None = None
    """From what was typed, or its default, to the field's value."""

    @property
    def flag(self) -> str:
        """The name that is typed, without the one that says no; empty of an argument."""
        # What is written first is typer's `default` until a command is built.
        names = [name for name in (self.info.default, *(self.info.param_decls or ())) if isinstance(name, str)]
        return next((name.partition("/")[0] for name in names if name.startswith("--")), "")

    @classmethod
    def of(cls, annotated: Any, **more: Any) -> Option:
        """A row of what is annotated already (cli.options), where its type is the one that is typed."""
        typed, info = get_args(annotated)
        return cls(info, type=typed, **more)


@dataclass(frozen=True)
class Group:
    """A field, or a parameter of a command, that is a request itself."""

    request: Callable[..., Any]
    """The dataclass."""

    table: Mapping[str, Option | Group]
    """Field -> how it is typed."""

    build: Callable[..., Any] | None = None
    """Called with the values by name; default: the request."""

    def parameters(self, prefix: str) -> Iterator[inspect.Parameter]:
        """One parameter of a command for each option, named after the group and the field."""
        fields = {field.name: field for field in dataclasses.fields(self.request)}  # type: ignore[arg-type]
        hints = get_type_hints(self.request)
        for name, row in self.table.items():
            if isinstance(row, Group):
                yield from row.parameters(f"{prefix}_{name}")
                continue
            field = fields[name]
            default = field.default if row.default is OWN else row.default
            yield inspect.Parameter(
                f"{prefix}_{name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=Annotated[hints[name] if row.type is None else row.type, row.info],
            )

    def make(self, prefix: str, given: dict[str, Any]) -> Any:
        """The request from a command's arguments, which are taken out of `given`."""
        values: dict[str, Any] = {}
        for name, row in self.table.items():
            if isinstance(row, Group):
                values[name] = row.make(f"{prefix}_{name}", given)
            else:
                typed = given.pop(f"{prefix}_{name}")
                values[name] = typed if row.read is None else row.read(typed)
        return (self.build or self.request)(**values)


def takes(
    parameter: str,
    request: Callable[..., Any],
    table: Mapping[str, Option | Group],
    build: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that spreads the parameter `parameter` of a command out into options, as typer reads them.

    The command is then called with keyword arguments only.  Several groups may be spread, one after the other."""
    group = Group(request, table, build)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            values = group.make(parameter, given)
            function(**given, **{parameter: values})

        own, hints = inspect.signature(function).parameters.values(), get_type_hints(function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for part in own:
            if part.name == parameter:
                parameters += group.parameters(parameter)
            else:
                parameters.append(part.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[part.name]))
        command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        command.__annotations__ = {part.name: part.annotation for part in parameters} | {"return": None}
        return command

    return decorate
