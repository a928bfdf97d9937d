"""Files and folders that are complete or absent: written to a temporary sibling, then renamed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.locks import held, holds, lock_of, locked, resolved


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


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own checksum, in one step; `read_sealed` reads it."""
    write_json(path, sealed(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """The object that `write_sealed` wrote; raises MinitronError where there is none or a bit of it has changed."""
    try:
        found = unsealed(read_json(path))
    except MinitronError:
        if not path.is_file():
            raise
        found = None  # no JSON any more
    if found is None:
        raise MinitronError(
            f"{path} is damaged or of another version of Minitron (its checksum differs); put a copy of it back, or "
            "pass --overwrite to start again."
        )
    return found


_SEAL: Final = "sha256"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum."""
    return dict(value) | {_SEAL: _checksum(value)}


def unsealed(found: Any) -> dict[str, Any] | None:
    """The object of which `sealed` made `found`; None where it is another."""
    if not isinstance(found, dict):
        return None
    value = {key: each for key, each in found.items() if key != _SEAL}
    return value if found.get(_SEAL) == _checksum(value) else None


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write torch tensors as one safetensors file, with the mode of any other new file: safetensors gives it to its
    owner alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata or {}))
    path.chmod(mode)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, by which scores, plans and runs name what they were made from."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def require_file(path: Path) -> None:
    """Raise MinitronError unless `path` is a file: not missing, no folder, and no pipe, which would be waited for."""
    if path.is_dir():
        raise MinitronError(f"{path} is a folder; give a file.")
    if not path.exists():
        what = "is a symbolic link that leads nowhere" if path.is_symlink() else "does not exist"
        raise MinitronError(f"{path} {what}; check the path.")
    if not path.is_file():
        raise MinitronError(f"{path} is neither a file nor a folder; give a file on a disk.")


_DEEPEST: Final = 100
"""Lists and objects inside each other in a document; a model's config has four or five."""


def read_json(path: Path) -> Any:
    """The JSON document at `path`; raises MinitronError where there is none, it does not parse, has lists or objects
    more than _DEEPEST deep, or a git-lfs pointer stands in for it."""
    require_file(path)
    refuse_pointer(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if _is_too_deep(document):
            raise RecursionError(f"lists or objects are more than {_DEEPEST} deep")
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{path} is not valid JSON ({error}); write it again or check the path.") from None
    return document


def _is_too_deep(document: Any) -> bool:
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(_DEEPEST):
        insides = (inside for one in level for inside in (one.values() if isinstance(one, dict) else one))
        level = [inside for inside in insides if isinstance(inside, dict | list)]
        if not level:
            return False
    return True


def refuse_existing(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise MinitronError where `path` may not become an output: called before long work, not after it.

    It may not where it exists and `overwrite` is not given, is neither file nor folder, nor where replacing it would
    destroy one of `inputs`, the working directory or the user's home."""
    place = resolved(path)
    for source in inputs:
        if source.exists() and resolved(source).is_relative_to(place):
            raise MinitronError(f"{path} is or holds the input {source}; choose another output.")
    if path.is_dir() and any(inside.is_relative_to(place) for inside in (Path.cwd(), Path.home())):
        raise MinitronError(f"{path} contains the current or the home folder; choose another output.")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise MinitronError(f"{path} is neither a file nor a folder; choose another output.")
    if path.exists() and not overwrite:
        raise MinitronError(f"{path} exists already; choose another output or pass --overwrite.")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write; it replaces `path` when the block ends well and is removed when not.

    Raises MinitronError where `path` is a folder, or another process writes it."""
    path = resolved(path)  # written through a symbolic link, not over it
    if path.is_dir():
        raise MinitronError(f"{path} is a folder; choose a file as the output.")
    with sole(path):
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

    Raises MinitronError where `path` exists and `overwrite` is not given, where it is a file, or another process writes
    it."""
    path = resolved(path)
    # First of all: it may bring a folder back.
    with sole(path):
        refuse_existing(path, overwrite=overwrite)
        if path.is_file():
            raise MinitronError(f"{path} is a file; choose a folder as the output.")
        partial = partial_of(path, os.getpid())
        partial.mkdir()
        try:
            with held(partial):
                yield partial
            if path.exists():
                _swap(partial, path)
            else:
                partial.rename(path)
        finally:
            if partial.exists():
                shutil.rmtree(partial)


@contextmanager
def sole(*paths: Path, first: bool = True) -> Iterator[None]:
    """As minitron.locks.locked, with what a killed run left beside the outputs removed, or put back."""
    # What stands beside an output that is held already may be in use.
    fresh = [place for place in map(resolved, paths if first else ()) if not holds(place)]
    with locked(*paths, first=first):
        for path in fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        yield


def tidy(path: Path) -> None:
    """Remove what killed runs left beside an output that is only read, unless another process writes it."""
    path = resolved(path)
    if lock_of(path).exists():
        with suppress(MinitronError), sole(path):
            pass


def remove(path: Path) -> None:
    """Remove a folder or a file, if it is there.  A folder loses its name first: a kill leaves no half of it behind
    under the name of the whole."""
    if path.is_dir() and not path.is_symlink():
        partial = partial_of(path, os.getpid())
        gone = partial.with_name(partial.name + _GONE)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder beside the output `path`, which is gone when the block ends; after a kill it goes with the next run of
    the same output, as do all leftovers."""
    path = resolved(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path, os.getpid())
    folder = partial.with_name(partial.name + _SCRATCH)
    folder.mkdir()
    try:
        with held(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def shared_scratch(folder: Path) -> Iterator[Path]:
    """A folder in `folder`, where several runs may have one, which is gone when the block ends; those of killed runs go
    too."""
    partial = partial_of(resolved(folder) / "minitron", os.getpid())
    place = partial.with_name(partial.name + _SCRATCH)
    kind = re.compile(rf"\.?(\.minitron\.partial-\d+\{_SCRATCH})(\.lock)?")
    with locked(place):
        found = {match[1] for each in place.parent.iterdir() if (match := kind.fullmatch(each.name)) is not None}
        for other in (place.with_name(name) for name in found - {place.name}):
            # One that cannot be locked is another living run's.
            with suppress(MinitronError), locked(other):
                if other.exists():
                    shutil.rmtree(other)
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place)


def _swap(partial: Path, path: Path) -> None:
    # Two renames, not delete and rename: whatever happens between them, both folders are whole on the disk, and the
    # next write puts the old one back.
    old = partial.with_name(partial.name + _OLD)
    path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        old.rename(path)
        raise
    # Half of it must not come back when the new one is removed one day.
    gone = partial.with_name(partial.name + _GONE)
    old.rename(gone)
    shutil.rmtree(gone)


_OLD: Final = ".old"
"""Behind the name of a folder that another is replacing."""

_GONE: Final = ".gone"
"""Behind the name of one that is being removed."""

_SCRATCH: Final = ".scratch"
"""Behind the name of one in which files lie for the while."""

_LEFTOVER: Final = rf"\.partial-\d+(?P<kind>{_OLD}|{_GONE}|{_SCRATCH})?"
"""What stands behind the name of an output, where it is not one yet or any more."""


def partial_of(path: Path, process: int) -> Path:
    """What `path`, resolved, is called while the process of that number writes it."""
    return path.with_name(f".{path.name}.partial-{process}")


def is_leftover(name: str) -> bool:
    """Whether a file of this name is what a killed run leaves: half an output, or a lock that nobody holds."""
    return re.fullmatch(rf"\..+{_LEFTOVER}|\..+\.lock", name) is not None


def _remove_leftovers(path: Path) -> None:
    """Remove what killed runs left beside `path`: the caller holds it, so that no living one is writing there."""
    name = re.compile(rf"\.{re.escape(path.name)}{_LEFTOVER}")
    with os.scandir(path.parent) as entries:
        found = [(match, Path(entry)) for entry in entries if (match := name.fullmatch(entry.name)) is not None]
    for match, leftover in found:
        if match["kind"] == _OLD and not path.exists():
            leftover.rename(path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
