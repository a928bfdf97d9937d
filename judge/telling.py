"""The pairs that tell most: a few of each outcome, the ones that a reader sees through soonest."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from judge.judging import Judged, Outcome
from judge.parsing import BrokenFormat, parse_ranking

SHOWN: Final[Mapping[Outcome, int]] = {"second": 3, "first": 2, "tie": 1, "broken": 1}
"""Outcome -> pairs shown of it: where the student loses is what one looks for."""

_LONGEST: Final = 1500
"""Characters of a question, an answer or reasons that are shown."""


@dataclass
class Telling:
    """Keeps the best few of each outcome while pairs go by."""

    _heaps: dict[Outcome, list[tuple[float, int, Judged]]] = field(default_factory=dict, repr=False)
    _seen: int = 0

    def add(self, judged: Judged) -> None:
        """One more pair."""
        if not judged.verdicts:
            return
        self._seen += 1
        heap = self._heaps.setdefault(judged.outcome, [])
        heapq.heappush(heap, (_worth(judged), -self._seen, judged))
        if len(heap) > SHOWN[judged.outcome]:
            heapq.heappop(heap)

    def found(self) -> list[dict[str, Any]]:
        """Those pairs as JSON, texts clipped."""
        return [
            _shown(judged)
            for outcome in SHOWN
            for _, _, judged in sorted(self._heaps.get(outcome, []), key=lambda one: one[:2], reverse=True)
        ]


def _worth(judged: Judged) -> float:
    """Both orders of one mind about what decides come first, then short ones: one page is read, ten are not."""
    contest, focuses = judged.contest, {verdict.focus for verdict in judged.verdicts}
    length = sum(map(len, contest.answers)) + sum(len(str(message["content"])) for message in contest.question)
    return (len(focuses) == 1) + 1.0 / (1 + length)


def _shown(judged: Judged) -> dict[str, Any]:
    contest, last = judged.contest, judged.verdicts[0]
    return {
        "outcome": judged.outcome,
        "where": contest.where,
        "question": _clipped(str(contest.question[-1]["content"])),
        "student": _clipped(contest.answers[0]),
        "teacher": _clipped(contest.answers[1]),
        "focus": list(judged.focus),
        "reasons": _clipped(_reasons(last.turns[-1][1])) if last.turns else "",
        "broken": next((verdict.broken for verdict in judged.verdicts if verdict.broken), ""),
    }


def _reasons(said: str) -> str:
    try:
        return parse_ranking(said).reasons
    except BrokenFormat:
        return said


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
