"""What is refused before anything is loaded, and what a recipe says of a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from distilling import RECIPE
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.errors import MinitronError


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 400), warmup=st.none() | st.integers(0, 100))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end(steps: int, warmup: int | None) -> None:
    recipe = Recipe(steps=steps, learning_rate=3e-4, warmup_steps=None if warmup is None else min(warmup, steps))
    rates = [recipe.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 3e-4 for rate in rates)
    peak = min(100, steps // 10) if recipe.warmup_steps is None else recipe.warmup_steps
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if peak < steps:
        assert rates[peak] == pytest.approx(3e-4)
    if peak < steps - 1:
        assert rates[-1] == pytest.approx(3e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either tokens or steps"),
        ({"tokens": 5000, "steps": 5}, "not both"),
        ({"steps": 0}, "steps is 0"),
        ({"tokens": 100}, "less than one step"),
        ({"steps": 5, "batch_tokens": 1000}, "not a multiple"),
        ({"steps": 5, "sequence_length": 1, "batch_tokens": 4}, "2 or more"),
        ({"steps": 5, "learning_rate": math.nan}, "learning rate is nan"),
        ({"steps": 5, "learning_rate": 1e-4, "minimum_learning_rate": 1e-3}, "above the peak"),
        ({"steps": 5, "warmup_steps": 6}, "do not fit"),
        ({"steps": 5, "precision": "fp16"}, "bf16, fp32"),
        ({"steps": 5, "loss": "cosine"}, "forward_kl"),
        ({"steps": 5, "temperature": 0.0}, "temperature is 0"),
        ({"steps": 5, "lm_weight": -1.0}, "lm weight is -1"),
        ({"steps": 5, "loss": "top_k:4", "vocab_chunk": 8}, "whole vocabulary"),
        ({"steps": 5, "betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MinitronError, match=words):
        Recipe(**fields)


def other_vocabulary(folder: Path) -> Path:
    return tiny_models.save_llama(folder, vocab_size=200)


def other_tokenizer(folder: Path) -> Path:
    path = tiny_models.save_llama(folder)
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"</s>"', '"</t>"'))
    return path


def truncated(folder: Path) -> Path:
    path = tiny_models.save_llama(folder)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_vocabulary, "has 200 embeddings; use the tokenizer"),
        (other_tokenizer, "different tokenizers"),
        (truncated, "truncated"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    make: Any, words: str, student: Path, short_text: Path, tmp_path: Path
) -> None:
    teacher = make(tmp_path / "teacher")
    with pytest.raises(MinitronError, match=words):
        distill(Distillation(student, teacher, short_text, tmp_path / "out"), RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_other_inputs_that_do_not_fit_are_refused(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output, short = tmp_path / "out", tmp_path / "short.txt"
    short.write_text("three birds")

    def refused(words: str, recipe: Recipe = RECIPE, **changes: Any) -> None:
        asked = Distillation(student, tiny_hybrid, short_text, output)
        with pytest.raises(MinitronError, match=words):
            distill(replace(asked, **changes), recipe)

    refused("both student and teacher", teacher=student)
    refused("less than one sequence", data=short)
    refused("less than one sequence", validation=short)
    refused("too few to hold one out", recipe=replace(RECIPE, sequence_length=2000, batch_tokens=2000))
    refused("is also a training text", validation=short_text)
    refused("does not exist", data=tmp_path / "absent.txt")
    refused("choose one of bf16, fp8", teacher_precision="int3")
    refused("is or holds the input", output=student, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    output.mkdir()
    refused("exists already")
    output.rmdir()
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work/diary.txt").write_text("dear diary")
    refused("not the working folder of a distillation")
    assert not output.exists()
