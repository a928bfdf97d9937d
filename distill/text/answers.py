"""Where in the text of a conversation the assistant's words stand: what a student is to learn to say.

A template that marks them itself (`{% generation %}`) is asked.  Of others the words are what comes between the prompt
and the next turn: the text of the messages before, with what asks for an answer, and that of the messages up to it.
Many templates write earlier turns otherwise once later ones are there, and leave out their reasoning for instance; of
those they are what changes in the text of the whole conversation where the answer is another.

A turn in which nothing is said is not taught: a student would learn to end where it should begin.
"""

from __future__ import annotations

from typing import Final

from minitron.measure.records import Message, Record
from minitron.measure.rendering import BrokenRecordError, Renderer

ASSISTANT: Final = "assistant"

_STAND_IN: Final = "\ue000another answer\ue001"
"""An answer that no conversation has, from the first to the last character."""

Span = tuple[int, int]
"""The first character, and the one after the last."""


def answers(renderer: Renderer, record: Record) -> tuple[str, list[Span]]:
    """The text of a conversation, and where the assistant's words and the ends of its turns stand in it.

    Raises BrokenRecordError where the template refuses it."""
    turns = [number for number, message in enumerate(record.messages) if message["role"] == ASSISTANT]
    if (marked := renderer.marked(record)) is not None and marked.answers:
        says = [_says_something(record.messages[number]) for number in turns]
        if all(says):
            return marked.text, list(marked.answers)
        if len(says) == len(marked.answers):
            return marked.text, [span for span, said in zip(marked.answers, says, strict=True) if said]
    text = renderer.text(record)
    found = [_span(renderer, record, text, number) for number in turns]
    return text, [span for span in found if span is not None]


def _says_something(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content"))


def _span(renderer: Renderer, record: Record, text: str, number: int) -> Span | None:
    """Of the answer with that number among the messages; None where nothing is said."""
    message = record.messages[number]
    if not _says_something(message):
        return None
    if not message["content"].strip() and _with(renderer, record, number, "") == text:
        return None  # tool calls or reasoning, of which this template shows nothing
    return _after_prompt(renderer, record, text, number) or _by_difference(renderer, record, text, number)


def _after_prompt(renderer: Renderer, record: Record, text: str, number: int) -> Span | None:
    """Between the messages before and those up to it; None where the whole conversation does not begin with these."""
    try:
        before = renderer.text(record, record.messages[:number], prompt=True)
        after = renderer.text(record, record.messages[: number + 1])
    except BrokenRecordError:
        return None  # a template may refuse a part of what it takes whole
    if text.startswith(before) and text.startswith(after) and len(before) < len(after):
        return len(before), len(after)
    return None


def _by_difference(renderer: Renderer, record: Record, text: str, number: int) -> Span | None:
    """What is another text with another answer; before it what asks for one, and behind it the end of the turn."""
    other = _with(renderer, record, number, _STAND_IN)
    if _STAND_IN not in other:
        return None  # the template leaves this turn out
    start = _common(text, other)
    behind = min(_common(text[::-1], other[::-1]), len(text) - start, len(other) - start)
    place = other.index(_STAND_IN)
    if other.count(_STAND_IN) > 1 or not start <= place <= len(other) - behind - len(_STAND_IN):
        raise BrokenRecordError(f"has an answer (message {number + 1}) that the chat template shows more than once")
    stop = len(text) - behind
    try:
        bare = renderer.text(record, record.messages[:number]) if number else ""
        asked = renderer.text(record, record.messages[:number], prompt=True)
        alone = _with(renderer, record, number, _STAND_IN, last=True)
    except BrokenRecordError:
        return start, stop
    # What the template writes between what asks for an answer and the answer, such as an empty thought, is taught.
    asks = asked[len(bare) :] if asked.startswith(bare) else ""
    begins = text.rfind(asks, 0, start) if asks else -1
    said_before = record.messages[number - 1]["content"].strip() if number else ""
    if begins >= 0 and not (said_before and said_before in text[begins:start]):
        start = begins + len(asks)
    ending = alone[alone.rfind(_STAND_IN) + len(_STAND_IN) :] if _STAND_IN in alone else ""
    return start, stop + _common(ending, text[stop:])


def _common(one: str, other: str) -> int:
    """With how many characters both begin."""
    unlike = (place for place, (first, second) in enumerate(zip(one, other, strict=False)) if first != second)
    return next(unlike, min(len(one), len(other)))


def _with(renderer: Renderer, record: Record, number: int, content: str, *, last: bool = False) -> str:
    """The text with another answer in that place; `last` leaves out what comes after it."""
    replaced: Message = {"role": record.messages[number]["role"], "content": content}
    after = () if last else record.messages[number + 1 :]
    return renderer.text(record, [*record.messages[:number], replaced, *after])
