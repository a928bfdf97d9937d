"""A user whose CPU has no bf16 is told, where a model is to compute in it."""

from pathlib import Path

import pytest
import torch

from importance.score.options import ScoringOptions
from minitron.measure.options import Dtype, EvaluationOptions
from minitron.model.loading import told_of_software
from minitron.progress import silent
from pipeline import Compression, Planning, Recipe, evaluate, score
from pipeline.preparation import prepared

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["in software", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here, which knows what the CPU can do")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    return bool(request.param)


def test_only_bf16_on_a_cpu_is_slow(native: bool) -> None:
    assert (told_of_software("bf16", CPU) is None) == native
    assert told_of_software("fp32", CPU) is None
    assert told_of_software("bf16", torch.device("cuda")) is None


def test_compress_tells_it_before_it_scores(native: bool, tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    planning = Planning(budget=2**20, context=16)
    asked = Compression(tiny_llama, tmp_path / "run", short_text, planning, Recipe(tokens=4096), device="cpu")
    prepared(asked, silent, notes.append)
    assert len([line for line in notes if "--dtype fp32" in line]) == (0 if native else 1)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_commands_that_run_a_model_tell_it(native: bool, dtype: Dtype, tiny_llama: Path, short_text: Path) -> None:
    notes: list[str] = []
    asked = EvaluationOptions(sequence_length=16, samples=2, dtype=dtype, speed=False)
    evaluate([tiny_llama], short_text, asked, device="cpu", note=notes.append)
    scoring = ScoringOptions(samples=2, sequence_length=16, layers="none", dtype=dtype)
    score(tiny_llama, short_text, scoring, device="cpu", note=notes.append)
    told = [line for line in notes if "--dtype fp32" in line]
    assert len(told) == (0 if native or dtype == "fp32" else 2)


def test_without_onednn_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert told_of_software("bf16", CPU) is None
