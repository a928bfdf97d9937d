"""What stands in the place of a sound value."""

from random import Random
from typing import Any

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x00\x9b\u202e"
"""What a terminal would obey."""

TEXTS = (
    *(
        "",
        " ",
        "auto",
        "none",
        "null",
        "True",
        "1",
        "-1",
        "1e9",
        "nan",
        "bf16",
        "float8",
        "llama",
        "../x",
        "/etc/passwd",
    ),
    *(ESCAPES, "x" * 5000, "\ud800", "\n\n", "{{ 1 // 0 }}", "[M", "MMMM", "{", "%s%s", "(((", "é" * 300),
)

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 10**6, 10**7, 10**9, 2**31, 2**32 + 1, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.0, 0.5, -0.5, 1.5, 1e-308, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)

OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [None],
    [[]],
    {"": None},
    [0],
    ["x"],
    {"a": {"b": []}},
    [[0, 1], [2]],
)


def deep(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def any_value(rng: Random) -> Any:
    """Some value of some type."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.65:
        return rng.choice(TEXTS)
    return rng.choice(OTHERS) if kind < 0.97 else deep(200)


def other_value(rng: Random, value: Any) -> Any:
    """Some value near a given one, or any."""
    if rng.random() < 0.5:
        return any_value(rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, 2 * value, -value, value * 10**6, float(value), str(value), [value]))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, value // 1, str(value), [value]))
    if isinstance(value, str):
        return rng.choice(
            (value.upper(), value + ESCAPES, value[:-1], value * 2, [value], {value: value}, value + "\n")
        )
    if isinstance(value, list):
        return rng.choice(
            (value[:-1], value * 2, [*value, any_value(rng)], [any_value(rng)] * len(value), {}, value[:1])
        )
    if isinstance(value, dict):
        return rng.choice(([*value], [*value.values()], [value], {"x": value}, str(value)[:100]))
    return any_value(rng)
