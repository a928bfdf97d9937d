"""The axes language: parsed like a language, counted and cut like arrays."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron.cut.basis import Basis, cut
from minitron.model.dims import Constant, Dim, Name, Product, Stack, Word, axes_of, numel, parse, parse_shape, rows

NAMES = ("head", "dim", "group", "state")


def dims(depth: int = 3) -> st.SearchStrategy[Dim]:
    leaf = st.one_of(st.sampled_from(NAMES).map(Word), st.integers(1, 3).map(Constant))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: Product(tuple(parts))),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: Stack(tuple(parts))),
        ),
        max_leaves=depth,
    )


def spell(dim: Dim) -> str:
    match dim:
        case Word(name):
            return name
        case Constant(size):
            return str(size)
        case Product(factors):
            return "*".join(f"({spell(factor)})" for factor in factors)
        case Stack(parts):
            return " + ".join(f"({spell(part)})" for part in parts)


@st.composite
def sized(draw: st.DrawFn) -> tuple[Dim, dict[str, int], dict[str, np.ndarray]]:
    sizes = {name: draw(st.integers(1, 4)) for name in NAMES}
    keep = {
        name: np.array(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))), dtype=np.int64)
        for name, size in sizes.items()
        if draw(st.booleans())
    }
    return draw(dims()), sizes, keep


@given(dims())
def test_a_dimension_is_parsed_as_it_was_spelled(dim: Dim) -> None:
    assert parse(spell(dim)) == dim


@given(sized())
def test_rows_are_unique_ascending_and_as_many_as_the_kept_sizes_say(case: tuple) -> None:
    dim, sizes, keep = case
    kept = rows(dim, sizes, keep)
    assert len(kept) == numel(dim, sizes | {name: len(index) for name, index in keep.items()})
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0 and kept.max() < numel(dim, sizes)


@given(sized())
def test_keeping_all_keeps_every_row(case: tuple) -> None:
    dim, sizes, _ = case
    assert rows(dim, sizes, {}).tolist() == list(range(numel(dim, sizes)))


def label(dim: Dim, sizes: dict[str, int]) -> list[tuple]:
    """Brute force: the path of indices that leads to each row."""
    match dim:
        case Word(name):
            return [((name, i),) for i in range(sizes[name])]
        case Constant(size):
            return [(("", i),) for i in range(size)]
        case Product(factors):
            labels: list[tuple] = [()]
            for factor in factors:
                labels = [left + right for left in labels for right in label(factor, sizes)]
            return labels
        case Stack(parts):
            return [path for part in parts for path in label(part, sizes)]


@given(sized())
def test_rows_are_those_whose_every_index_is_kept(case: tuple) -> None:
    dim, sizes, keep = case
    expected = [
        row
        for row, path in enumerate(label(dim, sizes))
        if all(name not in keep or i in keep[name] for name, i in path)
    ]
    assert rows(dim, sizes, keep).tolist() == expected


@given(sized(), st.data())
@settings(max_examples=60)
def test_cutting_twice_equals_cutting_once(case: tuple, data: st.DataObject) -> None:
    dim, sizes, first = case
    second = {
        name: np.array(sorted(data.draw(st.sets(st.integers(0, len(index) - 1), min_size=1))), dtype=np.int64)
        for name, index in first.items()
    }
    tensor = torch.arange(numel(dim, sizes) * 3.0).reshape(-1, 3)
    shape = (dim, Constant(3))
    small = sizes | {name: len(index) for name, index in first.items()}
    twice = cut(cut(tensor, shape, sizes, first.get), shape, small, second.get)
    once = cut(tensor, shape, sizes, {name: first[name][second[name]] for name in first}.get)
    assert torch.equal(twice, once)


@given(sized())
@settings(max_examples=60)
def test_a_basis_of_unit_vectors_is_a_selection(case: tuple) -> None:
    dim, sizes, keep = case
    tensor = torch.arange(2.0 * numel(dim, sizes), dtype=torch.float64).reshape(2, -1)
    bases = {name: Basis(np.eye(sizes[name])[:, index]) for name, index in keep.items()}
    shape = (Constant(2), dim)
    assert torch.equal(cut(tensor, shape, sizes, bases.get), cut(tensor, shape, sizes, keep.get))


def test_a_basis_projects_along_its_axis() -> None:
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :2]
    tensor = torch.from_numpy(rng.normal(size=(3 * 4 + 5, 4)))
    sizes = {"head": 3, "dim": 4, "state": 5}
    small = cut(tensor, parse_shape("head*dim + state, dim"), sizes, {"dim": Basis(matrix)}.get).numpy()
    top = np.einsum("hdk,dj,kl->hjl", tensor[:12].reshape(3, 4, 4).numpy(), matrix, matrix).reshape(6, 2)
    assert np.allclose(small, np.concatenate([top, tensor[12:].numpy() @ matrix]), atol=1e-12)


def test_sizes_may_be_arrays() -> None:
    sizes = {"head": np.array([2, 3]), "dim": 4, "state": np.array([5, 6])}
    assert numel(parse("head*dim + 2*(dim*state)"), sizes).tolist() == [8 + 40, 12 + 48]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "ends where an axis should stand"),
        ("head *", "ends where an axis should stand"),
        ("head dim", "'dim' is left over"),
        ("(head + dim", "parenthesis is not closed"),
        ("head)", "')' is left over"),
        ("+ head", "'+' stands where an axis should"),
        ("head ** dim", "'*' stands where an axis should"),
        ("2head", "'2head' stands where an axis should"),
        ("head & dim", "'&' is left over"),
        ("head*0", "a dimension of size 0"),
    ],
)
def test_a_bad_rule_is_quoted(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(repr(f"hidden, {text}"))):
        parse_shape(f"hidden, {text}")


def test_axes_of_names_every_axis_once() -> None:
    assert axes_of(parse("head*dim + 2*(group*state) + head")) == {"head", "dim", "group", "state"}


@pytest.mark.parametrize("matrix", [np.ones((3, 2)), np.eye(3)[:, :2] * 2, np.ones(3), np.eye(2, 3)])
def test_a_basis_has_orthonormal_columns(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"orthonormal|\[size, kept\]"):
        Basis(matrix)


def test_names_match_rename_and_format_in_every_dialect() -> None:
    name = Name("(model|backbone).layers.{layer}.experts.{expert}.embedding(s|).weight")
    index = {"layer": 10, "expert": 3}
    for spelled in (
        "model.layers.10.experts.3.embeddings.weight",
        "backbone.layers.10.experts.3.embedding.weight",
    ):
        assert name.match(spelled) == index
        assert name.rename(spelled, {"layer": 9, "expert": 30}) == spelled.replace("10", "9").replace(".3.", ".30.")
    assert name.format(index) == "model.layers.10.experts.3.embeddings.weight"
    for other in ("other.layers.1.experts.3.embeddings.weight", "model.layers.01.experts.3.embeddings.weight", "x"):
        assert name.match(other) is None


def test_a_name_with_open_brackets_is_quoted() -> None:
    with pytest.raises(ValueError, match=re.escape("'layers.{layer.weight'")):
        Name("layers.{layer.weight")
