"""Files and folders that are complete or absent: written to a temporary sibling, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON document at `path`; raises MinitronError where there is none or it does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MinitronError(f"{path} does not exist; check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MinitronError(f"{path} is not valid JSON ({error}); write it again or check the path.") from None


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise MinitronError where `path` exists and may not be replaced: called before long work, not after it."""
    if path.exists() and not overwrite:
        raise MinitronError(f"{path} exists already; choose another output or pass --overwrite.")


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write into; it becomes `path` when the block ends well and is removed when not.

    Raises MinitronError where `path` exists and `overwrite` is not given."""
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            # Two renames, not delete and rename: a kill between them leaves one whole folder on disk either way.
            old = partial.with_name(partial.name + ".old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed run left beside `path`: siblings whose process is gone."""
    for leftover in path.parent.glob(f".{path.name}.partial-*"):
        number = leftover.name.rpartition("-")[2].removesuffix(".old")
        if leftover.name.endswith(".old") and not path.exists():
            leftover.rename(path)
        elif number.isdigit() and not Path(f"/proc/{number}").exists() and leftover.is_dir():
            shutil.rmtree(leftover)
