"""Remarks on stderr while a command runs, and in which way it tells of what goes on; cli.show has all of it."""

import json
import re
import sys
from typing import Any, ClassVar, Final

from rich.console import Console
from rich.text import Text

from minitron.escapes import visible

MESSAGES: Final = Console(markup=False, emoji=False, highlight=False, stderr=True)
"""Where remarks and bars go."""

_STAGE: Final = re.compile(r"(\[\d+/\d+\] [\w-]+)")


class Telling:
    """How what goes on is told on stderr, for the whole process."""

    way = "auto"
    """live, lines, json, none; auto is live in a terminal and else lines."""

    subject = ""
    """Whom it is done for: the model of the command."""

    stage = ""
    """The stage of a run that is on."""

    told: ClassVar[dict[str, float]] = {}
    """What was done -> when a line last told of it."""


def begin(way: str = "auto", subject: str = "") -> None:
    """Begin to tell of a command that runs: in which way, and for which model."""
    Telling.way, Telling.subject, Telling.stage = way, subject, ""
    Telling.told.clear()


def event(kind: str, **about: Any) -> None:
    """Write one JSON object on a line of stderr: what `--progress json` tells programs."""
    sys.stderr.write(json.dumps({"event": kind, **about}, ensure_ascii=True) + "\n")
    sys.stderr.flush()


def note(text: str) -> None:
    """Print a remark on stderr, above any bar that is drawn; of a remark that names a stage, `[2/6] plan`, the bars
    after it say so."""
    if (stage := _STAGE.fullmatch(text)) is not None:
        Telling.stage = stage[1]
    if Telling.way == "json":
        event("note", text=text)
        return
    MESSAGES.print(Text(visible(text)), soft_wrap=not MESSAGES.is_terminal)
