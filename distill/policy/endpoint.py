"""Answers of an OpenAI-compatible endpoint, such as vLLM, that serves the student: POST URL/completions with the tokens
of prompts, and back come tokens, or text where the server knows no tokens.

It serves the student as it was when the server was started: how far that is from the student in training is measured
from the log-probabilities that it sends along (`said`).  A key comes from the environment alone.

Shape letters: S sequences, P tokens of a prompt, A of the longest answer.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distill.policy import KEY
from distill.policy.prompts import until_stop
from minitron.errors import MinitronError
from minitron.escapes import one_line
from minitron.measure.text import BrokenRecordError, token_ids

_LARGEST: Final = 2**26
"""Bytes of a reply: a thousand answers of a thousand tokens with their log-probabilities."""

_LONGEST_PAUSE: Final = 60.0
"""Seconds that a server may ask for before the next try."""

_SHOWN: Final = 200
"""Characters of what a server says that are shown."""

_STRICT: Final = (400, 422)
"""What a server answers that refuses fields it does not know."""

_BEYOND: Final[dict[str, Any]] = {"return_token_ids": True, "skip_special_tokens": False, "logprobs": 1}
"""Fields that not every server knows: vLLM's for tokens instead of text, and log-probabilities."""


class EndpointError(MinitronError):
    """The endpoint does not answer, or not so that it can be used."""


