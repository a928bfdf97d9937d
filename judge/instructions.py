"""What a judge is told: the file instructions.toml, or a person's edited copy of it."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from judge.parsing import branch_format, ranking_format
from minitron.errors import MinitronError
from minitron.files import require_file
from minitron.typed import misfit

DEFAULT: Final = Path(__file__).with_name("instructions.toml")

VERSION: Final = 1

_PLACE: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")

_MATERIAL: Final = frozenset({"question", "answer_1", "answer_2"})

_TURNS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "branch": (_MATERIAL | {"qualities", "format"}, frozenset({"priorities", "code"})),
    "rethink": (frozenset({"format"}), frozenset({"focus", "qualities", "priorities", "code"})),
    "single": (_MATERIAL | {"format"}, frozenset({"qualities", "priorities", "code"})),
}
"""Turn -> (the words in braces that it must have, those that it may have)."""


@dataclass(frozen=True)
class Quality:
    """Something an answer may be good or bad at."""

    name: str
    means: str


@dataclass(frozen=True)
class Priority:
    """In what order qualities are weighed, for one kind of question."""

    name: str
    when: str
    order: tuple[str, ...]


@dataclass(frozen=True)
class Turns:
    """The texts that a judge is given, with words in braces to be filled in."""

    branch: str
    rethink: str
    single: str


@dataclass(frozen=True)
class Instructions:
    """All that a judge is told."""

    qualities: tuple[Quality, ...]
    priorities: tuple[Priority, ...]
    turns: Turns
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise MinitronError(f"they are of version {self.version}, and this Minitron reads {VERSION}")
        names = self.names
        if not names or len(set(names)) < len(names):
            raise MinitronError("there are no qualities, or two of one name")
        if odd := [name for name in names if not re.fullmatch(r"[a-z][a-z -]*", name)]:
            raise MinitronError(f"the quality {odd[0]!r} is not named in small letters")
        for priority in self.priorities:
            if strange := [name for name in priority.order if name not in names]:
                raise MinitronError(f"the priorities {priority.name} name {strange[0]!r}, which is no quality")
        for turn, (needed, allowed) in _TURNS.items():
            found = set(_PLACE.findall(getattr(self.turns, turn)))
            if missing := sorted(needed - found):
                raise MinitronError(f"turns.{turn} has no {{{missing[0]}}}")
            if strange := sorted(found - needed - allowed):
                raise MinitronError(f"turns.{turn} has {{{strange[0]}}}, which is filled in with nothing there")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the qualities."""
        return tuple(quality.name for quality in self.qualities)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all that is said."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def fill(self, turn: str, values: Mapping[str, str]) -> str:
        """The text of a turn; what is filled in is not looked at again, whatever stands in it."""
        last = branch_format(self.names) if turn == "branch" else ranking_format()
        known = {
            "qualities": "\n".join(f"- {one.name}: {one.means}" for one in self.qualities),
            "priorities": "\n".join(f"- {one.name} ({one.when}): {', '.join(one.order)}" for one in self.priorities),
            "format": last,
            **values,
        }
        return _PLACE.sub(lambda found: known[found[1]], getattr(self.turns, turn)).strip()


def read_instructions(path: Path | None = None) -> Instructions:
    """The instructions in a file, or our own; raises MinitronError where the file is none, and says what is wrong."""
    file = path or DEFAULT
    require_file(file)
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{file} is not valid TOML ({error}); correct it.") from None
    if wrong := misfit(found, Instructions):
        raise MinitronError(f"{file}: {wrong}; correct it, or begin with a new copy of {DEFAULT.name}.")
    try:
        return _made(found)
    except MinitronError as error:
        raise MinitronError(f"{file}: {error}; correct it, or begin with a new copy of {DEFAULT.name}.") from None


def _made(found: Mapping[str, Any]) -> Instructions:
    return Instructions(
        tuple(Quality(**one) for one in found["qualities"]),
        tuple(Priority(one["name"], one["when"], tuple(one["order"])) for one in found["priorities"]),
        Turns(**found["turns"]),
        found.get("version", VERSION),
    )
