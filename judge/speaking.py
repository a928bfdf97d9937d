"""Whoever answers a conversation: a model here or behind an endpoint, and what it said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Protocol

from judge.contests import Conversation
from judge.replies import Replies
from minitron.errors import MinitronError, require_least
from minitron.progress import Advance


@dataclass(frozen=True)
class Speaking:
    """How a model speaks."""

    max_tokens: int = 1024
    """Tokens of a reply, at most: its thinking is among them unless that has a limit of its own."""

    max_thinking_tokens: int | None = None
    """Tokens to think, at most, before the answer; a thought that is not done by then is ended."""

    temperature: float = 0.0
    """0 takes the most likely token each time; above it tokens are drawn."""

    top_p: float = 1.0
    """Draws from the most likely tokens that have so much of the probability together."""

    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        require_least(self, {"max_tokens": 1, "max_thinking_tokens": 1, "seed": 0})
        if not 0 <= self.temperature <= 2:
            raise MinitronError(f"the temperature is {self.temperature}; give a number from 0 to 2.")
        if not 0 < self.top_p <= 1:
            raise MinitronError(f"top-p is {self.top_p}; give a number above 0, at most 1.")


@dataclass(frozen=True)
class Reply:
    """What was said."""

    text: str
    """The answer, without what was thought before it."""

    tokens: int | None = None
    """Tokens said in all, the thinking among them; None where nobody counted."""

    thinking_tokens: int | None = None
    """Those of the thinking."""

    finished: bool = True
    """Whether the model ended it; else the limit did."""

    cut_thinking: bool = False
    """Whether the thinking was ended by its limit."""

    refused: str = ""
    """Why nothing was said: what an endpoint answered, or that the conversation is too long."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


_FIELDS: Final = frozenset(field.name for field in fields(Reply))

Keep = Callable[[int, Reply], None]
"""Is told the reply to the conversation of that number, once it is there."""


class Speaker(Protocol):
    """Answers conversations."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its replies depend on beside the conversation: a reply is kept under it."""

    @property
    def specials(self) -> Sequence[str]:
        """Texts that its tokenizer reads as control tokens; empty where that is not known."""

    def speak(self, conversations: Sequence[Conversation], missing: Sequence[int], keep: Keep) -> None:
        """Answer those of the conversations whose numbers are `missing`, in any order; each reply is told at once.

        Raises MinitronError where it cannot."""


def ask(
    speaker: Speaker, conversations: Sequence[Conversation], kept: Replies, advance: Advance | None = None
) -> list[Reply]:
    """The replies of `speaker`, in order: those that are `kept`, and new ones, which are kept as they come."""
    keys = [_key(speaker, conversation) for conversation in conversations]
    found: dict[int, Reply] = {}
    for number, key in enumerate(keys):
        known = kept.get(key)
        if known is not None and known.keys() == _FIELDS:
            found[number] = Reply(**known)
    if advance is not None and found:
        advance(len(found))

    def keep(number: int, reply: Reply) -> None:
        found[number] = reply
        kept.put(keys[number], reply.to_json())
        if advance is not None:
            advance(1)

    missing = [number for number in range(len(keys)) if number not in found]
    if missing:
        speaker.speak(conversations, missing, keep)
    return [found[number] for number in range(len(keys))]


def _key(speaker: Speaker, conversation: Conversation) -> str:
    whole = json.dumps([dict(speaker.identity), conversation], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
