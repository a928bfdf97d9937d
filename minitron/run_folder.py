"""The folder of a run that can be stopped and gone on with: a record of what was asked for, and what was made so far.

A run goes on only where the same is asked for.  The record carries its own checksum (minitron.files.write_sealed).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import is_leftover, read_sealed, refuse_existing, remove, write_sealed

STAMPS: Final = "stamps"
"""The key, in a record, of sizes and times of files: those of a copy are others."""

Begun = Mapping[str, Any] | None
"""The record of the run that stopped here; None where none has begun."""


@dataclass(frozen=True)
class RunFolder:
    """Where the record of a run stands, and what else its folder may hold."""

    folder: Path
    record: str
    """The name of the record."""

    what: str
    """What the folder is, for messages: `the working folder of a distillation`."""

    names: tuple[str, ...]
    """Patterns of the names that runs give to what they leave in it: with --overwrite they may be removed, and nothing
    else."""

    def begun(self, *, overwrite: bool) -> Begun:
        """The record.  One that is damaged counts as none where it may be overwritten; else raises MinitronError."""
        path = self.folder / self.record
        if not path.is_file():
            return None
        try:
            return read_sealed(path)
        except MinitronError:
            if overwrite:
                return None
            raise

    def open(
        self,
        asked: Callable[[Begun], Mapping[str, Any]],
        *,
        key: str | None = None,
        overwrite: bool,
        anew: bool = False,
        inputs: tuple[Path, ...] = (),
    ) -> dict[str, Any]:
        """Begin a run, or go on with the one that stopped here; returns its record.

        `asked` makes of the record of the one before, which may save it work, what this one asks for; it is the whole
        record, or stands in it under `key`.  With `anew` nothing is gone on with.  Raises MinitronError where the
        folder is another run's (unless `overwrite`, which begins anew), no run's, or holds one of `inputs`."""
        begun = self.begun(overwrite=overwrite)
        # Through JSON, so that tuples and lists are the same.
        wanted = json.loads(json.dumps(asked(begun if begun is None or key is None else begun.get(key))))
        if begun is not None and not anew:
            before = begun if key is None else begun.get(key, {})
            apart = _differences(without_stamps(before), without_stamps(wanted))
            if not apart:
                record = dict(wanted) if key is None else dict(begun) | {key: wanted}
                if record != begun:
                    self.write(record)
                return record
            if not overwrite:
                raise MinitronError(
                    f"{self.folder} holds a run with another {', '.join(apart)}; use that of the run, or pass "
                    "--overwrite to start again."
                )
        self._clear(overwrite, inputs)
        self.folder.mkdir(parents=True, exist_ok=True)
        record = wanted if key is None else {key: wanted}
        self.write(record)
        return dict(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record."""
        write_sealed(self.folder / self.record, record)

    def _clear(self, overwrite: bool, inputs: tuple[Path, ...]) -> None:
        """Remove what an earlier run has left; raises MinitronError where that may not be."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise MinitronError(f"{self.folder} is a file, not {self.what}; move it or choose another.")
        names = [each.name for each in self.folder.iterdir() if not is_leftover(each.name)]
        strange = [name for name in names if not any(fnmatchcase(name, known) for known in self.names)]
        if strange and self.record not in names:
            raise MinitronError(
                f"{self.folder} exists and is not {self.what} (it holds {min(strange)}); move it or choose another."
            )
        if names and not overwrite:
            raise MinitronError(
                f"{self.folder} is another {self.what.removeprefix('the ')}, or what is left of one; pass --overwrite "
                "to start again."
            )
        refuse_existing(self.folder, overwrite=True, inputs=inputs)
        remove(self.folder)


def without_stamps(value: Any) -> Any:
    """A JSON document without the sizes and times in it."""
    if isinstance(value, dict):
        return {key: without_stamps(each) for key, each in value.items() if key != STAMPS}
    return [without_stamps(each) for each in value] if isinstance(value, list) else value


def part(document: Any, *keys: str) -> Mapping[str, Any] | None:
    """The object that stands under these keys, one within the other; None where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else None


def _differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names of what differs, the first few, with short values: `recipe.seed (0, now 1)`."""
    return [name for name, _ in zip(_apart(begun, wanted, ""), range(_TOLD), strict=False)]


def _apart(one: Any, other: Any, name: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _apart(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif one != other:
        shown = f" ({one!r}, now {other!r})"
        yield name + (shown if len(shown) < _LONGEST else "")


_TOLD: Final = 4
_LONGEST: Final = 60
"""Characters of two values that are told."""
