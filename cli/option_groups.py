"""Options in groups: a frozen dataclass whose fields are typer options becomes one parameter of a command."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def spread_options(function: Callable[..., None], parameter: str, group: type) -> Callable[..., None]:
    """`function` with its parameter `parameter`, a `group`, spread out into one option a field, as typer reads them.

    The function is then called with keyword arguments only.  Several groups may be spread, one after the other."""
    fields = dataclasses.fields(group)

    @functools.wraps(function)
    def command(**given: Any) -> None:
        values = group(**{field.name: given.pop(field.name) for field in fields})
        function(**given, **{parameter: values})

    own = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True) | get_type_hints(group, include_extras=True)
    options = [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default) for field in fields]
    spread = [part for each in own for part in (options if each.name == parameter else [each])]
    parameters = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[part.name]) for part in spread]
    command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {part.name: part.annotation for part in parameters} | {"return": None}
    return command
