"""Axes: the language in which a family spells the dimensions of its tensors.

A rule names every dimension of one tensor in the words of the model:

    "model.layers.{layer}.mixer.experts.{expert}.up_proj.weight":  "expert_ffn, hidden"
    "model.layers.{layer}.mixer.conv1d.weight":  "mamba_head*mamba_head_dim + 2*(mamba_group*ssm_state), 1, conv_kernel"

Words are axes.  `a*b` runs row-major over a and b, `a + b` puts b after a, parentheses nest and a bare number is a
dimension that nothing cuts.  An axis may also stand in the tensor's name, in braces: when an index of it is dropped the
tensors of that index go and the rest are renamed.  `(one|other)` in a name spells dialects of one tensor.

To cut an axis is to keep some of its indices wherever it appears or, where its space is linear on both sides, to
project on a basis; of the two the first is the special case of a basis made of unit vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Indices = NDArray[np.int64]
"""Kept indices of one axis, ascending."""


@dataclass(frozen=True, eq=False)
class Basis:
    """A cut of one axis by projection.

    What is written to the axis is projected on the columns of one matrix, what is read from it by those of its dual;
    where the columns are orthonormal the two are the same."""

    matrix: NDArray[np.float64]
    """[size, kept]: new coordinate j is the inner product with column j.  Or [groups, size, kept]: the axis stands
    behind another one, equal runs of which have a basis of their own."""

    dual: NDArray[np.float64] | None = None
    """Of the same shape, for those who read; None where the columns of `matrix` are orthonormal."""

    def __post_init__(self) -> None:
        shape = self.matrix.shape
        if len(shape) not in (2, 3) or shape[-1] > shape[-2]:
            raise ValueError(f"a basis is [size, kept] or [groups, size, kept] with kept <= size, not {shape}")
        if self.dual is not None and self.dual.shape != shape:
            raise ValueError(f"the dual of a basis {shape} is of the same shape, not {self.dual.shape}")
        gram = np.swapaxes(self.matrix, -1, -2) @ (self.matrix if self.dual is None else self.dual)
        if not np.allclose(gram, np.eye(shape[-1]), atol=1e-4):
            what = "orthonormal" if self.dual is None else "dual to each other"
            raise ValueError(f"the columns of a basis must be {what}")

    @property
    def kept(self) -> int:
        """How many coordinates stay."""
        return int(self.matrix.shape[-1])

    @property
    def flipped(self) -> Basis:
        """The same cut for those who read."""
        return self if self.dual is None else Basis(self.dual, self.matrix)


Cut = Indices | Basis
Pick = Callable[[str], "Cut | None"]
"""The cut of an axis for the tensor at hand; None where the axis stays whole."""


@dataclass(frozen=True)
class Axis:
    """One word: a dimension whose size the model's config names."""

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


Dim = Axis | Constant | Product | Stack


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
        return Axis(word)

    dim = stack()
    if place < len(words):
        raise fail(f"{peek()!r} is left over")
    return dim


@cache
def parse_shape(text: str) -> tuple[Dim, ...]:
    """The dimensions of one tensor, separated by commas; raises ValueError that quotes a bad rule."""
    try:
        return tuple(parse(dim) for dim in text.split(","))
    except ValueError as error:
        raise ValueError(f"bad rule {text!r}: {error}") from None


def axes_of(dim: Dim) -> frozenset[str]:
    """The axes that `dim` mentions."""
    match dim:
        case Axis(name):
            return frozenset([name])
        case Constant():
            return frozenset()
        case Product(children) | Stack(children):
            return frozenset().union(*map(axes_of, children))


def numel(dim: Dim, sizes: Mapping[str, Any]) -> Any:
    """How many entries `dim` has.  Sizes may be numpy arrays: the answer is then one number a candidate."""
    match dim:
        case Axis(name):
            return sizes[name]
        case Constant(size):
            return size
        case Product(factors):
            return reduce(lambda total, factor: total * numel(factor, sizes), factors, 1)
        case Stack(parts):
            return sum(numel(part, sizes) for part in parts)


def rows(dim: Dim, sizes: Mapping[str, int], keep: Mapping[str, Indices]) -> Indices:
    """The rows of `dim` that stay when only the indices in `keep` do: unique, ascending where the kept indices are."""
    match dim:
        case Axis(name):
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


