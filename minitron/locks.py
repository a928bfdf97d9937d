"""One run at a time writes an output: an advisory lock beside it, which the system frees when its process ends.

The lock of `out` is `.out.lock`, an open file with flock(2) on it; in it stands who holds it.  It is removed with the
lock; one that a killed process left behind is no lock, and the next run takes it over.  Whoever holds an output holds
all that is in it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from minitron.errors import MinitronError

_TRIES: Final = 3
_BETWEEN: Final = 0.05
"""Seconds between tries: another process may be asking whether this lock is held, for which it holds it a moment."""

_UNSUPPORTED: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_held: Final[dict[Path, int]] = {}
"""What this process holds -> how often.  Children made by fork hold it with their parent, as the system has it."""


def resolved(path: Path) -> Path:
    """`path` without symbolic links; raises MinitronError where they go round in a circle."""
    try:
        return path.resolve()
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise MinitronError(f"{path} is a symbolic link that leads back to itself; remove it.") from None


@contextmanager
def locked(*paths: Path, first: bool = True) -> Iterator[None]:
    """Hold these outputs, files or folders, until the block ends: no other process of Minitron writes them meanwhile.

    What lies in a folder that is held already is held with it.  Of the processes of one run the `first` alone asks for
    the locks, for all of them.  Raises MinitronError where another process holds one of them, or a folder around it."""
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(_locked(resolved(path), first))
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """What is in `path`, a folder without a lock of its own, is held with the output that it will become."""
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if not _held[path]:
            del _held[path]


def holds(path: Path) -> bool:
    """Whether this process holds `path`, resolved, itself."""
    return path in _held


def is_held(path: Path) -> bool:
    """Whether this process holds `path`, resolved, or a folder around it."""
    return any(place in _held for place in (path, *path.parents))


def lock_of(path: Path) -> Path:
    """The file by which `path`, resolved, is locked."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _locked(path: Path, first: bool) -> Iterator[None]:
    if is_held(path) or not first or not path.name:
        with held(path):
            yield
        return
    made = _make(path.parent)
    try:
        descriptor = _acquire(path)
        try:
            for around in path.parents:
                if around.name and _is_taken(lock_of(around)):
                    raise _refusal(around)
            with held(path):
                yield
        finally:
            lock_of(path).unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        # Where nothing came of it nothing is left; what has something in it stays.
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder and those around it; returns those that were not there, the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(path: Path) -> int:
    """The open file that holds the lock of `path`."""
    place = lock_of(path)
    for number in range(_TRIES):
        if number:
            time.sleep(_BETWEEN)
        while (descriptor := _opened(place)) is not None:
            # Whoever held it removes the file when it is done: what was opened may have no name any more.
            if place.exists() and os.path.samestat(os.fstat(descriptor), place.stat()):
                os.ftruncate(descriptor, 0)
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                told = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
                os.write(descriptor, json.dumps(told).encode())
                return descriptor
            os.close(descriptor)
    raise _refusal(path)


def _opened(place: Path) -> int | None:
    """`place`, open and locked; None where another process has locked it."""
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        place.unlink(missing_ok=True)
        if error.errno not in _UNSUPPORTED:
            raise
        raise MinitronError(
            f"the file system of {place.parent} has no locks (flock), without which two runs could destroy each "
            "other's output; choose an output on another file system."
        ) from None
    return descriptor


def _is_taken(place: Path) -> bool:
    """Whether another process holds the lock whose file is `place`."""
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _refusal(path: Path) -> MinitronError:
    try:
        about = json.loads(lock_of(path).read_text(encoding="utf-8"))
        who = f"process {int(about['process'])} on {about['host']} since {about['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        who = "another process"  # which has not said yet who it is, or has just ended
    who = who if who.isprintable() else "another process"
    return MinitronError(f"{path} is being written by {who}; wait until it ends, or choose another output.")
