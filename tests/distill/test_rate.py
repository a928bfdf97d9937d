"""The learning rate where none is given."""

from dataclasses import replace
from pathlib import Path

import pytest
from distilling import RECIPE, require_equal

from distill.rate import PUBLISHED, WIDTH, usual_rate
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.errors import MinitronError

NARROW = 1.3e-3
"""1e-4 x sqrt(4,096 / 24): the hidden size of the tests' student is 24."""


def test_a_narrower_student_takes_a_higher_rate() -> None:
    assert usual_rate(WIDTH) == usual_rate(2 * WIDTH) == PUBLISHED == 1e-4
    assert usual_rate(WIDTH // 4) == 2e-4
    assert [usual_rate(size) for size in (24, 256, 576, 3072)] == [NARROW, 4e-4, 2.7e-4, 1.2e-4]
    assert usual_rate(256, is_rounded=True) == PUBLISHED


def test_a_run_without_a_rate_is_that_of_its_width(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    given, usual = (
        distill(Distillation(student, tiny_hybrid, short_text, tmp_path / name), replace(RECIPE, learning_rate=rate))
        for name, rate in (("given", NARROW), ("usual", None))
    )
    assert usual.recipe.learning_rate == NARROW
    assert f"learning rate: {NARROW}" in (usual.output / "README.md").read_text()
    require_equal(given, usual)


def test_a_student_in_fewer_bits_takes_the_published_rate(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(
        student, tiny_hybrid, short_text, tmp_path / "out", student_format="fp8-dynamic", student_round="nearest"
    )
    assert distill(asked, replace(RECIPE, steps=2, learning_rate=None)).recipe.learning_rate == PUBLISHED


def test_a_minimum_above_the_rate_is_refused(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    with pytest.raises(MinitronError, match="above the peak"):
        distill(asked, replace(RECIPE, learning_rate=None, minimum_learning_rate=2e-3))
