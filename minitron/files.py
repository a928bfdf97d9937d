"""Files and folders that are complete or absent: written to a temporary sibling, then renamed."""

import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old file or the new one, never half of it."""
    with new_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step."""
    with new_file(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write torch tensors as one safetensors file, with the mode of any other new file: safetensors gives it to its
    owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata or {}))
    path.chmod(mode)


_POINTER: Final = b"version https://git-lfs"
"""How the file begins that stands in for a large one until `git lfs pull` has fetched it."""


def refuse_pointer(path: Path) -> None:
    """Raise MinitronError where `path` is a git-lfs pointer in place of what it should hold."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise MinitronError(
                f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder, or download it "
                "again."
            )


def read_json(path: Path) -> Any:
    """The JSON document at `path`; raises MinitronError where there is none, it does not parse, or a git-lfs pointer
    stands in for it."""
    try:
        refuse_pointer(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MinitronError(f"{path} does not exist; check the path.") from None
    except IsADirectoryError:
        raise MinitronError(f"{path} is a folder; give a file.") from None
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{path} is not valid JSON ({error}); write it again or check the path.") from None


def refuse_existing(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise MinitronError where `path` may not become an output: called before long work, not after it.

    It may not where it exists and `overwrite` is not given, nor where replacing it would destroy one of `inputs`, the
    working directory or the user's home."""
    for source in inputs:
        if source.exists() and source.resolve().is_relative_to(path.resolve()):
            raise MinitronError(f"{path} is or holds the input {source}; choose another output.")
    if path.is_dir() and any(place.is_relative_to(path.resolve()) for place in (Path.cwd(), Path.home())):
        raise MinitronError(f"{path} contains the current or the home folder; choose another output.")
    if path.exists() and not overwrite:
        raise MinitronError(f"{path} exists already; choose another output or pass --overwrite.")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write; it replaces `path` when the block ends well and is removed when not.

    Raises MinitronError where `path` is a folder."""
    path = path.resolve()  # written through a symbolic link, not over it
    if path.is_dir():
        raise MinitronError(f"{path} is a folder; choose a file as the output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = partial_of(path, os.getpid())
    try:
        yield partial
        # The name must not reach the disk before the bytes do.
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path` to write into; it becomes `path` when the block ends well and is removed when not.

    Raises MinitronError where `path` exists and `overwrite` is not given, or where it is a file."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # First of all: it may bring a folder back.
    _remove_leftovers(path)
    refuse_existing(path, overwrite=overwrite)
    if path.is_file():
        raise MinitronError(f"{path} is a file; choose a folder as the output.")
    partial = partial_of(path, os.getpid())
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            _swap(partial, path)
        else:
            partial.rename(path)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def _swap(partial: Path, path: Path) -> None:
    # Two renames, not delete and rename: whatever happens between them, both folders are whole on the disk, and the
    # next write puts the old one back.
    old = partial.with_name(partial.name + ".old")
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def partial_of(path: Path, process: int) -> Path:
    """What `path`, resolved, is called while the process of that number writes it."""
    return path.with_name(f".{path.name}.partial-{process}")


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed run left beside `path`: siblings whose process is gone."""
    import psutil

    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        number = leftover.name.rpartition("-")[2].removesuffix(".old")
        if not number.isdigit():
            continue
        # Our own number is left over too: in a container every run may get the same one.
        if int(number) != os.getpid() and psutil.pid_exists(int(number)):
            continue
        if leftover.name.endswith(".old") and not path.exists():
            leftover.rename(path)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
