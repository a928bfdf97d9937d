"""Records of text and conversations, and where they come from; broken ones are counted and named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from minitron.errors import MinitronError
from minitron.files import file_hash
from minitron.measure.rows import KINDS, Row, is_data, rows, rows_from_hub

NAMED: Final = 5
"""Broken records that are told by name."""

HUB: Final = "hf:"
"""Before the name of a dataset on the Hugging Face hub."""

Message = dict[str, Any]
"""`role`, `content`, and what else a chat template may show: `tool_calls`, `reasoning_content`, `name`."""

UNREADABLE: Final = (
    "has no string `text`, no `messages` or `conversations` with role and content, no `prompt` and `completion`, and "
    "no `instruction` and `output`, or its content is no text"
)


@dataclass(frozen=True)
class Record:
    """A text, or a conversation."""

    where: str
    """The file and the line or number, for messages."""

    text: str | None = None
    messages: tuple[Message, ...] = ()
    """The messages of a conversation; empty for a text."""

    template: Mapping[str, Any] = field(default_factory=dict)
    """What else the chat template is given: `tools`, `documents`."""

    @property
    def length(self) -> int:
        """Its characters, markup left out."""
        if self.text is not None:
            return len(self.text)
        return sum(len(str(value)) for message in self.messages for value in message.values())

    def row(self) -> dict[str, Any]:
        """The record as a line of .jsonl gives it."""
        if self.text is not None:
            return {"text": self.text}
        return {"messages": list(self.messages), **self.template}


@dataclass(frozen=True)
class Source:
    """Where records come from."""

    place: str
    """A file, a folder, or `hf:owner/name`."""

    weight: float = 1.0
    """Its share of a blend, beside those of the others."""

    domain: str = ""
    """Whose teacher it is read with, where a distillation has several; empty for text of no domain."""

    @property
    def path(self) -> Path | None:
        """The file or folder; None for a dataset on the hub."""
        return None if self.place.startswith(HUB) else Path(self.place)

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.place if self.path is None else self.path.name

    def files(self) -> list[Path]:
        """The files to read, in order; raises MinitronError where there are none."""
        path = self.path
        if path is None:
            return []
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.rglob("*") if is_data(file))
        if not found:
            raise MinitronError(f"{path} holds no {', '.join(KINDS)} file; give another folder.")
        return found

    def fingerprint(self) -> str:
        """The SHA-256 of a file, of a folder's names and files, or of a dataset's name."""
        if self.path is not None and self.path.is_file():
            return file_hash(self.path)
        parts = [self.place] if self.path is None else []
        for file in self.files():
            if not file.is_file():
                raise MinitronError(
                    f"{file} does not exist; give text, JSON, .csv or .parquet files, or a folder of them."
                )
            assert self.path is not None
            parts += [file.relative_to(self.path).as_posix(), file_hash(file)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parse_source(typed: str) -> Source:
    """`[DOMAIN=][WEIGHT:]PATH`; raises MinitronError for a weight that is not above zero."""
    domain, path = parse_domain(typed)
    return replace(_weighted(path), domain=domain)


def parse_domain(typed: str) -> tuple[str, str]:
    """(domain, the rest) of `DOMAIN=...`; of a path that has the sign in its name, and of any other, no domain."""
    found = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", typed)
    return ("", typed) if found is None or Path(typed).exists() else (found[1], found[2])


def _weighted(typed: str) -> Source:
    found = re.fullmatch(r"([0-9]*\.?[0-9]+):(.+)", typed)
    if found is None:
        return Source(typed)
    if not float(found[1]) > 0:
        raise MinitronError(f"{typed}: the weight {found[1]} is not positive; give one above 0, or drop it.")
    return Source(found[2], float(found[1]))


@dataclass
class Broken:
    """Records that could not be read."""

    limit: int = 0
    """One more raises MinitronError."""

    option: str = ""
    """The option that sets the limit; empty where a command has none."""

    count: int = 0
    named: list[str] = field(default_factory=list)
    """The first of them: where, and what is wrong."""

    def add(self, where: str, what: str) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(f"{where} {what}")
        if self.count > self.limit and self.option:
            raise MinitronError(
                f"{self.count} records are broken, the first {self.named[0]}; fix them or raise {self.option}."
            )
        if self.count > self.limit:
            raise MinitronError(f"{self.named[0]}; fix or remove it.")


def records(source: Source, broken: Broken) -> Iterator[Record]:
    """All records of a source, in order: a text file is one, and so is each line, row or element of other kinds.

    Raises MinitronError where a file is missing or no text, and past the limit of `broken`."""
    if source.path is None:
        yield from _read(rows_from_hub(source.place.removeprefix(HUB)), broken)
    for file in source.files():
        yield from _read(rows(file), broken)


def _read(found: Iterator[Row], broken: Broken) -> Iterator[Record]:
    for row in found:
        record = None if row.flaw else record_of(row)
        if record is None:
            broken.add(row.where, row.flaw or UNREADABLE)
        elif flaw := no_text(record.text or ""):
            broken.add(row.where, flaw)
        else:
            yield record


def no_text(text: str) -> str:
    """Why a string is no Unicode text; empty where it is one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half a surrogate pair ({text[error.start]!r}), which is no character"
    return ""


