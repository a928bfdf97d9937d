"""Settings in a TOML file: what a command reads with --config, what --save-config and a run folder keep.

A key is an option's name without its dashes, or an argument's in small letters:

    command = "compress"
    model = "Qwen/Qwen3-0.6B"
    data = "text.jsonl"
    gpu = "A10G"
    context = "128k"
    keep = ["attention=bf16"]       or a table: keep = {attention = "bf16"}
    rotate = false

What is typed goes before what the file says.  Relative paths are relative to the file.  Whether an output is replaced
(--overwrite) is typed and never kept, and an address that holds a password or a key is not written.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from cli.old_names import OLD_NAMES, warning
from cli.option_table import GROUPS, OPTIONS, READ
from minitron.errors import MinitronError

TYPED_ONLY: Final = frozenset(
    {"config", "save-config", "help", "help-all", "debug", "overwrite", "dry-run", "json", "progress"}
)
"""Options of one command line, which no file holds."""

LARGEST: Final = 2**20
"""Bytes of a file."""

_FILES: Final = frozenset({"FILE", "FOLDER", "PATH", "OUT.gguf"})
_MODELS: Final = frozenset({"MODEL", "MODEL...", "STUDENT", "JUDGE", "FILE|NAME"})
"""What is a path where there is such a file, and otherwise a name."""

_BEFORE: Final = re.compile(r"([A-Za-z_][\w.-]*=)?(\d+(?:\.\d+)?:)?(.*)", re.DOTALL)
"""[DOMAIN=][WEIGHT:] and the path behind it."""

_PLACES: Final = {name: place for place, name in enumerate(OPTIONS)}

_SECRET: Final = re.compile(r"key|token|secret|password|passwd|auth", re.IGNORECASE)


def key_of(parameter: Any) -> str:
    """The name of an option or argument in a file."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).strip(".").lower()
    return str(parameter.opts[0]).lstrip("-")


def settable(parameters: Sequence[Any]) -> dict[str, Any]:
    """Key -> the parameter, of those that a file may hold."""
    return {key: each for each in parameters if (key := key_of(each)) not in TYPED_ONLY}


