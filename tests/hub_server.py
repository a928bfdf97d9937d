"""A server that speaks the hub's API for the folders of a directory: /api/models/ORG/NAME and /ORG/NAME/resolve/..."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves and what it was asked."""

    root: Path
    """ORG/NAME -> folders."""

    url: str = ""
    token: str = ""
    """Where one is set, nothing is served without it."""

    gated: bool = False
    ranges: bool = True
    """Whether it honours range requests."""

    broken: int = 0
    """A status with which everything is answered."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range) of every request."""

    def files(self) -> list[str]:
        """The files of which bytes were served, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serving(root: Path, **how: Any) -> Iterator[Hub]:
    """Serve the folders below `root` until the block ends."""
    hub = Hub(root, **how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            _answer(self, hub, body=False)

        def do_GET(self) -> None:
            _answer(self, hub, body=True)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, hub: Hub, *, body: bool) -> None:
    wanted = request.headers.get("Range", "")
    hub.asked.append((request.command, request.path, wanted))
    path = request.path.partition("?")[0]
    if hub.broken:
        return _send(request, hub.broken, b"", {}, body)
    if hub.token and request.headers.get("Authorization") != f"Bearer {hub.token}":
        code, status = ("GatedRepo", 403) if hub.gated else ("RepoNotFound", 401)
        return _send(request, status, b"", {"X-Error-Code": code}, body)
    if path.startswith("/api/models/"):
        repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        return _info(request, hub, repo, revision, body)
    repo, _, rest = path.removeprefix("/").partition("/resolve/")
    revision, _, name = rest.partition("/")
    return _file(request, hub, repo, revision, name, wanted, body)


def _info(request: BaseHTTPRequestHandler, hub: Hub, repo: str, revision: str, body: bool) -> None:
    folder = hub.root / repo
    if not folder.is_dir():
        return _send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, body)
    if revision not in ("", "main", COMMIT):
        return _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    siblings = [{"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size} for path in files]
    document = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
    return _send(request, 200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body)


def _file(
    request: BaseHTTPRequestHandler, hub: Hub, repo: str, revision: str, name: str, wanted: str, body: bool
) -> None:
    path = hub.root / repo / name
    if not (hub.root / repo).is_dir():
        return _send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, body)
    if revision not in ("main", COMMIT):
        return _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
    about = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    if not path.is_file():
        return _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"} | about, body)
    data = path.read_bytes()
    about["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
    if wanted and hub.ranges:
        first, last = (int(word) if word else len(data) - 1 for word in wanted.removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return _send(request, 206, data[first : last + 1], about, body)
    return _send(request, 200, data, about, body)


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
    request.send_response(status)
    for key, value in headers.items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if body:
        try:
            request.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # read no further than it needed
            request.close_connection = True
