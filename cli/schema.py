"""`minitron schema NAME`: the JSON Schema of what a command prints with --json."""

import difflib
from typing import Annotated

import typer

from cli import show
from cli.schemas import names, schema
from minitron.errors import MinitronError

NameArgument = Annotated[
    str,
    typer.Argument(
        help=f"Command, or solve for `plan --solve`: {', '.join(names())}.", metavar="NAME", show_default=False
    ),
]


def command(name: NameArgument) -> None:
    """Print the JSON Schema of a command's --json."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        told = f"did you mean {near[0]}?" if near else f"choose {', '.join(names())}."
        raise MinitronError(f"no command {name!r} prints JSON; {told}")
    show.document(schema(name))