def read_config(path: Path, command: str, parameters: Sequence[Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Parameter's name -> its value as typed, or lists of such values; `note` is told of old names.

    Raises MinitronError for a file that is none, a key that `command` does not have, with the nearest one it has, and
    a value that cannot be typed."""
    found, values = _toml(path), dict[str, Any]()
    known, old = settable(parameters), OLD_NAMES.get(command, {})
    if (named := found.pop("command", command)) != command:
        raise MinitronError(f"{path} is for minitron {named}, not for minitron {command}; give it to that command.")
    for typed, value in found.items():
        key = typed.replace("_", "-")
        if f"--{key}" in old and key not in known:
            new = old[f"--{key}"]
            note(f"{path}: {warning(typed, new.lstrip('-'))}")
            key, value = (new[5:], not value) if new.startswith("--no-") else (new.lstrip("-"), value)
        if key not in known:
            raise MinitronError(_strange(path, command, typed, key, known))
        values[known[key].name] = _value(path, typed, value, known[key])
    return values


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MinitronError(f"{path} does not exist or is no file; give --config a TOML file.")
    if path.stat().st_size > LARGEST:
        raise MinitronError(f"{path} is larger than a file of settings; give --config a TOML file.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MinitronError(f"{path} is not valid TOML ({error}); correct it.") from None


def _strange(path: Path, command: str, typed: str, key: str, known: Mapping[str, Any]) -> str:
    if key in TYPED_ONLY:
        return f"{path}: {typed} is typed and never read from a file; drop it there."
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    what = f"did you mean {near[0]}?" if near else f"see minitron {command} --help-all."
    return f"{path}: minitron {command} has no setting {typed!r}; {what}"


def _value(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """A value as one would type it."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise MinitronError(f"{path}: {key} is {value!r}; write true or false.")
        return value
    if isinstance(value, dict):
        value = [f"{name}={_joined(path, key, each)}" for name, each in value.items()]
    several = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1
    if isinstance(value, list) and several:
        return [_from(path, _word(path, key, each), parameter) for each in value]
    word = _from(path, _word(path, key, value), parameter)
    return [word] if several else word


def _joined(path: Path, key: str, value: Any) -> str:
    return ",".join(_word(path, key, each) for each in value) if isinstance(value, list) else _word(path, key, value)


def _word(path: Path, key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "a list" if isinstance(value, list) else "true or false" if isinstance(value, bool) else "no such value"
        raise MinitronError(f"{path}: {key} is {kind}; write one value as it is typed.")
    return str(value)


def _from(file: Path, word: str, parameter: Any) -> str:
    """A path as seen from here, where it was written as seen from the folder of `file`."""
    return _moved(word, parameter, lambda path: file.parent / path)


def _moved(word: str, parameter: Any, move: Callable[[Path], Path]) -> str:
    kind = str(parameter.metavar or "")
    before, weight, rest = "", "", word
    if kind.startswith("[") and (parts := _BEFORE.fullmatch(word)) is not None:
        before, weight, rest = parts[1] or "", parts[2] or "", parts[3]
        kind = kind.rpartition("]")[2]
    path = Path(rest).expanduser()
    if path.is_absolute() or not rest or rest.startswith("hf:") or "://" in rest:
        return word
    moved = move(path)
    # What may be a name as well is a path where there is one, from either end.
    if kind in _FILES or (kind in _MODELS and (moved.exists() or path.exists())):
        return f"{before}{weight}{moved}"
    return word


def written(command: str, given: Sequence[tuple[Any, Any]], folder: Path) -> str:
    """The file that says what was given, as (parameter, value) pairs, with relative paths as seen from `folder`."""
    lines = [f"# minitron {command} --config FILE; relative paths are relative to this file", f'command = "{command}"']
    kept = [(parameter, value) for parameter, value in given if key_of(parameter) not in TYPED_ONLY]
    for group in GROUPS:
        rows = [(parameter, value) for parameter, value in kept if _group(parameter) == group]
        lines += ["", f"# {group}"] if rows else []
        for parameter, value in sorted(rows, key=lambda row: _place(row[0])):
            lines += _line(parameter, value, folder)
    return "\n".join([*lines, ""])


def _group(parameter: Any) -> str:
    row = OPTIONS.get(parameter.opts[0])
    return READ if row is None else row.group


def _place(parameter: Any) -> int:
    return _PLACES.get(parameter.opts[0], -1)


def _line(parameter: Any, value: Any, folder: Path) -> Iterator[str]:
    listed = isinstance(value, list | tuple)
    words = list(value) if listed else [value]
    if any(isinstance(word, str) and _holds_secret(word) for word in words):
        yield f"# {key_of(parameter)} holds a password or a key and is not written; type it"
        return
    told = [_toml_of(_seen_from(word, parameter, folder)) for word in words]
    # A command that takes many models is mostly given one.
    one = not listed or (parameter.nargs == -1 and len(told) == 1)
    yield f"{key_of(parameter)} = " + (told[0] if one else f"[{', '.join(told)}]")


def _seen_from(word: Any, parameter: Any, folder: Path) -> Any:
    if not isinstance(word, str | Path):
        return word
    return _moved(str(word), parameter, lambda path: Path(os.path.relpath(path, folder)))


def _toml_of(value: Any) -> str:
    """A scalar as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise MinitronError(f"{text!r} is no text that a file of settings can hold; rename it.")
    # JSON's strings are TOML's but for one character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _holds_secret(word: str) -> bool:
    return masked(word) != word


def masked(word: str) -> str:
    """`word` without the user, the password and the keys in the query of an address in it."""
    start = word.find("://")
    if start < 0:
        return word
    try:
        parts = urlsplit(word)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return word
    if not parts.password and "@" not in parts.netloc and not any(_SECRET.search(name) for name, _ in query):
        return word
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="&".join(f"{name}=..." for name, _ in query)).geturl()
