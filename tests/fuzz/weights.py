"""Damage to safetensors files."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from fuzz.documents import damaged_json
from fuzz.texts import damaged_bytes
from fuzz.values import ESCAPES, any_value

Entries = dict[str, Any]


def damaged_weights(rng: Random, data: bytes) -> bytes:
    """Another safetensors file, or none."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    what = rng.random()
    if what < 0.1:
        wrong = rng.choice((0, 1, length - 1, length + 1, len(data), 10**8 + 1, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + data[8:]
    if what < 0.25:
        return _file(damaged_json(rng, header), body)
    if what < 0.35:
        return damaged_bytes(rng, data)
    if what < 0.5:
        return _file(header, rng.choice(BODIES)(rng, body, json.loads(header)))
    entries = json.loads(header)
    names = [name for name in entries if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2))):
        # An entry that is damaged already may not be one that can be damaged so.
        with suppress(TypeError, ValueError, LookupError, AttributeError):
            rng.choice(ENTRIES)(rng, entries, rng.choice(names), rng.choice(names))
    return _file(json.dumps(entries).encode(), body)


def _file(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _not_finite(rng: Random, body: bytes, entries: Entries) -> bytes:
    """A number of one tensor is NaN or infinite."""
    name = rng.choice([name for name in entries if name != "__metadata__"])
    start = entries[name]["data_offsets"][0]
    if entries[name]["dtype"] == "BF16":
        return body[:start] + rng.choice((b"\xc0\x7f", b"\x80\x7f")) + body[start + 2 :]
    number = rng.choice((float("nan"), float("inf"), float("-inf"), 1e38))
    return body[:start] + struct.pack("<f", number) + body[start + 4 :]


BODIES: tuple[Callable[[Random, bytes, Entries], bytes], ...] = (
    lambda rng, body, entries: body[:-1],
    lambda rng, body, entries: body + b"\0",
    lambda rng, body, entries: b"",
    lambda rng, body, entries: bytes(len(body)),
    lambda rng, body, entries: b"\xff" * len(body),
    _not_finite,
    _not_finite,
    _not_finite,
    _not_finite,
)
"""What becomes of the numbers."""


def _renamed(rng: Random, entries: Entries, name: str, other: str) -> None:
    new = rng.choice(
        (ESCAPES, "x" * 5000, "", "a\nb", f"{name}\0", name.replace("0", "99"), other, "lm_head.weight.scale")
    )
    entries[new] = entries.pop(name, None)


def _dtype(rng: Random, entries: Entries, name: str, other: str) -> None:
    entries[name]["dtype"] = rng.choice(
        ("F16", "BF16", "I32", "F64", "F8_E4M3", "U8", "F4", "X", "", None, 1, ESCAPES, "f32")
    )


def _shape(rng: Random, entries: Entries, name: str, other: str) -> None:
    shape = entries[name]["shape"]
    entries[name]["shape"] = rng.choice(
        (
            [],
            [0],
            shape[::-1],
            [1, *shape],
            [*shape, 2],
            [-1, *shape],
            [2**63, 0],
            [2**40, 2**40],
            shape[:1],
            None,
            1,
            ["a"],
            [1.5],
            [True],
            [shape],
            [10**30],
        )
    )


def _offsets(rng: Random, entries: Entries, name: str, other: str) -> None:
    start, end = entries[name]["data_offsets"]
    entries[name]["data_offsets"] = rng.choice(
        (
            [start, end + 4],
            [start + 4, end],
            [end, start],
            [-4, end],
            [start, 2**63],
            [start],
            [],
            None,
            "x",
            [0.0, 4.0],
            [start, end, end],
            entries[other]["data_offsets"],
            [2**64, 2**64 + 4],
            [True, 4],
        )
    )


def _same_size(rng: Random, entries: Entries, name: str, other: str) -> None:
    """As many bytes of another shape or dtype, which only the model's config finds wrong."""
    shape = entries[name]["shape"]
    if rng.random() < 0.5:
        entries[name]["shape"] = rng.choice((shape[::-1], [1, *shape], [*shape, 1]))
    elif entries[name]["dtype"] == "F32":
        entries[name]["dtype"] = rng.choice(("I32", "U32"))


ENTRIES: tuple[Callable[[Random, Entries, str, str], None], ...] = (
    _renamed,
    _renamed,
    _dtype,
    _shape,
    _offsets,
    _same_size,
    _same_size,
    lambda rng, entries, name, other: entries.update({name: any_value(rng)}),
    lambda rng, entries, name, other: entries.update({"__metadata__": any_value(rng)}),
    lambda rng, entries, name, other: entries.update({ESCAPES: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    lambda rng, entries, name, other: entries[name].update({"extra": any_value(rng)}),
    lambda rng, entries, name, other: entries[name].pop("dtype"),
    lambda rng, entries, name, other: entries.update({name: entries[other], other: entries[name]}),
)
"""What becomes of an entry of the header."""
