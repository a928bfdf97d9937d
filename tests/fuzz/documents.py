"""Damage to JSON and TOML documents."""

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from fuzz.values import ESCAPES, any_value, other_value

Place = tuple[Any, Any]
"""A list or an object, and the index or key of an entry in it."""


def damaged_json(rng: Random, data: bytes) -> bytes:
    """Another JSON document, or none."""
    if rng.random() < 0.15:
        return rng.choice(WHOLE)(rng, data)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = changed(rng, document)
    return json.dumps(document).encode()


def changed(rng: Random, document: Any) -> Any:
    """A document with one entry dropped, added, renamed or of another value."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return any_value(rng)
    # The outer entries are the ones that are read most.
    holder, key = places[min(rng.randrange(len(places)), rng.randrange(len(places)))]
    what = rng.random()
    if what < 0.2:
        del holder[key]
    elif what < 0.27 and isinstance(holder, dict):
        holder[rng.choice((ESCAPES, "x" * 5000, "", f"{key} ", "\ud800", "a.b"))] = holder.pop(key)
    else:
        holder[key] = other_value(rng, holder[key])
    return document


def _places(document: Any) -> Iterator[Place]:
    """Every entry, those of outer lists and objects first; of long ones the first and the last."""
    level = [document] if isinstance(document, dict | list) else []
    while level:
        inner = []
        for holder in level:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            for key in keys if len(keys) < 100 else keys[:20] + keys[-20:]:
                yield holder, key
                if isinstance(holder[key], dict | list):
                    inner.append(holder[key])
        level = inner


def _repeated(rng: Random, data: bytes) -> bytes:
    """An object that has a key twice."""
    document = json.loads(data)
    if not isinstance(document, dict) or not document:
        return data + data
    key = rng.choice(list(document))
    return data.rstrip()[:-1] + b", " + json.dumps({key: other_value(rng, document[key])}).encode()[1:]


WHOLE: tuple[Callable[[Random, bytes], bytes], ...] = (
    lambda rng, data: b"",
    lambda rng, data: data[: rng.randrange(len(data) + 1)],
    lambda rng, data: b"\xef\xbb\xbf" + data,
    lambda rng, data: data.decode().encode("utf-16"),
    lambda rng, data: rng.randbytes(300),
    lambda rng, data: b"\0" * 300,
    lambda rng, data: b"[" * 100_000 + b"]" * 100_000,
    lambda rng, data: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    lambda rng, data: data.rstrip()[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    lambda rng, data: json.dumps(any_value(rng)).encode(),
    lambda rng, data: b"[" + data + b"]",
    lambda rng, data: b'{"config": ' + data + b"}",
    lambda rng, data: data.replace(b'"', b"\xff", 1),
    lambda rng, data: data.replace(b"1", b"1" * 6000, 1),
    lambda rng, data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    lambda rng, data: data.replace(b":", b': 1e999999, "x":', 1),
    _repeated,
)
"""What becomes of a document as a whole."""


def damaged_toml(rng: Random, data: bytes) -> bytes:
    """Another TOML document, or none."""
    lines = data.decode().splitlines()
    what = rng.random()
    place = rng.randrange(len(lines))
    if what < 0.2:
        return rng.choice(
            (
                b"",
                rng.randbytes(200),
                b"a = " + b"[" * 100_000,
                data[: len(data) // 2],
                b"\xef\xbb\xbf" + data,
                b"[" + b"a." * 50_000 + b"a]",
                b"a = " + b"1" * 6000,
            )
        )
    if what < 0.3:
        del lines[place]
    elif what < 0.4:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif "=" in lines[place]:
        key = lines[place].partition("=")[0]
        lines[place] = f"{key} = {_toml(rng)}"
    else:
        lines.append(f"{rng.choice(('betas', 'seed', 'loss', 'tasks', 'data', 'select', 'patience'))} = {_toml(rng)}")
    return "\n".join(lines).encode("utf-8", "replace")


def _toml(rng: Random) -> str:
    value = any_value(rng)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return (
        json.dumps(value)
        if isinstance(value, int | bool)
        else rng.choice(("[]", "[[]]", "{}", "1979-05-27", '["x"]', "[1, 2]"))
    )
