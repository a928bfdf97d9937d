"""Sizes as people type and read them: 128k tokens, 1.3GiB, 22GB."""

import re
from fractions import Fraction
from typing import Final

from minitron.errors import MinitronError

GiB: Final = 2**30
MiB: Final = 2**20

_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
# Context lengths are powers of two: everyone who writes 128k means 131,072 tokens.
_COUNTS: Final = {"": 1, "k": 2**10, "m": 2**20}

_PARAMETERS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_TIMES: Final = {"": 1000, "ms": 1, "s": 1000, "min": 60_000}
"""In thousandths of a second."""

_LARGEST: Final = 2**50
"""Of which sums and products with what models have are whole numbers of 64 bits."""

# A comma or underscore parts thousands and nothing else: 1,3GiB is no size, rather than 13 GiB to someone's surprise.
_NUMBER: Final = r"(\d{1,3}(?:[,_]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"


def _parse(text: str, factors: dict[str, int], what: str, example: str) -> int:
    match = re.fullmatch(_NUMBER + r"\s*([A-Za-z]*)", text.strip(), flags=re.ASCII)
    if match is None or match[2].lower() not in factors:
        raise MinitronError(f"{text!r} is not {what}; write it like {example}.")
    found = round(Fraction(re.sub("[_,]", "", match[1])) * factors[match[2].lower()])
    if found > _LARGEST:
        raise MinitronError(f"{text!r} is more than any machine has, as {what}; give a smaller number, like {example}.")
    return found


def parse_bytes(text: str) -> int:
    """`1.3GiB` -> 1395864371 bytes; GB is 10^9, GiB is 2^30, a bare number is bytes.

    Raises MinitronError where the text is no size."""
    return _parse(text, _BYTES, "a memory size", "1.3GiB, 22GB or 800MiB")


def parse_count(text: str) -> int:
    """`128k` -> 131072 tokens: k is 2^10, m is 2^20.  Raises MinitronError where the text is no count."""
    count = _parse(text, _COUNTS, "a number of tokens", "4096 or 128k")
    if count < 1:
        raise MinitronError(f"{text!r} is less than one; give a positive number such as 4096 or 128k.")
    return count


def parse_parameters(text: str) -> int:
    """`7B` -> 7,000,000,000 parameters; k is 10^3, M 10^6, B 10^9, T 10^12.

    Raises MinitronError where the text is no such number."""
    return _parse(text, _PARAMETERS, "a number of parameters", "7B or 350M")


def parse_seconds(text: str) -> float:
    """`500ms` -> 0.5 seconds; also s and min, a bare number is seconds.  Raises MinitronError where it is no time."""
    return _parse(text, _TIMES, "a time", "30s or 500ms") / 1000


def format_seconds(seconds: float) -> str:
    """`12.5 s`, `340 ms`."""
    return f"{seconds:,.4g} s" if abs(seconds) >= 1 else f"{seconds * 1000:,.3g} ms"


def format_bytes(count: float) -> str:
    """Bytes in the largest binary unit in which the number is at least 1, three decimals at most: `18.689 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:,.3f} {unit}"
    return f"{count:,.0f} B"


def format_parameters(count: float) -> str:
    """`8.888 B` parameters, `135.0 M`, `6,144`."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if abs(count) >= size:
            return f"{count / size:,.3f} {unit}"
    return f"{count:,.0f}"