def cut(tensor: Tensor, shape: Iterable[Dim], sizes: Mapping[str, int], pick: Pick) -> Tensor:
    """`tensor` with every axis cut as `pick` says, dimension by dimension.

    Kept indices copy entries bit for bit; a basis multiplies in fp32 (float64 for float64) and rounds once.  Of a basis
    with a dual the caller picks the side (Basis.flipped)."""
    for place, dim in enumerate(shape):
        cuts = {axis: chosen for axis in axes_of(dim) if (chosen := pick(axis)) is not None}
        if any(isinstance(chosen, Basis) for chosen in cuts.values()):
            tensor = _project(tensor, place, dim, sizes, cuts)
        elif cuts:
            keep = {axis: chosen for axis, chosen in cuts.items() if not isinstance(chosen, Basis)}
            kept = rows(dim, sizes, keep)
            if len(kept) < tensor.shape[place]:
                tensor = tensor.index_select(place, _tensor(kept, tensor))
    return tensor


def _project(tensor: Tensor, place: int, dim: Dim, sizes: Mapping[str, int], cuts: Mapping[str, Cut]) -> Tensor:
    """`cut` along one dimension in which some axis has a basis: axis by axis instead of row by row."""
    match dim:
        case Axis(name) if name in cuts:
            chosen = cuts[name]
            if not isinstance(chosen, Basis):
                return tensor.index_select(place, _tensor(chosen, tensor))
            return _multiply(tensor, place, chosen.matrix)
        case Product(factors):
            tensor = tensor.reshape(
                *tensor.shape[:place], *(numel(factor, sizes) for factor in factors), *tensor.shape[place + 1 :]
            )
            # From the right: the runs of a grouped basis are those of the factor before it as it was.
            for offset, factor in reversed(list(enumerate(factors))):
                tensor = _project(tensor, place + offset, factor, sizes, cuts)
            return tensor.flatten(place, place + len(factors) - 1)
        case Stack(parts):
            import torch

            projected, start = [], 0
            for part in parts:
                length = numel(part, sizes)
                projected.append(_project(tensor.narrow(place, start, length), place, part, sizes, cuts))
                start += length
            return torch.cat(projected, dim=place)
    return tensor


def _multiply(tensor: Tensor, place: int, matrix: NDArray[np.float64]) -> Tensor:
    """`tensor` [..., size, ...] times [size, kept], or [..., n, size, ...] times [groups, size, kept] run by run."""
    wide = tensor.double() if tensor.dtype.itemsize == 8 else tensor.float()
    factor = _tensor(matrix, tensor).to(wide.dtype)
    if factor.ndim == 2:
        return (wide.movedim(place, -1) @ factor).movedim(-1, place).to(tensor.dtype)
    moved = wide.movedim((place - 1, place), (-2, -1))
    runs = moved.reshape(*moved.shape[:-2], len(factor), -1, moved.shape[-1]) @ factor
    return runs.flatten(-3, -2).movedim((-2, -1), (place - 1, place)).to(tensor.dtype)


def _tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    import torch

    return torch.from_numpy(array).to(like.device)


@dataclass(frozen=True)
class Name:
    """A tensor's name in a rule: literal text, `{axis}` for an index, `(one|other)` for dialects."""

    text: str
    """As the family spells it."""

    def __post_init__(self) -> None:
        if self.text.count("(") != self.text.count(")") or self.text.count("{") != self.text.count("}"):
            raise ValueError(f"bad tensor name {self.text!r}: brackets do not match")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that stand in the name, from left to right."""
        return tuple(re.findall(r"\{(\w+)\}", self.text))

    def match(self, name: str) -> dict[str, int] | None:
        """The index of every axis in `name`, or None where the name is another tensor's."""
        found = _regex(self.text).fullmatch(name)
        return None if found is None else {axis: int(found[axis]) for axis in self.axes}

    def rename(self, name: str, index: Mapping[str, int]) -> str:
        """`name`, which this rule matches, with other indices and in the same dialect."""
        found = _regex(self.text).fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is not named {self.text!r}")
        for axis in sorted(self.axes, key=found.start, reverse=True):
            name = name[: found.start(axis)] + str(index[axis]) + name[found.end(axis) :]
        return name

    def format(self, index: Mapping[str, int]) -> str:
        """The name in the first dialect with the given indices."""
        first = re.sub(r"\(([^|)]*)(?:\|[^)]*)?\)", r"\1", self.text)
        return first.format_map({axis: index[axis] for axis in self.axes})


@cache
def _regex(text: str) -> re.Pattern[str]:
    pattern = "".join(
        f"(?P<{part[1:-1]}>0|[1-9][0-9]*)" if part.startswith("{") else part if part in "(|)" else re.escape(part)
        for part in re.split(r"(\{\w+\}|[(|)])", text)
        if part
    )
    return re.compile(pattern)
