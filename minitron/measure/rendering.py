"""Conversations as text, by the chat template of the tokenizer: a program that came with the model.

It runs in jinja's sandbox and in a process of its own, which is a copy of this one and is ended when a conversation
takes more time or memory than any template needs: a template may loop for ever, or make ten gigabytes of one line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from minitron.errors import MinitronError
from minitron.measure.records import Message, Record
from minitron.units import format_bytes

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from transformers import PreTrainedTokenizerBase

SECONDS: Final = 10
"""Processor time for one conversation: most take a thousandth of one."""

_WALL_SECONDS: Final = 20 * SECONDS
"""The same on a clock, for a machine that has other things to do."""

MEMORY: Final = 2**30
"""Bytes for one conversation, beside those that the process has."""

ADDED: Final = 2**20
"""Characters that a template may write beside those of a conversation."""

TIMES: Final = 16
"""How often it may write these."""

_MARKS: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Where a template says itself what the assistant says."""


class BrokenRecordError(Exception):
    """A record that no text can be made of; says what is wrong with it."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it."""

    text: str

    answers: tuple[tuple[int, int], ...] = ()
    """Where the characters of the assistant's words begin and end, where the template marks them and was asked."""


class Renderer:
    """Makes texts of records with the chat template of one tokenizer; to be used in a `with` block.

    The process is started for the first conversation: plain texts need none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def text(self, record: Record, messages: Sequence[Message] | None = None, *, prompt: bool = False) -> str:
        """A record as text: a conversation as the chat template writes it, with its tools; or only the given `messages`
        of it, and with `prompt` what comes before the next answer.

        Raises BrokenRecordError for a conversation that the template refuses or does not end with, MinitronError where
        there is none."""
        if record.text is not None:
            return record.text
        return self._render(record, list(record.messages if messages is None else messages), prompt, marked=False).text

    def marked(self, record: Record) -> Rendered | None:
        """A conversation with the places of the assistant's words; None where the template does not mark them."""
        template = self._template(record)
        if _MARKS.search(template) is None:
            return None
        return self._render(record, list(record.messages), False, marked=True)

    def _template(self, record: Record) -> str:
        if not self.tokenizer.chat_template:
            raise MinitronError(
                f"{record.where} is a conversation, but the tokenizer has no chat template; give a tokenizer with one, "
                "or plain text."
            )
        try:
            template: str = self.tokenizer.get_chat_template(tools=record.template.get("tools"))
        except ValueError as error:
            raise MinitronError(f"the tokenizer's chat template cannot be used ({error}); correct it.") from error
        return template

    def _render(self, record: Record, messages: list[Message], prompt: bool, *, marked: bool) -> Rendered:
        job = {
            **self.tokenizer.special_tokens_map,
            **record.template,
            "chat_template": self._template(record),
            "conversations": [messages],
            "add_generation_prompt": prompt,
            "return_assistant_tokens_mask": marked,
        }
        most = ADDED + TIMES * (record.length + len(str(record.template)))
        connection = self._started()
        try:
            connection.send((job, most))
            if not connection.poll(_WALL_SECONDS):
                raise EOFError
            answer = json.loads(connection.recv_bytes())
        except RecursionError:
            raise BrokenRecordError("is nested too deeply for the chat template") from None
        except (EOFError, OSError):
            self._end()
            raise BrokenRecordError(
                f"needs more than {SECONDS} s or {format_bytes(MEMORY)} in the chat template, which does not end or "
                "makes too much of it"
            ) from None
        if "refusal" in answer:
            raise BrokenRecordError(f"is refused by the chat template ({answer['refusal']})")
        return Rendered(answer["text"], tuple((start, stop) for start, stop in answer["answers"]))

    def _started(self) -> Connection:
        if self._connection is None:
            # A copy of this process: it has the library that renders already, and a new one would import for seconds.
            context = get_context("fork")
            ours, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, ours), daemon=True)
            self._process.start()
            theirs.close()
            self._connection = ours
        return self._connection

    def _end(self) -> None:
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._connection = self._process = None


def _serve(connection: Connection, other_end: Connection) -> NoReturn:
    """What the process does until its parent closes the connection or ends."""
    other_end.close()
    # Nothing of the parent's is to be torn down here, such as what lies on a GPU.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, _size() + MEMORY)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job, most = connection.recv()
            _limit(resource.RLIMIT_CPU, int(_seconds()) + 1 + SECONDS)
            connection.send_bytes(json.dumps(_answer(job, most)).encode("ascii"))
    os._exit(0)


def _answer(job: dict[str, Any], most: int) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, answers = render_jinja_template(**job)
    except MemoryError:
        return {"refusal": f"it needs more than {format_bytes(MEMORY)}"}
    except Exception as error:  # noqa: BLE001 -- a template is a program, which may raise whatever there is
        return {"refusal": f"{error}"[:1000] or type(error).__name__}
    if len(texts[0]) > most:
        return {"refusal": f"it makes {len(texts[0]):,} characters of it, more than {most:,}"}
    return {"text": texts[0], "answers": answers[0] if answers else []}


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _size() -> int:
    """Bytes of addresses that this process has; on a system that does not tell, as many as any has."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.is_file() else 2**46


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
