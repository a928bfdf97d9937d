"""Distillation, scoring and rounding on a device, against the same on the CPU."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distilling import RECIPE
from quantising import in_bf16, save_wide_llama
from tiny_models import save_hybrid

from distill.run.distillation import Distillation
from distill.run.result import DistillResult
from distill.run.train import distill
from importance.rounding.in_memory import round_in_memory
from importance.score.calibrate import calibrate
from importance.score.options import ScoringOptions
from minitron.cut.scores import Scores
from minitron.measure.quality import measure_quality
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.quantise.wanted import Wanted

SHORT = replace(RECIPE, steps=4, validate_every=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hybrid(tmp_path_factory.mktemp("student") / "model", seed=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_bf16(save_wide_llama(tmp_path_factory.mktemp("llama") / "model"))


def trained(
    student: Path, teacher: Path, text: Path, output: Path, device: torch.device, **asked: Any
) -> DistillResult:
    recipe = replace(SHORT, **asked.get("recipe", {}))
    rest = {name: value for name, value in asked.items() if name != "recipe"}
    return distill(Distillation(student, teacher, text, output, device=str(device), **rest), recipe)


MIXED = {"lm_weight": 0.5, "cosine_weight": 0.5, "temperature": 2.0}
RUNS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "behind": ({"recipe": {"async_checkpoints": True}}, {}),
    "in layers": ({"offload_teacher": True, "recipe": {"activation_checkpointing": True}}, {}),
    "mixed": ({"recipe": MIXED | {"vocab_chunk": 100}}, {"recipe": MIXED}),
}
"""Run -> how it is asked for on the device, and on the CPU a way to the same numbers."""


@pytest.mark.parametrize("run", RUNS)
def test_the_same_losses(
    run: str, device: torch.device, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    if run == "plain" and device.type == "cpu":
        pytest.skip("what others are compared with")
    one, other = (
        trained(student, tiny_hybrid, short_text, tmp_path / f"{number}", place, **asked)
        for number, (place, asked) in enumerate(zip((device, torch.device("cpu")), RUNS[run], strict=True))
    )
    np.testing.assert_allclose(one.losses, other.losses, rtol=2e-3)
    np.testing.assert_allclose([point["kl"] for point in one.curve], [point["kl"] for point in other.curve], rtol=5e-3)


def test_a_cached_teacher(
    device: torch.device, student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    found = trained(
        student,
        tiny_hybrid,
        short_text,
        tmp_path / "out",
        device,
        cache=tmp_path / "cache",
        recipe={"loss": "sampled:12"},
    )
    assert len(found.losses) == SHORT.steps and np.isfinite(found.losses).all()


@pytest.mark.parametrize(
    ("form", "scales"), [("fp8-dynamic", "frozen"), ("nvfp4a16", "learned"), ("int8", "frozen"), ("int4", "learned")]
)
def test_students_in_fewer_bits(
    form: str, scales: str, device: torch.device, llama: Path, short_text: Path, tmp_path: Path
) -> None:
    how = {"student_format": form, "student_scales": scales, "student_round": "nearest"}
    one, other = (
        trained(
            llama,
            llama,
            short_text,
            tmp_path / f"{number}",
            place,
            **how,
            recipe={"steps": 2, "micro_batch": size, "learning_rate": 1e-3},
        )
        for number, (place, size) in enumerate([(device, 2), (torch.device("cpu"), 4)])
    )
    # A number halfway between two of the grid may go to either.
    np.testing.assert_allclose(one.losses, other.losses, rtol=0.05, atol=1e-4)


def scored(model: Path, text: Path, device: torch.device, offload: bool) -> Scores:
    options = ScoringOptions(
        samples=8, sequence_length=32, batch_size=2, layer_samples=2, max_dropped=2, dtype="fp32", offload=offload
    )
    return calibrate(model, text, options, device=str(device))


@pytest.mark.parametrize("offload", [False, True])
def test_the_same_scores(device: torch.device, offload: bool, tiny_hybrid: Path, short_text: Path) -> None:
    if device.type == "cpu" and not offload:
        pytest.skip("what others are compared with")
    one = scored(tiny_hybrid, short_text, device, offload)
    other = scored(tiny_hybrid, short_text, torch.device("cpu"), False)
    assert one.importance.keys() == other.importance.keys()
    for key, values in one.importance.items():
        np.testing.assert_allclose(values, other.importance[key], rtol=5e-3, atol=1e-5, err_msg=str(key))


@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_rounding_in_memory(form: str, device: torch.device, llama: Path) -> None:
    spec, blocks = read_spec(llama), np.arange(3, 3 + 4 * 48).reshape(4, 48) % 290
    found = []
    for place, size in ((device, 2), (torch.device("cpu"), 4)):
        model = load_model(llama, dtype=torch.float32, device=place)
        round_in_memory(model, spec, Wanted(form), blocks, batch_size=size)
        found.append(measure_quality(model, blocks).perplexity)
    assert found[0] == pytest.approx(found[1], rel=0.02)