class _TryAgain(EndpointError):
    """What may be otherwise at the next try."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass
class EndpointAnswers:
    """A server that answers prompts."""

    url: str
    """Up to what stands before `/completions`: http://localhost:8000/v1."""

    model: str | None
    """The name under which it serves the student; None asks it, where it serves one alone."""

    tokenizer: PreTrainedTokenizerBase
    """The student's, for servers that send text."""

    stops: frozenset[int]
    """Tokens that end an answer."""

    known_tokens: int
    """Tokens that both student and teacher know."""

    length: int
    """A."""

    temperature: float = 1.0

    patience: float = 300.0
    """Seconds for one reply, from the first byte asked for to the last received."""

    tries: int = 5
    pause: float = 1.0
    """Seconds before the second try; each pause is twice the one before."""

    sleep: Callable[[float], None] = time.sleep

    said: list[list[float] | None] = field(default_factory=list, init=False)
    """Of the last answers the log-probabilities of their tokens, each in nats; None where they did not come along."""

    _beyond: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Raise MinitronError for what is no address, or holds a key."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MinitronError(
                f"--on-policy-endpoint {one_line(self.url)} is no address; write it like http://localhost:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise MinitronError(
                f"the address of --on-policy-endpoint holds a name, a key or a query; put a key into {KEY} and drop it "
                "from the address."
            )
        self.url = self.url.rstrip("/")

    @property
    def told(self) -> str | None:
        """What a user should know of the way it answers."""
        return None

    def answer(self, prompts: NDArray[np.int64], seed: int) -> list[list[int]]:
        """The answers to prompts [S, P], of at least one token.  Raises EndpointError where there are none."""
        if self.model is None:
            self.model = self._only_model()
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": prompts.tolist(),
            "max_tokens": self.length,
            "temperature": self.temperature,
            "top_p": 1.0,
            "n": 1,
            "seed": seed % 2**31,
        }
        choices = self._choices(self._patiently("completions", asked), len(prompts))
        self.said, found = [], []
        for choice in choices:
            answer, said = self._tokens(choice)
            found.append(answer)
            self.said.append(said)
        return found

    def _only_model(self) -> str:
        reply = self._patiently("models", None)
        names = [one.get("id") for one in _list(reply, "data") if isinstance(one, dict)]
        if len(names) != 1 or not isinstance(names[0], str):
            told = ", ".join(one_line(str(name)) for name in names[:5]) or "none"
            raise EndpointError(
                f"{self.url} serves {len(names)} models ({told}); give --on-policy-model the student's name there."
            )
        return names[0]

    def _choices(self, reply: Any, count: int) -> list[dict[str, Any]]:
        """The reply's choices in the order of the prompts."""
        choices = _list(reply, "choices")
        found = {one.get("index"): one for one in choices if isinstance(one, dict)}
        if len(choices) != count or found.keys() != set(range(count)):
            raise EndpointError(f"{self.url} sent {len(choices)} answers to {count} prompts; check which server it is.")
        return [found[number] for number in range(count)]

    def _tokens(self, choice: dict[str, Any]) -> tuple[list[int], list[float] | None]:
        """The tokens of an answer, and their log-probabilities where these are of the same tokens."""
        tokens, text, said = choice.get("token_ids"), choice.get("text"), None
        if tokens is not None:
            if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
                raise EndpointError(f"{self.url} sent token ids that are no numbers; check which server it is.")
            probabilities = choice.get("logprobs")
            said = _numbers(probabilities.get("token_logprobs")) if isinstance(probabilities, dict) else None
        elif isinstance(text, str):
            try:
                tokens = token_ids(self.tokenizer, text)
            except BrokenRecordError as error:
                raise EndpointError(f"{self.url} sent an answer that {error}; check which server it is.") from None
        else:
            raise EndpointError(f"{self.url} sent an answer without text or token ids; check which server it is.")
        end = min(self.stops, default=None)
        # Servers leave the token that ended an answer out of its text, and some of its tokens.
        if end is not None and choice.get("finish_reason") == "stop" and not (tokens and tokens[-1] in self.stops):
            tokens = [*tokens, end]
        tokens = until_stop(tokens[: self.length], self.stops)
        if any(not 0 <= token < self.known_tokens for token in tokens):
            raise EndpointError(f"{self.url} sent tokens that the student does not know; it must serve the student.")
        if not tokens:
            raise EndpointError(f"{self.url} sent an empty answer; it must serve the student, without a stop text.")
        return tokens, said

    def _patiently(self, path: str, asked: dict[str, Any] | None) -> Any:
        """The reply, after as many tries as it takes; raises EndpointError where none of them gave one."""
        pause = self.pause
        for number in range(1, self.tries + 1):
            try:
                return self._ask(path, asked)
            except _TryAgain as error:
                if number == self.tries:
                    raise EndpointError(
                        f"{self.url} gave no answer in {self.tries} tries ({error}); see what the server says, and run "
                        "the same command again to resume."
                    ) from None
                self.sleep(min(error.pause if error.pause is not None else pause, _LONGEST_PAUSE))
                pause *= 2
        raise AssertionError("unreachable: the last try returns or raises")

    def _ask(self, path: str, asked: dict[str, Any] | None) -> Any:
        """One try."""
        body = None if asked is None else asked | (_BEYOND if self._beyond else {})
        status, kind, after, data = self._exchange(path, body)
        text = data.decode("utf-8", errors="replace")
        shown = one_line(text[:_SHOWN]) or "nothing"
        if status == 429 or status >= 500:
            raise _TryAgain(f"it answers {status}: {shown}", after)
        if status in _STRICT and body is not None and self._beyond:
            self._beyond = False
            return self._ask(path, asked)
        if status in (401, 403):
            raise EndpointError(f"{self.url} refuses the key ({status}); put the right one into {KEY}.")
        if status != 200:
            raise EndpointError(
                f"{self.url}/{path} answers {status}: {shown}; check --on-policy-endpoint and --on-policy-model."
            )
        if "html" in kind or text.lstrip()[:1] == "<":
            raise EndpointError(
                f"{self.url}/{path} is a web page and no OpenAI-compatible server; the address ends in /v1 as a rule."
            )
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise _TryAgain(f"its reply breaks off or is no JSON: {shown}") from None

    def _exchange(self, path: str, body: dict[str, Any] | None) -> tuple[int, str, float | None, bytes]:
        """(status, content type, seconds it asks to wait, data) of one request."""
        ends, wait, data = time.monotonic() + self.patience, min(self.patience, 10.0), bytearray()
        try:
            with requests.request(
                "GET" if body is None else "POST",
                f"{self.url}/{path}",
                json=body,
                auth=_authorised,
                timeout=(wait, self.patience),
                stream=True,
                # A key must not follow to another host.
                allow_redirects=False,
            ) as reply:
                for part in reply.iter_content(2**16):
                    data += part
                    if len(data) > _LARGEST:
                        raise EndpointError(f"{self.url} sent more than {_LARGEST:,} bytes; check which server it is.")
                    if time.monotonic() > ends:
                        raise _TryAgain(f"it took more than {self.patience:g} s")
                after = _seconds(reply.headers.get("Retry-After"))
                return reply.status_code, reply.headers.get("Content-Type", ""), after, bytes(data)
        except requests.Timeout:
            raise _TryAgain(f"it took more than {self.patience:g} s") from None
        except requests.exceptions.InvalidURL:
            raise EndpointError(f"--on-policy-endpoint {one_line(self.url)} is no address; correct it.") from None
        except requests.RequestException as error:
            raise _TryAgain(f"it cannot be reached, or breaks off: {type(error).__name__}") from None


def _authorised(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """With the key of the environment, and with none from elsewhere, such as a .netrc."""
    if key := os.environ.get(KEY):
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def _list(reply: Any, name: str) -> list[Any]:
    found = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(found, list):
        raise EndpointError(f"the endpoint's reply has no {name}; check that it is an OpenAI-compatible server.")
    return found


def _numbers(values: Any) -> list[float] | None:
    """Finite numbers, or None for anything else."""
    if not isinstance(values, list):
        return None
    good = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return [float(value) for value in values] if good else None


def _seconds(text: str | None) -> float | None:
    """What Retry-After asks for, where it gives seconds."""
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def divergence(said: Sequence[Sequence[float] | None], own: Sequence[NDArray[np.float64]]) -> float | None:
    """How far the student that a server has is from the one in training, in nats a token: the mean over the tokens of
    its answers of log q_server - log q_student, which is KL(q_server || q_student) on average.  None where the server
    has sent no log-probabilities."""
    pairs = [
        np.asarray(theirs[: len(mine)]) - mine[: len(theirs)] for theirs, mine in zip(said, own, strict=True) if theirs
    ]
    return float(np.concatenate(pairs).mean()) if pairs else None
