"""What is trained of a mixture of experts, and how its load is told."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from distilling import RECIPE, weights
from torch import Tensor

from distill.run.distillation import Distillation
from distill.run.result import DistillResult
from distill.run.router_load import counted, load_of
from distill.run.train import distill
from distill.text.data import read_text
from minitron.errors import MinitronError
from minitron.model.loading import load_model, load_tokenizer


def test_of_routers_alone_nothing_else_changes(
    student: Path, tiny_hybrid: Path, tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    result = distill(Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), replace(RECIPE, train="router"))
    before = weights(student)
    changed = {name for name, tensor in weights(result.output).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("mixer.gate.weight")}
    with pytest.raises(MinitronError, match="no routers"):
        dense = tiny_models.save_llama(tmp_path / "dense", seed=2)
        distill(Distillation(dense, tiny_llama, short_text, tmp_path / "no"), replace(RECIPE, train="router"))


def test_routers_may_stay_as_they_are(student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    result = distill(
        Distillation(student, tiny_hybrid, short_text, tmp_path / "out"), replace(RECIPE, train="all-but-router")
    )
    before = weights(student)
    same = {name for name, tensor in weights(result.output).items() if torch.equal(tensor, before[name])}
    assert same == {name for name in before if ".gate." in name}


def test_the_load_of_experts_is_told(
    undisturbed: DistillResult, student: Path, tiny_llama: Path, short_text: Path
) -> None:
    text = read_text(load_tokenizer(student), short_text, sequence_length=16, validation_sequences=6)
    model, chosen = load_model(student, dtype=torch.float32, device=torch.device("cpu")), list[Tensor]()
    (gate,) = (module for name, module in model.named_modules() if name.endswith(".gate"))
    gate.register_forward_hook(lambda module, given, found: chosen.append(found[2]))
    with torch.no_grad():
        model(torch.from_numpy(text.validation))
    counts = [sum(int((part == expert).sum()) for part in chosen) for expert in range(4)]
    point = undisturbed.curve[0]
    assert point["busiest_expert"] == pytest.approx(max(counts) / (sum(counts) / 4))
    assert point["idle_experts"] == counts.count(0)
    assert "the busiest expert gets" in (undisturbed.output / "README.md").read_text()
    with counted(load_model(tiny_llama)) as found:
        assert load_of(found) == {}
