"""The command line as typed, for reports that say how they were made, and its settings, which a run folder keeps."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from cli.config_file import masked

_typed: list[str] = []
_settings: list[Callable[[Path], str]] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the arguments of the command line that runs."""
    _typed[:] = arguments
    _settings.clear()


def remember_settings(told: Callable[[Path], str]) -> None:
    """Keep what gives the settings of the command that runs, as a file in a folder."""
    _settings[:] = [told]


def command_line() -> str:
    """The command line that runs, as one would type it into a shell, without passwords and keys in addresses."""
    return shlex.join(["minitron", *map(masked, _typed)])


def settings_in(folder: Path) -> str:
    """The settings of the command line that runs, as a file in `folder` for --config; empty where none is known."""
    return _settings[0](folder) if _settings else ""
