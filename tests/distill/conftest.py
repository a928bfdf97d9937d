"""Fixtures shared by the tests of distillation, made once a session; treat them as read-only."""

from pathlib import Path

import pytest
import tiny_models
from distilling import RECIPE

from distill.run.distillation import Distillation
from distill.run.result import DistillResult
from distill.run.train import distill


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher: every kind of layer as well, and one more.  A longer one is no other teacher and takes twice the
    time: a Mamba layer in bf16 is slow without its kernels."""
    return tiny_models.save_hybrid(tmp_path_factory.mktemp("teacher") / "model", pattern="ME*-M")


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller hybrid than the teacher, with every kind of layer."""
    return tiny_models.save_hybrid(
        tmp_path_factory.mktemp("student") / "model", pattern="ME*-", seed=1, hidden_size=24, n_routed_experts=4
    )


@pytest.fixture(scope="session")
def undisturbed(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> DistillResult:
    """The run of RECIPE from the first step to the last."""
    return distill(Distillation(student, tiny_hybrid, short_text, tmp_path_factory.mktemp("run") / "out"), RECIPE)
