"""Damage to texts, tables and any other bytes."""

import json
from collections.abc import Callable
from random import Random

from fuzz.documents import changed
from fuzz.values import any_value


def damaged_bytes(rng: Random, data: bytes) -> bytes:
    """Other bytes: some flipped, cut off, put in or all gone."""
    found = bytearray(data)
    what = rng.randrange(6)
    if what == 0 and found:
        for _ in range(rng.choice((1, 1, 10, 100))):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif what == 1:
        del found[rng.randrange(len(found) + 1) :]
    elif what == 2:
        place = rng.randrange(len(found) + 1)
        found[place:place] = rng.randbytes(rng.choice((1, 8, 1000)))
    elif what == 3:
        place = rng.randrange(len(found) + 1)
        del found[place : place + rng.choice((1, 8, 1000))]
    elif what == 4:
        return b"" if rng.random() < 0.5 else rng.randbytes(1000)
    else:
        return bytes(len(found))
    return bytes(found)


TEXTS: tuple[Callable[[Random, bytes], bytes], ...] = (
    damaged_bytes,
    damaged_bytes,
    lambda rng, data: b" \n" * 100,
    lambda rng, data: data.decode("utf-8", "replace").encode("utf-16"),
    lambda rng, data: b"\xff\xfe" + data,
    lambda rng, data: b"x" * 20_000,
    lambda rng, data: data.replace(b" ", b"\0"),
    lambda rng, data: data.replace(b" ", b"\xed\xa0\x80", 3),
    lambda rng, data: "\u0301\u200d🙂".encode() * 2000,
    lambda rng, data: b"\x1f\x8b" + data,
    lambda rng, data: data[:40],
    lambda rng, data: b"{" + data,
    lambda rng, data: b"[[" + data,
    lambda rng, data: data.replace(b"\n", b"\r"),
)
"""What becomes of a text as a whole."""


def damaged_text(rng: Random, data: bytes) -> bytes:
    """Another text, or none."""
    return rng.choice(TEXTS)(rng, data)


def damaged_lines(rng: Random, data: bytes) -> bytes:
    """JSON lines of which some say other things, or none."""
    if rng.random() < 0.25:
        return damaged_text(rng, data)
    lines = data.splitlines()
    for _ in range(rng.choice((1, 1, 2, 20))):
        place = rng.randrange(len(lines))
        what = rng.random()
        if what < 0.6:
            try:
                lines[place] = json.dumps(changed(rng, json.loads(lines[place]))).encode()
            except (ValueError, RecursionError):
                lines[place] = b"{}"
        elif what < 0.8:
            lines[place] = damaged_bytes(rng, lines[place]).replace(b"\n", b" ")
        else:
            lines[place] = rng.choice(
                (
                    b"",
                    b"null",
                    b"{",
                    b"[" * 100_000,
                    json.dumps(any_value(rng)).encode(),
                    b'{"text": "\\ud800"}',
                    b'{"text": 1}',
                    b'{"messages": [{"role": "user", "content": null}]}',
                    b'{"text": "' + b"a" * 100_000 + b'"}',
                )
            )
    return b"\n".join(lines) + b"\n"
