"""Which weights, config and tokenizer a checkpoint folder holds: runs, scores and plans are used with no others.

Weights are named by the SHA-256 of their files.  Beside it stand sizes and times of the files: as long as those are the
same, the files are not read again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import file_hash
from minitron.model.weight_files import weight_files
from minitron.run_folder import STAMPS

_TOKENIZER: Final = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)

_MOST_THREADS: Final = 8

_known: Final[dict[Path, Mapping[str, Any]]] = {}
"""Folder -> what its weights were when this process last read them."""


def weights_of(folder: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """{"sha256", "stamps": {file: [size, time written, time changed]}} of the weights in `folder`, in nanoseconds.

    `before` is what was found of them earlier: its SHA-256 holds where no size and no time has changed.  Raises
    MinitronError where a file is missing."""
    files = weight_files(folder)
    stamps = {file.name: _stamp(file) for file in files}
    for found in (before, _known.get(folder.resolve())):
        if found is not None and found.get(STAMPS) == stamps:
            return dict(found)
    lines = [f"{file.name} {digest}" for file, digest in zip(files, file_hashes(files), strict=True)]
    made = {"sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(), STAMPS: stamps}
    _known[folder.resolve()] = made
    return made


def tokenizer_hash(folder: Path) -> str:
    """The SHA-256 of what makes text into tokens."""
    files = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    lines = [f"{file.name} {digest}" for file, digest in zip(files, file_hashes(files), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_hashes(files: list[Path]) -> list[str]:
    """The SHA-256 of every file, several at a time."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_hash, files))


def first_changed(sums: Mapping[Path, str]) -> Path | None:
    """The first of some files whose SHA-256 is another than `sums` says; None where all are as they were."""
    found = zip(sums, file_hashes(list(sums)), strict=True)
    return next((path for path, digest in found if digest != sums[path]), None)


def require_weights(found: Mapping[str, Any], folder: Path, what: str, remedy: str) -> None:
    """Raise MinitronError where the weights in `folder` are not those that `found`, of `weights_of`, tells of.

    `what` was made from those, and `remedy` says what to do."""
    if found and weights_of(folder, found)["sha256"] != found.get("sha256"):
        raise MinitronError(f"{what} made from other weights than those in {folder}; {remedy}.")


def _stamp(file: Path) -> list[int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        raise MinitronError(f"{file} is missing; download or copy the checkpoint again.") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
