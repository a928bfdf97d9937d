"""A process that counts what it changes in the file system, and may be killed before the n-th change.

Python tells of its own changes by audit events (open for writing, rename, remove, mkdir, rmdir, truncate).  What
safetensors writes in Rust tells nothing: its writers are wrapped, so that a kill comes before they write and after it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from minitron.model import identity

_RENAMES: Final = ("os.rename", "os.link", "os.symlink")
_CHANGES: Final = (*_RENAMES, "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

HALF: Final = b'{"half": "of wh'


class Changes:
    """Counts the changes below `folder` from when it is made; the process dies before the one of the number `last`.

    With `torn` a file that is opened to be written is half written when that happens."""

    def __init__(self, folder: Path, last: int | None = None, *, torn: bool = False) -> None:
        self.folder, self.last, self.torn = str(folder.resolve()), last, torn
        self.seen: list[str] = []
        self._busy = False
        sys.addaudithook(self._heard)
        self._wrap()

    def write(self, path: Path) -> None:
        """What was seen, as JSON."""
        self._busy = True
        path.write_text(json.dumps(self.seen))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or (event != "open" and event not in _CHANGES):
            return
        path = arguments[0]
        if event == "open" and not arguments[2] & _WRITES:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        self._busy = True
        name = os.path.realpath(os.fsdecode(path))
        self._busy = False
        if name == self.folder or name.startswith(f"{self.folder}/"):
            self._count(event, name, tears=event == "open" and not arguments[2] & os.O_APPEND)

    def _count(self, event: str, name: str, *, tears: bool) -> None:
        if len(self.seen) == self.last:
            self._busy = True
            if self.torn and tears:
                with open(name, "wb") as file:  # noqa: PTH123 -- as plain as can be, in the middle of another's open
                    file.write(HALF)
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(f"{event} {name[len(self.folder) + 1 :]}")

    def _wrap(self) -> None:
        """Let what is written past Python's own functions count: whole when it returns, or half."""
        import safetensors.numpy
        import safetensors.torch

        for module in (safetensors.torch, safetensors.numpy):
            plain = module.serialize_file

            def serialize_file(
                flat: Any, filename: Any, *given: Any, plain: Callable[..., Any] = plain, **named: Any
            ) -> None:
                self._count("safetensors", os.path.realpath(filename), tears=True)
                plain(flat, filename, *given, **named)
                self._count("safetensors", os.path.realpath(filename), tears=False)

            module.serialize_file = serialize_file  # type: ignore[attr-defined]
        for name in ("write", "pwrite"):
            setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, plain: Callable[..., int]) -> Callable[..., int]:
        def write(descriptor: int, *given: Any) -> int:
            if not self._busy and (place := _place(descriptor)).startswith(f"{self.folder}/"):
                self._count("write", place, tears=False)
            return plain(descriptor, *given)

        return write


def _place(descriptor: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


def stop_clocks() -> None:
    """What results hold of durations, and of when files were written, is the same in every run from here on."""
    ticks = iter(range(2**62))
    time.monotonic = lambda: 0.0
    time.perf_counter = lambda: float(next(ticks))
    identity._stamp = lambda file: [file.stat().st_size]
