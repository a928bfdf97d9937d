"""How long a tokenizer's normalizer may make a text: a few replacements after another can make gigabytes of one word,
in a library that cannot be stopped.  So it is reckoned before the tokenizer is used."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST: Final = 4096
"""How many times its length a text may have after normalization; one character in eighteen is the most that Unicode
itself makes of one."""

_MOST_STEPS: Final = 256


def require_bounded_file(folder: Path) -> None:
    """Raise MinitronError where the tokenizer.json of a folder has a normalizer that makes too much of a text."""
    path = folder / "tokenizer.json"
    document = read_json(path) if path.is_file() else None
    if isinstance(document, dict):
        require_short(path, document.get("normalizer"))


def require_bounded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The same of a tokenizer that was made from other files, before it is used."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is not None:
        require_short(folder, json.loads(normalizer.__getstate__()))


def require_short(path: Path, normalizer: Any) -> None:
    """The same of a normalizer as tokenizer.json spells it, which is that of `path`."""
    steps = list(_steps(normalizer))
    if len(steps) > _MOST_STEPS:
        raise MinitronError(
            f"{path}: its normalizer has {len(steps)} steps, more than {_MOST_STEPS}; do not use this tokenizer."
        )
    if not all(_stays_short(seed, steps) for seed in dict.fromkeys(_seeds(steps))):
        raise MinitronError(
            f"{path}: its normalizer makes a text more than {MOST:,} times as long; do not use this tokenizer."
        )


def _steps(normalizer: Any) -> Iterator[dict[str, Any]]:
    """The normalizers of a sequence, one after the other."""
    if isinstance(normalizer, dict):
        inside = normalizer.get("normalizers")
        if isinstance(inside, list):
            for one in inside:
                yield from _steps(one)
        else:
            yield normalizer


def _replacement(step: dict[str, Any]) -> tuple[str | None, str] | None:
    """(what is replaced, by what) of a step that replaces; None for the first where it is a regular expression."""
    content, pattern = step.get("content"), step.get("pattern")
    if step.get("type") != "Replace" or not isinstance(content, str):
        return None
    text = pattern.get("String") if isinstance(pattern, dict) else pattern
    return (text, content) if isinstance(text, str) and text else (None, content)


def _seeds(steps: list[dict[str, Any]]) -> Iterator[str]:
    """Texts that are replaced, and what they are replaced by: any that grows begins with one of them."""
    yield "a"
    for step in steps:
        for text in _replacement(step) or ():
            if text:
                yield text[:MOST]
                yield text[0]


def _stays_short(seed: str, steps: list[dict[str, Any]]) -> bool:
    """Whether `seed` is at most MOST times as long after all steps.

    A regular expression is taken to match every character, and the places between them once in addition."""
    text, factor = seed, 1
    for step in steps:
        found = _replacement(step)
        if found is not None:
            pattern, content = found
            if len(content) * len(text) > 2 * MOST * len(seed) and (pattern is None or pattern in text):
                # What comes of it is not made first.
                count = len(text) if pattern is None else text.count(pattern)
                if count * len(content) * factor > MOST * len(seed):
                    return False
            if pattern is not None:
                text = text.replace(pattern, content)
            elif content:
                text, factor = (content * len(text) if len(content) > 1 else text), factor * 2
        elif step.get("type") == "Precompiled":
            factor *= _longest(step.get("precompiled_charsmap"))
        if len(text) * factor > MOST * len(seed):
            return False
    return True


def _longest(charsmap: Any) -> int:
    """Of a table of SentencePiece the longest text that stands for another, in characters of four bytes at most; one of
    eighteen or fewer is that of Unicode, which does not grow again."""
    try:
        data = base64.b64decode(charsmap or "")
    except (binascii.Error, ValueError, TypeError):
        return 1
    start = 4 + int.from_bytes(data[:4], "little")
    longest = max((len(part.decode("utf-8", "replace")) for part in data[start:].split(b"\0")), default=1)
    return 1 if longest <= 18 else longest