def record_of(row: Row, dialects: Sequence[Dialect] | None = None) -> Record | None:
    """The record that a row of a file is, in one of the dialects of training text unless others are given; None where
    it is none."""
    if isinstance(row.value, str):
        return Record(row.where, row.value)
    if not isinstance(row.value, dict):
        return None
    for read in _DIALECTS if dialects is None else dialects:
        found = read(row.value)
        if isinstance(found, str):
            return Record(row.where, found)
        if found:
            template = {key: _parsed(row.value[key]) for key in ("tools", "documents") if row.value.get(key)}
            more = row.value.get("chat_template_kwargs")
            own = more.items() if isinstance(more, dict) else ()
            return Record(
                row.where, None, tuple(found), {**template, **{key: one for key, one in own if key not in _RESERVED}}
            )
    return None


_RESERVED: Final = frozenset(
    {
        *("conversation", "conversations", "messages", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "return_assistant_tokens_mask"),
    }
)
"""What a record may not decide of its rendering."""

Found = str | list[Message] | None

Dialect = Callable[[Mapping[str, Any]], Found]
"""Reads a row: a text, a conversation, or None where it is written in another way."""


def _messages(row: Mapping[str, Any]) -> Found:
    return _conversation(row.get("messages"))


def _conversations(row: Mapping[str, Any]) -> Found:
    """`conversations`, as ShareGPT and its followers spell it: `from` and `value`, with roles of their own."""
    found = _parsed(row.get("conversations"))
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        return None
    turns = [
        {"role": _SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn.get("value")}
        if "from" in turn
        else turn
        for turn in found
    ]
    system = row.get("system")
    return _conversation(
        [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system else turns
    )


_SHAREGPT: Final = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


def _text(row: Mapping[str, Any]) -> Found:
    text = row.get("text")
    return text if isinstance(text, str) else None


def _completion(row: Mapping[str, Any]) -> Found:
    """`prompt` and `completion`: texts that follow each other, or parts of one conversation."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    one, other = _conversation(prompt), _conversation(completion)
    return one + other if one and other else None


def _instruction(row: Mapping[str, Any]) -> Found:
    """`instruction`, often `input`, and `output`, as Alpaca has them."""
    instruction, given, output = (row.get(key) or "" for key in ("instruction", "input", "output"))
    if not all(isinstance(part, str) for part in (instruction, given, output)) or not instruction or not output:
        return None
    asked = f"{instruction}\n\n{given}" if given else instruction
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": output}]


def _prompt(row: Mapping[str, Any]) -> Found:
    """`prompt` or `question` alone, a text or a conversation; what answers it is not read."""
    for key in ("prompt", "question"):
        prompt = row.get(key)
        if (found := _conversation(prompt)) is not None:
            return found
        if isinstance(prompt, str) and prompt.strip():
            return prompt
    return None


def _asked(row: Mapping[str, Any]) -> Found:
    """`instruction` and often `input`, without the `output`."""
    found = _instruction({**row, "output": "-"})
    return found[:1] if isinstance(found, list) else None


_DIALECTS: Final[tuple[Dialect, ...]] = (_messages, _conversations, _text, _completion, _instruction)

PROMPTS: Final[tuple[Dialect, ...]] = (_prompt, _messages, _conversations, _asked, _text)
"""Of files of prompts."""


def _parsed(value: Any) -> Any:
    """A list that a table keeps as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except ValueError:
            return None
    return value


def _conversation(value: Any) -> list[Message] | None:
    found = _parsed(value)
    if not isinstance(found, list) or not found:
        return None
    wanted = [_message(message) for message in found]
    return [message for message in wanted if message is not None] if None not in wanted else None


def _message(message: Any) -> Message | None:
    """A message as chat templates expect it; None for one that says nothing.

    An absent content is the empty text: templates that join strings would write `None`.  Parts of text are joined, as
    templates that know parts do: others would write the list.  The arguments of a tool call are the mapping that
    templates write as JSON, where an API gives them as text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return None
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not (calls or message.get("reasoning_content")):
        return None
    if isinstance(content, list):
        content = _joined(content)
    if not (content is None or isinstance(content, str)) or not isinstance(
        message.get("reasoning_content"), str | None
    ):
        return None
    found = {key: value for key, value in message.items() if value is not None} | {"content": content or ""}
    if calls is not None and not isinstance(calls, list):
        return None
    if calls:
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _joined(parts: list[Any]) -> str | Literal[False]:
    """Parts of text as one; False where one is no text."""
    said = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in said if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(said) else False


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
