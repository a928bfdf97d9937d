"""A server that speaks the completions part of OpenAI's API, for tests: well, or as a list of replies says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Choice = dict[str, Any]


@dataclass
class Completions:
    """What it serves and what it was asked."""

    answer: Callable[[list[list[int]], int], list[Choice]]
    """(prompts, most tokens) -> choices, which get their index."""

    models: tuple[str, ...] = ("student",)
    key: str = ""
    """Where one is set, nothing is served without it."""

    strict: bool = False
    """Whether it refuses fields that OpenAI's own does not know."""

    replies: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)
    """(status, body, headers) that come first; status 0 hangs, -1 breaks off in the middle."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def serving(server: Completions) -> Iterator[Completions]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _send(self, server, {"data": [{"id": name} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            if server.strict and "return_token_ids" in body:
                return _reply(self, 400, '{"error": "unknown field return_token_ids"}', {})
            choices = server.answer(body["prompt"], body["max_tokens"])
            # As several of them may be worked on at once, they come in any order.
            _send(self, server, {"choices": [one | {"index": i} for i, one in enumerate(choices)][::-1]})
            return None

        def log_message(self, format: str, *args: Any) -> None:
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


def _send(request: BaseHTTPRequestHandler, server: Completions, document: Any) -> None:
    server.keys.append(request.headers.get("Authorization"))
    if server.key and server.keys[-1] != f"Bearer {server.key}":
        return _reply(request, 401, "who are you?", {})
    if not server.replies:
        return _reply(request, 200, json.dumps(document), {"Content-Type": "application/json"})
    status, body, headers = server.replies.pop(0)
    if status == 0:
        time.sleep(1.0)
        request.close_connection = True
        return None
    if status == -1:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(body.encode())
        request.close_connection = True
        return None
    return _reply(request, status, body, headers)


def _reply(request: BaseHTTPRequestHandler, status: int, body: str, headers: dict[str, str]) -> None:
    data = body.encode()
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
