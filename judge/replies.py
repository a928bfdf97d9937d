"""Replies on disk, by the content of what was asked: a run that is killed asks nothing twice."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError
from minitron.files import sealed, unsealed


@dataclass
class Replies:
    """A file of JSON lines, each with its own checksum; only the places of the lines are in memory.

    A line that the machine stopped in the midst of, or of which a bit has changed, counts as none."""

    path: Path

    _places: dict[str, int] = field(default_factory=dict, repr=False)
    _torn: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Raises MinitronError where the file holds something else."""
        if not self.path.exists():
            return
        lines = place = 0
        with self.path.open("rb") as file:
            for line in file:
                if (found := _record(line)) is not None:
                    self._places[found["key"]] = place
                place += len(line)
                lines += 1
                self._torn = not line.endswith(b"\n")
        if lines > 1 and not self._places:
            raise MinitronError(f"{self.path} holds no replies; remove the file or give another.")

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was said under `key`; None where nothing was."""
        place = self._places.get(key)
        if place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place)
            found = _record(file.readline())
        return None if found is None or found["key"] != key else dict(found["reply"])

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Add one line, on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(sealed({"key": key, "reply": reply})) + "\n"
        with self.path.open("ab") as file:
            if self._torn:
                file.write(b"\n")
                self._torn = False
            self._places[key] = file.tell()
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = unsealed(json.loads(line))
    except (ValueError, RecursionError):
        return None
    whole = found is not None and found.keys() == {"key", "reply"} and isinstance(found["reply"], dict)
    return found if whole else None
