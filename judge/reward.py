"""The reward of a judge's two turns, as a plain function: what training by reinforcement gives them.

Source of the numbers: BR-RM, arXiv 2510.23596: one outcome at the end of the second turn, given to both turns, and a
penalty of its own where the format is broken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from judge.parsing import BrokenFormat, parse_branch, parse_ranking
from minitron.errors import MinitronError


@dataclass(frozen=True)
class Rewards:
    """What a pair of turns is worth; the defaults are those of the paper's text."""

    right: float = 0.0
    wrong: float = -1.0
    broken: float = -100.0
    """Where one of the turns is not in the format."""

    def __post_init__(self) -> None:
        if not self.right > self.wrong > self.broken:
            raise MinitronError(
                f"the rewards are {self.right} right, {self.wrong} wrong and {self.broken} broken; give each less than "
                "the one before."
            )


def reward_of(
    first_turn: str | None,
    second_turn: str,
    better: Literal[1, 2],
    qualities: Collection[str],
    rewards: Rewards | None = None,
) -> float:
    """What both turns of a judge are given, where the answer numbered `better` is the better one.

    Of a judge that reads once, `first_turn` is None and its only turn the second."""
    worth = rewards or Rewards()
    try:
        if first_turn is not None:
            parse_branch(first_turn, qualities)
        ruled = parse_ranking(second_turn)
    except BrokenFormat:
        return worth.broken
    return worth.right if ruled.better == better else worth.wrong
