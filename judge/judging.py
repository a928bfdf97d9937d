"""Contests judged in both orders, by two turns each: who won, and whether the judge kept to the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from judge.contests import Contest, Conversation, Material, first_turn, material, only_turn, second_turn
from judge.instructions import Instructions
from judge.parsing import Branch, BrokenFormat, parse_branch, parse_ranking
from judge.replies import Replies
from judge.speaking import Reply, Speaker, ask
from minitron.progress import Advance

ORDERS: Final = ((0, 1), (1, 0))

CHUNK: Final = 64
"""Contests whose conversations are in memory at a time."""

Outcome = Literal["first", "second", "tie", "broken"]
"""Who won: the first of a contest's answers, the second, neither as the orders disagree, or nobody knows."""


@dataclass(frozen=True)
class Verdict:
    """What came of one order."""

    order: tuple[int, int]

    winner: int | None
    """The number of the answer in the contest, 0 or 1; None where a turn was not in the format."""

    focus: tuple[str, ...] = ()
    """The qualities that decided, as the judge chose them; of one turn it chooses none."""

    broken: str = ""
    """What was wrong with the format, and in which turn."""

    turns: tuple[tuple[str, str], ...] = ()
    """(what was asked, what was said) of each turn."""

    @property
    def took_the_first(self) -> bool | None:
        """Whether the answer that it read first is the better one to it."""
        return None if self.winner is None else self.winner == self.order[0]

    def to_json(self) -> dict[str, Any]:
        """A verdict of a transcript."""
        return {
            "order": list(self.order),
            "winner": self.winner,
            "focus": list(self.focus),
            "broken": self.broken,
            "turns": [{"asked": asked, "said": said} for asked, said in self.turns],
        }


@dataclass(frozen=True)
class Judged:
    """What came of a contest."""

    contest: Contest
    verdicts: tuple[Verdict, ...]
    """Of both orders; none where an answer is empty, which needs no judge."""

    @property
    def outcome(self) -> Outcome:
        """Who won."""
        if not self.verdicts:
            empty = [not answer.strip() for answer in self.contest.answers]
            return "tie" if all(empty) else "second" if empty[0] else "first"
        winners = {verdict.winner for verdict in self.verdicts}
        if None in winners:
            return "broken"
        return "tie" if len(winners) > 1 else "second" if winners == {1} else "first"

    @property
    def focus(self) -> tuple[str, ...]:
        """The qualities that decided in one order or the other."""
        return tuple(dict.fromkeys(name for verdict in self.verdicts for name in verdict.focus))


def calls(contests: Sequence[Contest], turns: int = 2) -> int:
    """The most replies that judging takes."""
    return sum(not _is_empty(contest) for contest in contests) * len(ORDERS) * turns


def judge_contests(
    contests: Sequence[Contest],
    speaker: Speaker,
    instructions: Instructions,
    kept: Replies,
    *,
    turns: int = 2,
    advance: Advance | None = None,
) -> Iterator[Judged]:
    """Every contest, judged in both orders by `turns` turns, 1 or 2; those with an empty answer by that alone."""
    for start in range(0, len(contests), CHUNK):
        chunk = contests[start : start + CHUNK]
        places = [(number, order) for number, one in enumerate(chunk) if not _is_empty(one) for order in ORDERS]
        given = [material(chunk[number], order, speaker.specials) for number, order in places]
        judge = _two_turns if turns == 2 else _one_turn
        found = judge(given, [order for _, order in places], speaker, instructions, kept, advance)
        for number, contest in enumerate(chunk):
            own = tuple(verdict for (place, _), verdict in zip(places, found, strict=True) if place == number)
            yield Judged(contest, own)


def _is_empty(contest: Contest) -> bool:
    return not all(answer.strip() for answer in contest.answers)


def _two_turns(
    given: Sequence[Material],
    orders: Sequence[tuple[int, int]],
    speaker: Speaker,
    instructions: Instructions,
    kept: Replies,
    advance: Advance | None,
) -> list[Verdict]:
    firsts = [first_turn(one, instructions) for one in given]
    said = ask(speaker, firsts, kept, advance)
    verdicts: dict[int, Verdict] = {}
    branches: dict[int, Branch] = {}
    for place, reply in enumerate(said):
        try:
            branches[place] = parse_branch(_spoken(reply), instructions.names)
        except BrokenFormat as error:
            verdicts[place] = _broken(orders[place], f"turn 1: {error}", [firsts[place]], [reply])
    if advance is not None and verdicts:
        advance(len(verdicts))  # their second turns, which are not asked for
    going_on = list(branches)
    seconds = [
        second_turn(firsts[place], said[place].text, branches[place], given[place], instructions) for place in going_on
    ]
    for place, asked, reply in zip(going_on, seconds, ask(speaker, seconds, kept, advance), strict=True):
        order, both = orders[place], ([firsts[place], asked], [said[place], reply])
        try:
            ranking = parse_ranking(_spoken(reply))
        except BrokenFormat as error:
            verdicts[place] = _broken(order, f"turn 2: {error}", *both, focus=branches[place].focus)
        else:
            verdicts[place] = Verdict(order, order[ranking.better - 1], branches[place].focus, "", _turns(*both))
    return [verdicts[place] for place in range(len(given))]


def _one_turn(
    given: Sequence[Material],
    orders: Sequence[tuple[int, int]],
    speaker: Speaker,
    instructions: Instructions,
    kept: Replies,
    advance: Advance | None,
) -> list[Verdict]:
    asked = [only_turn(one, instructions) for one in given]
    verdicts = []
    for order, conversation, reply in zip(orders, asked, ask(speaker, asked, kept, advance), strict=True):
        try:
            ranking = parse_ranking(_spoken(reply))
        except BrokenFormat as error:
            verdicts.append(_broken(order, str(error), [conversation], [reply]))
        else:
            verdicts.append(Verdict(order, order[ranking.better - 1], (), "", _turns([conversation], [reply])))
    return verdicts


def _spoken(reply: Reply) -> str:
    if reply.refused:
        raise BrokenFormat(f"nothing was said: {reply.refused}")
    return reply.text


def _broken(
    order: tuple[int, int],
    why: str,
    asked: Sequence[Conversation],
    said: Sequence[Reply],
    focus: tuple[str, ...] = (),
) -> Verdict:
    end = "" if said[-1].finished else " (its tokens ran out)"
    return Verdict(order, None, focus, why + end, _turns(asked, said))


def _turns(asked: Sequence[Conversation], said: Sequence[Reply]) -> tuple[tuple[str, str], ...]:
    return tuple((str(one[-1]["content"]), reply.text) for one, reply in zip(asked, said, strict=True))
