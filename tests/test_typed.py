"""Values from files against the types that they should have."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from distill.recipe import Recipe
from minitron.errors import MinitronError
from minitron.typed import misfit, require


@dataclass(frozen=True)
class Inner:
    name: str
    counts: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        (None, int | None),
        ("a", Literal["a", "b"]),
        ([1, 2], tuple[int, ...]),
        ([1, 2.5], tuple[float, float]),
        ({"a": [{"b": None}]}, dict[str, list[dict[str, Any]]]),
        (["0-3", "4"], str | list[str]),
        ({"name": "x", "counts": [1]}, Inner),
        ({"steps": 3, "betas": [0.9, 1], "tasks": ["arc"], "precision": "fp32"}, Recipe),
    ],
)
def test_what_fits_is_let_pass(value: Any, wanted: Any) -> None:
    assert misfit(value, wanted) == ""


@pytest.mark.parametrize(
    ("value", "wanted", "told"),
    [
        (True, int, "it is True, not a whole number"),
        (1.0, int, "it is 1.0, not a whole number"),
        ("1", float, "it is '1', not a number"),
        (1, bool, "it is 1, not true or false"),
        ("c", Literal["a", "b"], "it is 'c', not one of a, b"),
        ([1, "2"], list[int], "1 is '2', not a whole number"),
        ("12", list[str], "it is '12', not a list"),
        ([1], tuple[float, float], "it has 1 entries, not 2"),
        ({"a": {"b": 1}}, dict[str, dict[str, str]], "a.b is 1, not a text"),
        ([1], dict[str, int], r"it is \[1\], not an object"),
        ({}, Inner, "name is missing"),
        ({"name": "x", "more": 1}, Inner, "more is unknown"),
        ({"keep": {"a": [1]}}, dict[str, dict[str, str | list[str]]], "keep.a.0 is 1, not a text"),
        ({"steps": "x" * 500}, Recipe, "steps is 'x{39}, not a whole number"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(value: Any, wanted: Any, told: str) -> None:
    with pytest.raises(MinitronError, match=f"x.json is damaged \\({told}\\); make it again."):
        require(value, wanted, "x.json", "make it again")
