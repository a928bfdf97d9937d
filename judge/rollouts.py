"""A judge's two turns as one run of tokens, the second of them forced: what training by reinforcement draws.

    prompt                  completion
    what is asked first     first turn | what is asked second | second turn
                            mask 1     | mask 0               | mask 1

A first turn that is not in the format ends it: there is nothing to go on from.  What was thought in the first turn
stays in view of the second, as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from judge.contests import Contest, Conversation, Material, first_turn, material, only_turn, second_turn
from judge.generating import Drawn, Ids
from judge.instructions import Instructions
from judge.local import LocalModel, Prompt
from judge.parsing import THOUGHTS, Branch, BrokenFormat, parse_branch, parse_ranking
from minitron.errors import MinitronError
from minitron.measure.records import Record
from minitron.measure.rendering import BrokenRecordError, Renderer
from minitron.measure.text import token_ids

Say = Callable[[Sequence[Ids]], Sequence[Drawn]]
"""Continues prompts by a turn each."""

Turns = Literal["two", "one"]
"""Whether a judge reads twice, or once."""

_HELD: Final = "minitronplaceholder"
"""Stands for what a judge says, where a chat template is asked what it writes behind it."""


@dataclass(frozen=True)
class Row:
    """A contest in one order; the better answer is the contest's first."""

    contest: Contest
    order: tuple[int, int]

    @property
    def better(self) -> Literal[1, 2]:
        """The number of the better answer, as the judge is shown it."""
        return 1 if self.order[0] == 0 else 2


@dataclass(frozen=True)
class Rollout:
    """What a judge said of a row."""

    prompt: Ids
    completion: Ids
    mask: tuple[int, ...]
    """Of the completion: 1 where the judge said it, 0 where it was asked."""

    turns: tuple[str, ...]
    """What each turn says, without thoughts and control tokens."""

    ruled: Literal[1, 2] | None = None
    """The answer that won; None where a turn is not in the format."""

    broken: str = ""
    """What is wrong with the format, and in which turn."""

    @property
    def tokens(self) -> int:
        """Tokens that the judge said."""
        return sum(self.mask)


@dataclass
class Roller:
    """Makes rollouts with a judge's tokenizer and chat template."""

    judge: LocalModel
    instructions: Instructions
    renderer: Renderer
    turns: Turns = "two"

    _bridges: dict[str, Prompt] = field(default_factory=dict, repr=False)

    def prompt(self, row: Row) -> Prompt:
        """What a judge is asked first, as tokens; raises MinitronError where the chat template refuses it."""
        asked = (first_turn if self.turns == "two" else only_turn)(self._given(row), self.instructions)
        return self.judge.prompt(self.renderer, asked)

    def roll(self, rows: Sequence[Row], say: Say) -> list[Rollout]:
        """A rollout of each row; the same row may come several times."""
        known = {_key(row): row for row in rows}
        asked = {key: self.prompt(row) for key, row in known.items()}
        prompts = [asked[_key(row)] for row in rows]
        firsts = say([prompt.ids for prompt in prompts])
        texts = [self._said(prompt, drawn) for prompt, drawn in zip(prompts, firsts, strict=True)]
        if self.turns == "one":
            return [
                _ruled(prompt, _whole(drawn), (text,))
                for prompt, drawn, text in zip(prompts, firsts, texts, strict=True)
            ]
        given = {key: self._given(row) for key, row in known.items()}
        found: dict[int, Rollout] = {}
        begun: dict[int, tuple[_Said, Prompt]] = {}
        for place, (row, prompt, drawn, text) in enumerate(zip(rows, prompts, firsts, texts, strict=True)):
            try:
                branch = parse_branch(text, self.instructions.names)
            except BrokenFormat as error:
                found[place] = Rollout(prompt.ids, *_whole(drawn), (text,), None, f"turn 1: {error}")
                continue
            bridge = self._bridge(branch, given[_key(row)])
            # A template ends the turn that it writes behind; the judge may have done so itself.
            more = bridge.ids[1:] if bridge.ids[:1] == (drawn[1],) else bridge.ids
            begun[place] = (_joined(_whole(drawn), (more, (0,) * len(more))), bridge)
        seconds = say([prompts[place].ids + begun[place][0][0] for place in begun]) if begun else ()
        for (place, (before, bridge)), drawn in zip(begun.items(), seconds, strict=True):
            turns = (texts[place], self._said(bridge, drawn))
            found[place] = _ruled(prompts[place], _joined(before, _whole(drawn)), turns)
        return [found[place] for place in range(len(rows))]

    def _given(self, row: Row) -> Material:
        return material(row.contest, row.order, self.judge.specials)

    def _said(self, prompt: Prompt, drawn: Drawn) -> str:
        return self.judge.said(drawn[0], opened=bool(prompt.opened))

    def _bridge(self, branch: Branch, given: Material) -> Prompt:
        """What stands between the two turns."""
        asked = second_turn(({"role": "user", "content": "-"},), _HELD, branch, given, self.instructions)
        key = str(asked[-1]["content"])
        if key not in self._bridges:
            if len(self._bridges) >= _MOST_BRIDGES:
                self._bridges.clear()
            self._bridges[key] = self._rendered(asked)
        return self._bridges[key]

    def _rendered(self, asked: Conversation) -> Prompt:
        try:
            whole = self.renderer.text(Record("the second turn", None, asked), prompt=True)
        except BrokenRecordError as error:
            raise MinitronError(f"{self.judge.folder}: a second turn {error}; choose another judge.") from None
        _, found, tail = whole.rpartition(_HELD)
        if not found:
            raise MinitronError(
                f"the chat template of {self.judge.folder} does not write what the judge said in its first turn; "
                "choose another judge, or train it with --turns one."
            )
        opened = next((begin for begin, _ in THOUGHTS if tail.rstrip().endswith(begin)), "")
        return Prompt(tuple(token_ids(self.judge.tokenizer, tail)), opened)


_Said = tuple[Ids, tuple[int, ...]]
"""(tokens, of each of them 1 where the judge said it)."""


def _whole(drawn: Drawn) -> _Said:
    """A turn with the token that ends it, all of it the judge's."""
    ids, end = drawn
    said = ids if end is None else (*ids, end)
    return said, (1,) * len(said)


def _joined(one: _Said, other: _Said) -> _Said:
    return one[0] + other[0], one[1] + other[1]


def _ruled(prompt: Prompt, said: _Said, turns: tuple[str, ...]) -> Rollout:
    try:
        ruling = parse_ranking(turns[-1])
    except BrokenFormat as error:
        return Rollout(prompt.ids, *said, turns, None, f"turn {len(turns)}: {error}")
    return Rollout(prompt.ids, *said, turns, ruling.better)


def _key(row: Row) -> tuple[int, tuple[int, int]]:
    return id(row.contest), row.order


_MOST_BRIDGES: Final = 4096
"""Of what is asked second, so many are kept as tokens: where nothing but the focus is filled in they are few."""


def in_both_orders(contests: Sequence[Contest]) -> Iterator[Row]:
    """Each contest twice."""
    for contest in contests:
        for order in ((0, 1), (1, 0)):
            yield Row(contest, order)
