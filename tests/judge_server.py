"""A server that speaks OpenAI's API on this machine and plays a judge, or models that answer: /v1/chat/completions."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BRANCH = "[FOCUS]\naccuracy, logic\n[END FOCUS]\n[ANSWER 1]\nnone\n[END ANSWER 1]\n[ANSWER 2]\nnone\n[END ANSWER 2]"
RANKING = "I checked both.\n[RANKING]\n\\boxed{{{}}}\n[END RANKING]"

GOOD = "GOOD"
"""Stands in the better of two answers."""

Behaviour = Callable[[list[dict[str, str]]], str]
"""The messages of a request -> what is said."""


def turn_of(messages: list[dict[str, str]]) -> int:
    """1 for a first turn, 2 for a second, 0 for a judge that reads once, -1 for a question to a model."""
    last = messages[-1]["content"]
    if "[RANKING]" in last:
        return 2 if len(messages) > 1 else 0
    return 1 if "[FOCUS]" in last else -1


def shown_answers(messages: list[dict[str, str]]) -> tuple[str, str]:
    """The answers that a judge was given, found by the fences of the request."""
    text = messages[0]["content"]
    code = re.search(r"marked with the code (\w+)", text)
    assert code is not None
    found = [
        re.search(rf"===== answer {n} {code[1]} =====\n(.*?)\n===== end of answer {n} {code[1]} =====", text, re.DOTALL)
        for n in (1, 2)
    ]
    assert found[0] is not None and found[1] is not None
    return found[0][1], found[1][1]


def right(messages: list[dict[str, str]]) -> str:
    """Prefers the answer with GOOD in it; a model that is asked a question says it in words of its own."""
    if turn_of(messages) == -1:
        return f"My answer to: {messages[-1]['content']}"
    if turn_of(messages) == 1:
        return BRANCH
    return RANKING.format(1 if GOOD in shown_answers(messages)[0] else 2)


def biased(messages: list[dict[str, str]]) -> str:
    """Always prefers the answer that it reads first."""
    return BRANCH if turn_of(messages) == 1 else RANKING.format(1)


def broken(messages: list[dict[str, str]]) -> str:
    """Never keeps to the format."""
    return "Answer 1 is better."


@dataclass
class JudgeServer:
    """What it says and what it was asked."""

    says: Behaviour = right
    model: str = "judge-8b"
    """The one that it lists."""

    named: str = ""
    """The model that it says it is; empty for what was asked for."""

    statuses: list[int] = field(default_factory=list)
    """Answered first, one after the other, before it says anything."""

    bodies: list[bytes] = field(default_factory=list)
    """Sent first, with status 200, in place of a document."""

    delay: float = 0.0
    """Seconds before it answers."""

    refuse_after: int | None = None
    """The number of replies after which everything is answered with 500."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests."""

    keys: set[str] = field(default_factory=set)
    """What stood in their Authorization."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def place(self) -> str:
        """As it is typed."""
        return f"{self.url}#{self.model}"


@contextmanager
def serving(**how: Any) -> Iterator[JudgeServer]:
    """Serve until the block ends."""
    state = JudgeServer(**how)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _send(self, 200, json.dumps({"data": [{"id": state.model}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append(body)
                state.keys.add(self.headers.get("Authorization", ""))
                status = state.statuses.pop(0) if state.statuses else 200
                raw = state.bodies.pop(0) if state.bodies else None
                if state.refuse_after is not None and len(state.asked) > state.refuse_after:
                    status = 500
            if state.delay:
                closing.wait(state.delay)
            if status != 200:
                error = {"error": {"message": f"no, {self.headers.get('Authorization')}"}}
                return _send(self, status, json.dumps(error).encode())
            return _send(self, 200, raw if raw is not None else _completion(state, body))

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        closing.set()
        server.shutdown()
        server.server_close()


def _completion(state: JudgeServer, body: dict[str, Any]) -> bytes:
    said = state.says(body["messages"])
    document = {
        "id": "1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": state.named or body["model"],
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": len(said.split()), "total_tokens": 1},
    }
    return json.dumps(document).encode()


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.send_header("Retry-After", "0.02")
    request.end_headers()
    try:
        request.wfile.write(data)
    except (BrokenPipeError, ConnectionResetError):
        request.close_connection = True
