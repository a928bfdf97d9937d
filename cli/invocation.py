"""The command line as typed, for reports that say how they were made."""

import shlex
from collections.abc import Sequence

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of the command line that runs."""
    _typed[:] = arguments


def command_line() -> str:
    """The command line that runs, as one would type it into a shell."""
    return shlex.join(["minitron", *_typed])
