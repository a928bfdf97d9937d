"""Checksums of what the steps of a run leave: a bit that changes on the disk is found before the next step reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.identity import file_hashes, first_changed

FILES: Final = "files"
"""The key of them in the record of a run: path in its folder -> SHA-256."""

_READ: Final = (".safetensors", ".json", ".txt", ".jsonl", ".jinja", ".model")
"""How the names of the files end that later steps read."""


def missing(folder: Path, artefacts: Iterable[str], record: dict[str, Any]) -> bool:
    """Add the checksums of artefacts of which the record has none; says whether there were some."""
    known: dict[str, str] = record.setdefault(FILES, {})
    new = [name for name in artefacts if (folder / name).exists() and not any(_is_of(name, path) for path in known)]
    paths = [path for name in new for path in _files(folder, name)]
    known |= {str(path.relative_to(folder)): one for path, one in zip(paths, file_hashes(paths), strict=True)}
    return bool(paths)


def require_sound(folder: Path, record: dict[str, Any]) -> None:
    """Raise MinitronError where an artefact is not as it was written.  One that is gone is made again: it is taken out
    of the record."""
    known: dict[str, str] = record.setdefault(FILES, {})
    for name in list(known):
        if not (folder / name).parent.exists() or not (folder / Path(name).parts[0]).exists():
            del known[name]
    paths = [folder / name for name in known]
    for path in paths:
        if not path.is_file():
            raise _damaged(folder, path, "it is missing")
    if (changed := first_changed(dict(zip(paths, known.values(), strict=True)))) is not None:
        raise _damaged(folder, changed, "its checksum differs")


def _damaged(folder: Path, path: Path, why: str) -> MinitronError:
    artefact = folder / path.relative_to(folder).parts[0]
    return MinitronError(f"{path} is damaged ({why}); remove {artefact} and run again: it is made anew.")


def _is_of(artefact: str, path: str) -> bool:
    return Path(path).parts[0] == artefact


def _files(folder: Path, name: str) -> list[Path]:
    place = folder / name
    inside = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path for path in inside if path.is_file() and path.suffix in _READ]
