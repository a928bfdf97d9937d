"""A model behind an OpenAI-compatible endpoint, such as `vllm serve`: URL#MODEL.

Keys come from the environment alone and are written nowhere.  Statuses that pass (429, 5xx), timeouts and broken
connections are tried again by the client, and so is here what is no reply at all: half a document, a page of HTML.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from judge.contests import Conversation
from judge.parsing import without_thoughts
from judge.speaking import Keep, Reply, Speaking
from minitron.errors import MinitronError, require_least
from minitron.escapes import one_line

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SCHEMES: Final = ("http://", "https://")

_LARGEST: Final = 2**24
"""Bytes of a reply."""

_LONGEST_WAIT: Final = 120.0
"""Seconds that the client waits, at most, where a server says when to try again."""

_PAUSE: Final = 0.5
"""Seconds before what is no reply is asked for again; each time twice as long."""

_REFUSED: Final = (400, 413, 422)
"""Statuses by which a server says that it will not answer this conversation, such as one that is too long."""

_SAID: Final = 200
"""Characters of what a server says that are told."""


@dataclass(frozen=True)
class Asking:
    """How an endpoint is asked."""

    concurrency: int = 8
    """Requests at the same time."""

    retries: int = 4
    """How often a request is tried again."""

    timeout: float = 600.0
    """Seconds in which a reply must be there."""

    def __post_init__(self) -> None:
        require_least(self, {"concurrency": 1, "retries": 0})
        if not self.timeout > 0:
            raise MinitronError(f"the timeout is {self.timeout} s; give more than 0.")


class _NoReplyError(Exception):
    """What came is no reply."""


def is_url(place: str) -> bool:
    """Whether a model is named by an endpoint."""
    return place.lower().startswith(SCHEMES)


def parse_url(place: str) -> tuple[str, str]:
    """(the endpoint, the model's name there, empty for the only one); raises MinitronError for a key in the address."""
    url, _, model = place.partition("#")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise MinitronError(f"{place!r:.80} is no address ({error}); write http://HOST:PORT/v1#MODEL.") from None
    if not parts.hostname:
        raise MinitronError(f"{place!r:.80} names no host; write http://HOST:PORT/v1#MODEL.")
    if parts.username or parts.password or parts.query:
        raise MinitronError(
            f"the address of {parts.hostname} holds a name, a key or a query, and addresses are written into results; "
            "drop that, and put the key into the environment."
        )
    return url.rstrip("/"), model


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked over HTTP."""

    place: str
    """URL#MODEL; without a model the only one that is served there."""

    speaking: Speaking
    asking: Asking
    key_variable: str = "MINITRON_JUDGE_KEY"
    """The environment variable in which a key is looked for."""

    specials: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The model, and where it is."""
        return f"{self.model} at {self.url}"

    @property
    def url(self) -> str:
        """The endpoint."""
        return parse_url(self.place)[0]

    @cached_property
    def model(self) -> str:
        """The name of the model; raises MinitronError where none was given and there is not exactly one."""
        return parse_url(self.place)[1] or asyncio.run(self._only_model())

    @property
    def identity(self) -> Mapping[str, Any]:
        """The endpoint's model and how it speaks; no key."""
        return {"url": self.url, "model": self.model, "speaking": vars(self.speaking)}

    @cached_property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "")

    def _client(self) -> AsyncOpenAI:
        client: AsyncOpenAI = _openai().AsyncOpenAI(
            base_url=self.url,
            # The client insists on one, and would take OPENAI_API_KEY: a key is for the host it was meant for.
            api_key=self._key or "none",
            timeout=self.asking.timeout,
            max_retries=self.asking.retries,
        )
        return client

    @property
    def _limit(self) -> float:
        """Seconds for a request with all that the client does to repeat it: a server that sends a byte now and then
        is never silent for as long as a timeout."""
        return (self.asking.retries + 1) * self.asking.timeout + self.asking.retries * _LONGEST_WAIT

    async def _only_model(self) -> str:
        async with self._client() as client:
            found = await self._tried(lambda: client.models.with_raw_response.list(), _models)
        if len(found) != 1:
            raise MinitronError(
                f"{self.url} serves {len(found)} models ({', '.join(found[:4])}); name one: {self.url}#MODEL."
            )
        return str(found[0])

    def speak(self, conversations: Sequence[Conversation], missing: Sequence[int], keep: Keep) -> None:
        """Ask for the missing replies, several at a time; raises MinitronError where the endpoint does not answer."""
        _ = self.model  # before the loop of its own
        try:
            asyncio.run(self._speak(conversations, missing, keep))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _speak(self, conversations: Sequence[Conversation], missing: Sequence[int], keep: Keep) -> None:
        waiting: Iterator[int] = iter(missing)

        async def work(client: AsyncOpenAI) -> None:
            for number in waiting:
                keep(number, await self._reply(client, conversations[number]))

        async with self._client() as client, asyncio.TaskGroup() as group:
            for _ in range(min(self.asking.concurrency, len(missing))):
                group.create_task(work(client))

    async def _reply(self, client: AsyncOpenAI, conversation: Conversation) -> Reply:
        speaking = self.speaking
        drawn = {"top_p": speaking.top_p, "seed": speaking.seed} if speaking.temperature else {}
        budget = speaking.max_thinking_tokens
        most = speaking.max_tokens + (budget or 0)
        # vLLM's field; --reasoning-config tells the server where a thought ends.
        extra = {} if budget is None else {"thinking_token_budget": budget}
        sent: Any = [{"role": message["role"], "content": message["content"]} for message in conversation]

        async def send() -> Any:
            return await client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=sent,
                max_tokens=most,
                temperature=speaking.temperature,
                extra_body=extra,
                **drawn,
            )

        openai = _openai()
        try:
            found: Reply = await self._tried(send, self._said)
            return found
        except openai.APIStatusError as error:
            return Reply("", refused=self._told(error))

    async def _tried(self, send: Any, read: Any) -> Any:
        """What `read` makes of the document that is sent back, after as many tries as there are."""
        openai = _openai()
        for tries in range(1, self.asking.retries + 2):
            try:
                with self._failures():
                    async with asyncio.timeout(self._limit):
                        return read(_document((await send()).http_response.content))
            except _NoReplyError as error:
                if tries > self.asking.retries:
                    raise MinitronError(
                        f"{self.url} answers what is no reply ({error}), {tries} times; check the address, which ends "
                        "in /v1 for most servers, and run again: what was answered so far is kept."
                    ) from None
                await asyncio.sleep(_PAUSE * 2 ** (tries - 1))
        raise openai.OpenAIError("there was no try")  # retries are never below 0

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Tell as one sentence what no further try will mend."""
        openai = _openai()
        again = "run again: what was answered so far is kept"
        try:
            yield
        except openai.APIStatusError as error:
            status, told = error.status_code, self._told(error)
            if status in _REFUSED:
                raise
            if status in (401, 403):
                known = "is not taken" if self._key else "is not set"
                raise MinitronError(f"{told}: the key in {self.key_variable} {known}; set it, and {again}.") from None
            if status == 404:
                raise MinitronError(
                    f"{told}: there is no such path or model; check the address, which ends in /v1 for most servers, "
                    "and the name behind #."
                ) from None
            raise MinitronError(f"{told}, {self._tries}; {again}.") from None
        except (openai.APITimeoutError, TimeoutError):
            raise MinitronError(
                f"{self.url} did not answer within {self.asking.timeout:g} s, {self._tries}; raise --timeout, and "
                f"{again}."
            ) from None
        except openai.APIConnectionError as error:
            cause = one_line(str(error.__cause__ or error))[:_SAID]
            raise MinitronError(
                f"{self.url} cannot be reached ({cause}), {self._tries}; start the server or correct the address, and "
                f"{again}."
            ) from None

    @property
    def _tries(self) -> str:
        return {0: "once", 1: "twice"}.get(self.asking.retries, f"{self.asking.retries + 1} times")

    def _told(self, error: Any) -> str:
        """A status and what came with it, without the key: servers repeat what they were sent."""
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.response.text)
        said = one_line(said.replace(self._key, "...") if self._key else said)
        said = re.sub(r"<[^>]*>", " ", said).strip()[:_SAID]
        return f"{self.url} answers {error.status_code}" + (f" ({said})" if said else "")

    def _said(self, document: Mapping[str, Any]) -> Reply:
        named = document.get("model")
        if isinstance(named, str) and named and not _is_same(self.model, named):
            raise MinitronError(
                f"{self.url} was asked for the model {self.model!r:.80} and answers as {named!r:.80}; write "
                f"{self.url}#MODEL with the name it serves."
            )
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise _NoReplyError("it has no choices with a message")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise _NoReplyError("its content is no text")
        usage = document.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        details = usage.get("completion_tokens_details")
        thought = details.get("reasoning_tokens") if isinstance(details, dict) else None
        return Reply(
            _sound(without_thoughts(content or "")[1].strip()),
            tokens=_count(usage.get("completion_tokens")),
            thinking_tokens=_count(thought),
            finished=choice.get("finish_reason") != "length",
        )


def _is_same(asked: str, named: str) -> bool:
    """Hosts answer with the version of a model that was asked for by its short name: gpt-x as gpt-x-2026-01-01."""
    return named == asked or named.startswith(f"{asked}-")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _sound(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can spell and nothing can send."""
    return text.encode("utf-8", "replace").decode()


def _document(body: bytes) -> Mapping[str, Any]:
    if len(body) > _LARGEST:
        raise _NoReplyError(f"it has {len(body):,} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        start = one_line(body[:80].decode("utf-8", "replace"))
        raise _NoReplyError(f"it is no JSON and begins {start!r}") from None
    if not isinstance(found, dict):
        raise _NoReplyError("it is no JSON object")
    return found


def _models(document: Mapping[str, Any]) -> list[str]:
    data = document.get("data")
    if not isinstance(data, list):
        raise _NoReplyError("it lists no models")
    return [str(one["id"]) for one in data if isinstance(one, dict) and isinstance(one.get("id"), str)]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of what several requests failed with: they fail alike."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise MinitronError(
            f"endpoints are asked by the package openai, which cannot be imported ({error}); run "
            "`pip install 'minitron[judge]'`."
        ) from None
    module: ModuleType = openai
    return module
