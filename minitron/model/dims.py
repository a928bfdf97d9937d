"""Dims: the language in which a family spells the dimensions of its tensors.

A rule names every dimension of one tensor in the words of the model:

    "model.layers.{layer}.mixer.experts.{expert}.up_proj.weight":  "expert_ffn, hidden"
    "model.layers.{layer}.mixer.conv1d.weight":  "mamba_head*mamba_head_dim + 2*(mamba_group*ssm_state), 1, conv_kernel"

Words are axes.  `a*b` runs row-major over a and b, `a + b` puts b after a, parentheses nest and a bare number is a
dimension that nothing cuts.  An axis may also stand in the tensor's name, in braces: when an index of it is dropped the
tensors of that index go and the rest are renamed.  `(one|other)` in a name spells dialects of one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
"""Kept indices of one axis, ascending."""


@dataclass(frozen=True)
class Word:
    """One word: the name of an axis (minitron.model.axes)."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number: a dimension that nothing cuts."""

    size: int


@dataclass(frozen=True)
class Product:
    """`a*b`: row-major over its factors."""

    factors: tuple[Dim, ...]


@dataclass(frozen=True)
class Stack:
    """`a + b`: one part after the other."""

    parts: tuple[Dim, ...]


Dim = Word | Constant | Product | Stack


@cache
def parse(text: str) -> Dim:
    """The dimension that `text` spells; raises ValueError that quotes a text which spells none."""
    words = re.findall(r"\w+|[^\w\s]", text)
    place = 0

    def fail(why: str) -> ValueError:
        return ValueError(f"bad rule {text!r}: {why}")

    def peek() -> str:
        return str(words[place]) if place < len(words) else ""

    def take() -> str:
        nonlocal place
        place += 1
        return str(words[place - 1])

    def stack() -> Dim:
        parts = [product()]
        while peek() == "+":
            take()
            parts.append(product())
        return parts[0] if len(parts) == 1 else Stack(tuple(parts))

    def product() -> Dim:
        factors = [atom()]
        while peek() == "*":
            take()
            factors.append(atom())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def atom() -> Dim:
        if not peek():
            raise fail("it ends where an axis should stand")
        word = take()
        if word == "(":
            inside = stack()
            if peek() != ")":
                raise fail("a parenthesis is not closed")
            take()
            return inside
        if word.isdigit():
            if int(word) == 0:
                raise fail("a dimension of size 0")
            return Constant(int(word))
        if not word.isidentifier():
            raise fail(f"{word!r} stands where an axis should")
        return Word(word)

    dim = stack()
    if place < len(words):
        raise fail(f"{peek()!r} is left over")
    return dim


@cache
def parse_shape(text: str) -> tuple[Dim, ...]:
    """The dimensions of one tensor, separated by commas, none for a single number; raises ValueError that quotes a bad
    rule."""
    try:
        return tuple(parse(dim) for dim in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise ValueError(f"bad rule {text!r}: {error}") from None


def axes_of(dim: Dim) -> frozenset[str]:
    """The axes that `dim` mentions."""
    match dim:
        case Word(name):
            return frozenset([name])
        case Constant():
            return frozenset()
        case Product(children) | Stack(children):
            return frozenset().union(*map(axes_of, children))


def numel(dim: Dim, sizes: Mapping[str, Any]) -> Any:
    """How many entries `dim` has.  Sizes may be numpy arrays: the answer is then one number a candidate."""
    match dim:
        case Word(name):
            return sizes[name]
        case Constant(size):
            return size
        case Product(factors):
            return reduce(lambda total, factor: total * numel(factor, sizes), factors, 1)
        case Stack(parts):
            return sum(numel(part, sizes) for part in parts)


def matrices(dim: Dim, sizes: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(rows, columns) of the matrices that `dim` stacks, where a row runs along the last factor: keys and values of
    `2*(head*width)` are 2 head rows of `width`.  Numbers, or arrays of them."""
    match dim:
        case Stack(parts):
            return [matrix for part in parts for matrix in matrices(part, sizes)]
        case Product((*outer, last)):
            times: Any = numel(Product(tuple(outer)), sizes)
            return [(times * count, columns) for count, columns in matrices(last, sizes)]
        case _:
            return [(1, numel(dim, sizes))]


def rows(dim: Dim, sizes: Mapping[str, int], keep: Mapping[str, Indices]) -> Indices:
    """The rows of `dim` that stay when only the indices in `keep` do: unique, ascending where the kept indices are."""
    match dim:
        case Word(name):
            return keep[name] if name in keep else np.arange(sizes[name])
        case Constant(size):
            return np.arange(size)
        case Product(factors):
            index = np.zeros(1, dtype=np.int64)
            for factor in factors:
                inner = rows(factor, sizes, keep)
                index = (index[:, None] * numel(factor, sizes) + inner[None, :]).ravel()
            return index
        case Stack(parts):
            starts = np.cumsum([0, *(numel(part, sizes) for part in parts)])
            return np.concatenate([start + rows(part, sizes, keep) for start, part in zip(starts, parts, strict=False)])


@dataclass(frozen=True)
class Name:
    """A tensor's name in a rule: literal text, `{axis}` for an index, `(one|other)` for dialects."""

    text: str
    """As the family spells it."""

    def __post_init__(self) -> None:
        if self.text.count("(") != self.text.count(")") or self.text.count("{") != self.text.count("}"):
            raise ValueError(f"bad tensor name {self.text!r}: brackets do not match")

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes that stand in the name, from left to right."""
        return tuple(re.findall(r"\{(\w+)\}", self.text))

    @cached_property
    def _first(self) -> str:
        """The name as it is spelled in the first dialect."""
        return re.sub(r"\(([^|)]*)(?:\|[^)]*)?\)", r"\1", self.text)

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return _regex(self.text)

    @property
    def expression(self) -> str:
        """A regular expression that matches the whole name, in every dialect."""
        return self._whole.pattern

    def match(self, name: str) -> dict[str, int] | None:
        """The index of every axis in `name`, or None where the name is another tensor's."""
        found = self._whole.fullmatch(name)
        return None if found is None else {axis: int(found[axis]) for axis in self.axes}

    def rename(self, name: str, index: Mapping[str, int]) -> str:
        """`name`, which this rule matches, with other indices and in the same dialect."""
        found = self._whole.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is not named {self.text!r}")
        for axis in sorted(self.axes, key=found.start, reverse=True):
            name = name[: found.start(axis)] + str(index[axis]) + name[found.end(axis) :]
        return name

    def dialects(self, index: Mapping[str, int]) -> tuple[str, ...]:
        """The name in every dialect with the given indices, the first one first."""
        texts = [""]
        for part in re.split(r"(\([^)]*\))", self.text):
            choices = part[1:-1].split("|") if part.startswith("(") else [part]
            texts = [text + choice for text in texts for choice in choices]
        return tuple(text.format_map({axis: index[axis] for axis in self.axes}) for text in texts)

    def format(self, index: Mapping[str, int]) -> str:
        """The name in the first dialect with the given indices."""
        return self._first.format_map(index)


@cache
def _regex(text: str) -> re.Pattern[str]:
    pattern = "".join(
        f"(?P<{part[1:-1]}>0|[1-9][0-9]*)" if part.startswith("{") else part if part in "(|)" else re.escape(part)
        for part in re.split(r"(\{\w+\}|[(|)])", text)
        if part
    )
    return re.compile(pattern)
