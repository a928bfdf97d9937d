"""Expressions: whole numbers that are not known yet, and what is computed of them.

    context = variable("context")
    (3 * context + 7) // 16                     an Expression, where 3 and 7 may be any whole numbers

The functions of the memory law take whole numbers or arrays of them.  Given expressions instead they return the law
itself: the very arithmetic that gives the bytes, with what is asked left open.  It is written down as a list of nodes
(`write`) and can be computed from it by any program that knows the operations below (`value`; report/law.js is one).

A node is one of

    a whole number                      itself; as text beyond 2^53, which JSON readers round
    {"var": name}                       what is asked: a whole number
    [operation, node, ...]              of nodes that stand before it, by their place in the list
    {"by": name, "cases": {...}}        what is asked is a word: the node that stands under it

All operations are on whole numbers: `//` and `%` round down, comparisons give 1 or 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

OPERATIONS: Final[dict[str, Callable[..., int]]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "max": max,
    "min": min,
    "gcd": math.gcd,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "if": lambda a, b, c: b if a else c,
}
"""Operation -> what it does with whole numbers."""

_UFUNCS: Final = {
    np.add: "+",
    np.subtract: "-",
    np.multiply: "*",
    np.floor_divide: "//",
    np.remainder: "%",
    np.maximum: "max",
    np.minimum: "min",
    np.gcd: "gcd",
    np.equal: "==",
    np.not_equal: "!=",
    np.less: "<",
    np.less_equal: "<=",
    np.bitwise_and: "&",
    np.bitwise_or: "|",
}
"""numpy's function -> the operation."""

_SWAPPED: Final = {np.greater: "<", np.greater_equal: "<="}

_LARGEST: Final = 2**53
"""The whole numbers up to here are exact in every reader of JSON."""


@dataclass(frozen=True, eq=False)
class Expression:
    """A whole number that depends on what is asked."""

    operation: str
    """A name in OPERATIONS; `var` for what is asked, `by` for a choice among `parts` by a word that is asked."""

    parts: tuple[Any, ...] = ()
    """Whole numbers and expressions."""

    name: str = ""
    """Of what is asked."""

    words: tuple[str, ...] = ()
    """The words of a choice, one a part."""

    def __bool__(self) -> bool:
        raise TypeError("an expression is neither true nor false: the law may not branch on what is asked")

    def __add__(self, other: Any) -> Any:
        return made("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return made("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return made("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return made("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return made("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return made("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return made("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return made("//", other, self)

    def __mod__(self, other: Any) -> Any:
        return made("%", self, other)

    def __rmod__(self, other: Any) -> Any:
        return made("%", other, self)

    def __neg__(self) -> Any:
        return made("*", -1, self)

    def __and__(self, other: Any) -> Any:
        return made("&", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return made("|", self, other)

    __ror__ = __or__

    def __eq__(self, other: object) -> Any:
        return made("==", self, other)

    def __ne__(self, other: object) -> Any:
        return made("!=", self, other)

    def __lt__(self, other: Any) -> Any:
        return made("<", self, other)

    def __le__(self, other: Any) -> Any:
        return made("<=", self, other)

    def __gt__(self, other: Any) -> Any:
        return made("<", other, self)

    def __ge__(self, other: Any) -> Any:
        return made("<=", other, self)

    __hash__ = object.__hash__

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **given: Any) -> Any:
        """numpy's functions of it, and of arrays of one number with it."""
        if ufunc is np.negative:
            return -self
        if ufunc in _SWAPPED:
            return made(_SWAPPED[ufunc], *reversed(inputs))
        if method != "__call__" or given or ufunc not in _UFUNCS:
            return NotImplemented
        return made(_UFUNCS[ufunc], *inputs)

    def __array_function__(self, function: Any, types: Any, inputs: Any, given: Any) -> Any:
        """`np.where`; and `np.ndim`, by which the law knows that it is no plain number."""
        if function is np.ndim:
            return 1
        if function is np.where:
            return made("if", *inputs)
        return NotImplemented


def variable(name: str) -> Expression:
    """A whole number that is asked."""
    return Expression("var", name=name)


def choice(name: str, cases: Mapping[str, Any]) -> Any:
    """What stands under the word that is asked; itself where it is the same number under all."""
    parts = tuple(map(_plain, cases.values()))
    if all(part is parts[0] or (isinstance(part, int) and part == parts[0]) for part in parts):
        return parts[0]
    return Expression("by", parts, name, tuple(cases))


def _plain(value: Any) -> Any:
    return value if isinstance(value, Expression) else int(value)


def made(operation: str, *inputs: Any) -> Any:
    """The operation on whole numbers and expressions: a number where all are numbers or the rest does not matter."""
    if len(inputs) == 2 and type(inputs[0]) is int and type(inputs[1]) is int:
        return OPERATIONS[operation](*inputs)
    parts = tuple(map(_plain, inputs))
    if all(isinstance(part, int) for part in parts):
        return OPERATIONS[operation](*parts)
    if operation == "if":
        if isinstance(parts[0], int):
            return parts[1] if parts[0] else parts[2]
        return Expression(operation, parts)
    left, right = parts
    left_is, right_is = (part if isinstance(part, int) else None for part in parts)
    if operation == "*" and 0 in (left_is, right_is):
        return 0
    if (operation == "*" and left_is == 1) or (operation == "+" and left_is == 0):
        return right
    if right_is == (0 if operation in ("+", "-") else 1 if operation in ("*", "//") else None) and right_is is not None:
        return left
    return Expression(operation, parts)


class Writer:
    """The nodes of several expressions; what is the same stands there once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._places: dict[Any, int] = {}
        self._seen: dict[int, tuple[Expression, int]] = {}

    def write(self, value: Any) -> int:
        """The place of an expression, or of a whole number, behind all that it needs."""
        if not isinstance(value, Expression):
            number = int(value)
            return self._place(("number", number), number if abs(number) < _LARGEST else str(number))
        if (seen := self._seen.get(id(value))) is not None:
            return seen[1]
        parts = tuple(self.write(part) for part in value.parts)
        match value.operation:
            case "var":
                place = self._place(("var", value.name), {"var": value.name})
            case "by":
                cases = dict(zip(value.words, parts, strict=True))
                place = self._place(("by", value.name, value.words, parts), {"by": value.name, "cases": cases})
            case operation:
                place = self._place((operation, parts), [operation, *parts])
        # The expression is held, so that no other gets its id.
        self._seen[id(value)] = (value, place)
        return place

    def _place(self, key: Any, node: Any) -> int:
        if key not in self._places:
            self._places[key] = len(self.nodes)
            self.nodes.append(node)
        return self._places[key]


def value(nodes: Sequence[Any], place: int, asked: Mapping[str, Any]) -> int:
    """What the node at `place` comes to where `asked` is what is asked, numbers and words by name."""
    found: dict[int, int] = {}

    def of(at: int) -> int:
        if at not in found:
            node = nodes[at]
            match node:
                case {"var": name}:
                    found[at] = int(asked[name])
                case {"by": name, "cases": cases}:
                    found[at] = of(cases[asked[name]])
                case ["if", test, yes, no]:
                    found[at] = of(yes) if of(test) else of(no)
                case [operation, *parts]:
                    found[at] = OPERATIONS[operation](*map(of, parts))
                case _:
                    found[at] = int(node)
        return found[at]

    return of(place)
