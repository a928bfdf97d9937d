r"""What a judge must write, and the strict parser of it: plain functions that training and other tools can call.

The first turn is a focus block and an analysis of each answer, and nothing else:

    [FOCUS]
    accuracy, logic
    [END FOCUS]
    [ANSWER 1]
    ...
    [END ANSWER 1]
    [ANSWER 2]
    ...
    [END ANSWER 2]

The second turn, and the only one of a judge that reads once, is what it likes to say and one ranking block at the end:

    ...
    [RANKING]
    \boxed{1}
    [END RANKING]

Nothing is guessed: what is not exactly so raises BrokenFormat, which says why.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

MOST_QUALITIES: Final = 3
"""Qualities that may decide a case."""

_FOCUS, _FIRST, _SECOND, _RANKING = "FOCUS", "ANSWER 1", "ANSWER 2", "RANKING"

MARK: Final = re.compile(rf"\[(END )?({_FOCUS}|{_FIRST}|{_SECOND}|{_RANKING})\]")
"""Begins or ends a block."""

_BRANCH: Final = [(end, name) for name in (_FOCUS, _FIRST, _SECOND) for end in ("", "END ")]

_BOXED: Final = re.compile(r"\\boxed\{([12])\}")

THOUGHTS: Final = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Marks between which models think before they answer."""


class BrokenFormat(Exception):
    """A reply that is not in the format; says why."""


@dataclass(frozen=True)
class Branch:
    """The first turn."""

    focus: tuple[str, ...]
    """The one to three qualities that decide the case."""

    suspicions: tuple[str, str]
    """What may be wrong with the first answer, and with the second."""


@dataclass(frozen=True)
class Ranking:
    """The second turn."""

    better: Literal[1, 2]
    """The answer that is the better one."""

    reasons: str
    """What is said before the ruling."""


def branch_format(qualities: Collection[str]) -> str:
    """The first turn's format, for the instructions."""
    return "\n".join(
        [
            *("[FOCUS]", f"one to three of: {', '.join(qualities)}", "[END FOCUS]"),
            *("[ANSWER 1]", "what you suspect of answer 1", "[END ANSWER 1]"),
            *("[ANSWER 2]", "what you suspect of answer 2", "[END ANSWER 2]"),
        ]
    )


def ranking_format() -> str:
    """The last turn's format, for the instructions."""
    return "(N is 1 where answer 1 is the better one, and 2 where answer 2 is)\n[RANKING]\n\\boxed{N}\n[END RANKING]"


def parse_branch(reply: str, qualities: Collection[str]) -> Branch:
    """The first turn of a judge that may choose among `qualities`; raises BrokenFormat where it is none."""
    text = without_thoughts(reply)[1]
    found = list(MARK.finditer(text))
    if [(mark[1] or "", mark[2]) for mark in found] != _BRANCH:
        raise BrokenFormat(_told(found, "a focus block and an analysis of each answer, in this order, once each"))
    parts = [text[one.end() : other.start()].strip() for one, other in pairwise(found)]
    outside = text[: found[0].start()] + parts[1] + parts[3] + text[found[-1].end() :]
    if outside.strip():
        raise BrokenFormat(f"there is text outside the blocks ({_clipped(outside)})")
    focus = tuple(one.strip() for one in re.split(r"[,\n]", parts[0]) if one.strip())
    if strange := [one for one in focus if one not in qualities]:
        raise BrokenFormat(f"{_clipped(strange[0])} is no quality")
    if not 1 <= len(focus) <= MOST_QUALITIES or len(set(focus)) < len(focus):
        raise BrokenFormat(f"the focus has {len(focus)} qualities, not one to {MOST_QUALITIES} different ones")
    if not parts[2] or not parts[4]:
        raise BrokenFormat("an analysis is empty")
    return Branch(focus, (parts[2], parts[4]))


def parse_ranking(reply: str) -> Ranking:
    """The ruling of a judge's last turn; raises BrokenFormat where there is not exactly one, at the end."""
    text = without_thoughts(reply)[1]
    found = list(MARK.finditer(text))
    if [(mark[1] or "", mark[2]) for mark in found] != [("", _RANKING), ("END ", _RANKING)]:
        raise BrokenFormat(_told(found, "one ranking block"))
    begin, end = found
    if text[end.end() :].strip():
        raise BrokenFormat(f"there is text behind the ranking ({_clipped(text[end.end() :])})")
    inside = text[begin.end() : end.start()].strip()
    boxed = _BOXED.fullmatch(inside)
    if boxed is None:
        raise BrokenFormat(f"the ranking is {_clipped(inside)}, not one boxed 1 or 2")
    return Ranking(1 if boxed[1] == "1" else 2, text[: begin.start()].strip())


def without_thoughts(reply: str, *, opened: bool = False) -> tuple[str, str]:
    """(what a model thought, what it then said); `opened` where the prompt has opened the thought already.

    A thought that does not end leaves nothing said.  One that only ends was opened by the chat template."""
    for begin, end in THOUGHTS:
        before, closed, after = reply.rpartition(end)
        if closed:
            return before.strip().removeprefix(begin), after
    for begin, _ in THOUGHTS:
        if reply.lstrip().startswith(begin):
            return reply.strip().removeprefix(begin), ""
    return (reply, "") if opened else ("", reply)


def _told(found: list[re.Match[str]], wanted: str) -> str:
    seen = ", ".join(mark[0] for mark in found[:8]) or "no mark at all"
    return f"it is not {wanted}: there is {seen}"


def _clipped(text: str, longest: int = 60) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= longest else f"{text[:longest]}...")
