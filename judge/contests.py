"""Two answers to one question, and the text of them that a judge is given.

Answers come from models, and may hold whatever a model can be brought to say: our own marks, those of chat templates,
or orders to the judge.  So each stands between fences marked with a code that follows from all of the text and that no
answer can know, and what looks like a mark in it is shown in other brackets.  A ruling is parsed from what the judge
says itself, never from what it was given.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from judge.instructions import Instructions
from judge.parsing import MARK, THOUGHTS, Branch
from minitron.measure.records import Message

Conversation = tuple[Message, ...]
"""What a model is asked: messages with `role` and `content`."""

_CONTROL: Final = re.compile(
    r"<\|[^|<>\n]{1,60}\|>|<\uff5c[^<>\n]{1,60}\uff5c>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]|<</?SYS>>|<\[[A-Za-z_]{1,40}\]>",
    re.IGNORECASE,
)
"""What chat templates of many families write between messages, and tokenizers read as one token."""

_LOOSE_MARK: Final = re.compile(r"\[\s*((?:END\s+)?(?:FOCUS|ANSWER\s*[12]|RANKING))\s*\]", re.IGNORECASE)

_OTHER_BRACKETS: Final = str.maketrans("<>[]", "\u2039\u203a\u27e6\u27e7")


@dataclass(frozen=True)
class Contest:
    """A question and two answers to it."""

    question: Conversation
    """Its messages, the last of which is answered."""

    answers: tuple[str, str]

    where: str = ""
    """Where it comes from, for messages and transcripts."""

    groups: tuple[str, ...] = ()
    """What it is counted with."""


@dataclass(frozen=True)
class Material:
    """A contest in one order, as a judge is given it."""

    question: str
    answer_1: str
    answer_2: str
    code: str

    def values(self) -> Mapping[str, str]:
        """What fills the words in braces of a turn."""
        return {
            "question": self._fenced("question", self.question),
            "answer_1": self._fenced("answer 1", self.answer_1),
            "answer_2": self._fenced("answer 2", self.answer_2),
            "code": self.code,
        }

    def _fenced(self, what: str, text: str) -> str:
        return f"===== {what} {self.code} =====\n{text}\n===== end of {what} {self.code} ====="


def material(contest: Contest, order: tuple[int, int], specials: Collection[str] = ()) -> Material:
    """The contest with its answers in that order, (0, 1) or (1, 0); `specials` are tokens of the judge's tokenizer
    that a text would be read as."""
    first, second = (contest.answers[place] for place in order)
    shown = "\n\n".join(f"{message['role']}: {message['content']}" for message in contest.question)
    if len(contest.question) == 1:
        shown = str(contest.question[0]["content"])
    whole = json.dumps([shown, first, second])
    # An answer that held its own code would have to be a fixed point of SHA-256.
    code = hashlib.sha256(whole.encode()).hexdigest()[:12]
    question, one, other = (neutral(text, specials) for text in (shown, first, second))
    return Material(question, one, other, code)


def neutral(text: str, specials: Collection[str] = ()) -> str:
    """A text in which nothing is a mark of ours, of a chat template, or a token in `specials`."""
    for pattern in (_LOOSE_MARK, MARK, _CONTROL):
        text = pattern.sub(lambda found: found[0].translate(_OTHER_BRACKETS), text)
    for mark in (*(mark for marks in THOUGHTS for mark in marks), *specials):
        if mark in text:
            other = mark.translate(_OTHER_BRACKETS)
            text = text.replace(mark, other if other != mark else f"{mark[:1]}\u200b{mark[1:]}")
    return text


def first_turn(given: Material, instructions: Instructions) -> Conversation:
    """What is asked in the first of two turns."""
    return ({"role": "user", "content": instructions.fill("branch", given.values())},)


def second_turn(
    asked: Conversation, said: str, branch: Branch, given: Material, instructions: Instructions
) -> Conversation:
    """What is asked in the second: the conversation so far, and to read again."""
    values = {"focus": ", ".join(branch.focus), "code": given.code}
    return (
        *asked,
        {"role": "assistant", "content": said.strip()},
        {"role": "user", "content": instructions.fill("rethink", values)},
    )


def only_turn(given: Material, instructions: Instructions) -> Conversation:
    """What is asked where one turn is all."""
    return ({"role": "user", "content": instructions.fill("single", given.values())},)
