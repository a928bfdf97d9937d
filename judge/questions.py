"""Questions to be answered, and answers that were given to them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from judge.contests import Conversation
from judge.speaking import Reply
from minitron.errors import MinitronError
from minitron.measure.records import PROMPTS, Source, no_text, record_of
from minitron.measure.rows import Row, rows

_GROUPS: Final = ("group", "category", "domain", "subset", "task", "source")
"""Keys whose text says what kind of question it is; the first that is there counts."""

_IDS: Final = ("id", "question_id", "uid", "prompt_id")

_ANSWERS: Final = ("answer", "response", "output", "completion", "text")

_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})

_SEEN: Final = frozenset({"image", "image_url", "input_image", "video", "video_url", "audio", "input_audio", "file"})
"""Kinds of a message's parts that are no text."""


@dataclass(frozen=True)
class Question:
    """What is asked."""

    where: str
    """The file and the line, for messages."""

    conversation: Conversation
    """Its messages, the last one a user's."""

    group: str = ""
    name: str = ""
    """Its own identifier; empty for none."""

    def row(self, reply: Reply) -> dict[str, Any]:
        """An answer to it as a line of a file."""
        about = {"id": self.name} if self.name else {}
        said = {"answer": reply.text, **{key: value for key, value in reply.to_json().items() if key != "text"}}
        return {**about, "prompt": self.conversation[-1]["content"], **said}


def read_questions(path: Path, samples: int | None = None) -> list[Question]:
    """The questions of a file or folder, `samples` of them evenly spread; a reply that ends one is left out.

    Raises MinitronError where there are none, one cannot be read, or one needs tools, images or sound."""
    found = [_question(row) for row in _rows(path)]
    if not found:
        raise MinitronError(f"{path} holds no prompts; give another file.")
    if samples is None or samples >= len(found):
        return found
    return [found[place * len(found) // samples] for place in range(samples)]


def _rows(path: Path) -> Iterator[Row]:
    for file in Source(str(path)).files():
        for row in rows(file):
            if row.flaw:
                raise MinitronError(f"{row.where} {row.flaw}; fix or remove it.")
            yield row


def _question(row: Row) -> Question:
    if isinstance(row.value, dict):
        refuse_unseen(row.where, row.value)
    record = record_of(row, PROMPTS)
    if record is None:
        raise MinitronError(
            f"{row.where} has no `prompt`, `messages`, `conversations`, `instruction` or `text` with words; fix or "
            "remove it."
        )
    messages = ({"role": "user", "content": record.text},) if record.text is not None else record.messages
    conversation = as_question(row.where, messages)
    about: Mapping[str, Any] = row.value if isinstance(row.value, dict) else {}
    return Question(row.where, conversation, _named(about, _GROUPS), _named(about, _IDS))


def as_question(where: str, messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Messages up to the last of a user's; raises MinitronError where one is no text, or there is none."""
    kept = list(messages)
    while kept and kept[-1].get("role") == "assistant":
        kept.pop()
    for message in kept:
        role, content = message.get("role"), message.get("content")
        if role == "tool" or role == "function" or message.get("tool_calls"):
            raise MinitronError(f"{where} uses tools, and answers with tools are not judged; remove it.")
        if role not in _ROLES or not isinstance(content, str):
            raise MinitronError(f"{where} has a message of the role {role!r:.40} or without text; fix or remove it.")
        if flaw := no_text(content):
            raise MinitronError(f"{where} {flaw}; fix or remove it.")
    if not kept or kept[-1]["role"] != "user" or not kept[-1]["content"].strip():
        raise MinitronError(f"{where} does not end with what a user asks; fix or remove it.")
    return tuple({"role": message["role"], "content": message["content"]} for message in kept)


def refuse_unseen(where: str, row: Mapping[str, Any]) -> None:
    """Raise MinitronError where a row holds tools, or what is seen or heard."""
    if row.get("tools") or row.get("functions"):
        raise MinitronError(f"{where} offers tools, and answers with tools are not judged; remove it.")
    for key in ("image", "images", "video", "videos", "audio", "audios"):
        if row.get(key):
            raise MinitronError(f"{where} shows something ({key}), and text alone is judged; remove it.")
    for key in ("messages", "conversations", "prompt", "context", "conversation_input"):
        value = row.get(key)
        value = _parsed(value)
        for message in value if isinstance(value, list) else ():
            content = message.get("content", message.get("value")) if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in _SEEN:
                    raise MinitronError(f"{where} shows something ({kind}), and text alone is judged; remove it.")


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value


def _named(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    for key in keys:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def read_answers(path: Path, questions: Sequence[Question]) -> list[Reply]:
    """The answers in a file, one for each of the questions: by their ids where both have them, else in order.

    Raises MinitronError where there are more or fewer, one is no text, or one says that it answers another prompt."""
    found = list(_answers(path))
    by_name = {_named(about, _IDS): (where, about, reply) for where, about, reply in found}
    named = len(by_name) == len(found) and "" not in by_name and all(question.name for question in questions)
    if named and all(question.name in by_name for question in questions):
        chosen = [by_name[question.name] for question in questions]
    elif len(found) == len(questions):
        chosen = found
    else:
        raise MinitronError(
            f"{path} has {len(found)} answers and there are {len(questions)} prompts; give one for each in their "
            "order, or `id` in both files."
        )
    for question, (where, about, _) in zip(questions, chosen, strict=True):
        prompt = about.get("prompt")
        if isinstance(prompt, str) and prompt != question.conversation[-1]["content"]:
            raise MinitronError(f"{where} answers another prompt than {question.where} has; put them in one order.")
    return [reply for _, _, reply in chosen]


def _answers(path: Path) -> Iterator[tuple[str, Mapping[str, Any], Reply]]:
    for row in _rows(path):
        about = row.value if isinstance(row.value, dict) else {}
        text = row.value if isinstance(row.value, str) else _answer(about)
        if text is None:
            raise MinitronError(f"{row.where} has no `answer` (or response, output, messages); fix or remove it.")
        if flaw := no_text(text):
            raise MinitronError(f"{row.where} {flaw}; fix or remove it.")
        tokens, thought = (_count(about.get(key)) for key in ("tokens", "thinking_tokens"))
        finished, cut = about.get("finished") is not False, about.get("cut_thinking") is True
        yield row.where, about, Reply(text, tokens, thought, finished, cut)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _answer(row: Mapping[str, Any]) -> str | None:
    for key in _ANSWERS:
        if isinstance(row.get(key), str):
            return str(row[key])
    messages = _parsed(row.get("messages"))
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return str(last["content"])
    return None
