"""Recipe files: stages in a row, each with its own text and length."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from cli.app import run
from distill.run import stages as stages_module
from distill.run.distillation import Distillation
from distill.run.recipe_file import bundled, read_recipe
from distill.run.train import distill
from minitron.errors import MinitronError
from minitron.measure.records import Source
from minitron.model.checkpoint import Checkpoint

RECIPE = """
learning_rate = 0.01
batch_tokens = 64
precision = "fp32"
validation_sequences = 4
warmup_steps = 1

[[stages]]
steps = 3
sequence_length = 16

[[stages]]
tokens = "1k"
batch_tokens = 128
sequence_length = 32
data = ["0.5:long.txt", "0.5:text.txt"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_models.write_text(tmp_path / "text.txt")
    tiny_models.write_text(tmp_path / "long.txt", seed=1, sentences=400)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)
    return tmp_path


def arguments(folder: Path, teacher: Path, *more: str) -> list[str]:
    paths = [str(folder / "student"), "--teacher", str(teacher), "--data", str(folder / "text.txt")]
    recipe = ["--recipe", str(folder / "recipe.toml"), "--device", "cpu"]
    return ["distill", *paths, "-o", str(folder / "out"), *recipe, *more]


def test_a_recipe_file_is_read(folder: Path) -> None:
    first, second = read_recipe(folder / "recipe.toml")
    assert (first.recipe.steps, first.recipe.sequence_length, first.recipe.batch_tokens) == (3, 16, 64)
    assert (second.recipe.total_steps, second.recipe.learning_rate) == (8, 0.01)
    assert first.data == ()
    assert second.data == (Source(str(folder / "long.txt"), 0.5), Source(str(folder / "text.txt"), 0.5))


def test_stages_run_one_after_the_other(folder: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(folder, tiny_llama, "--json")) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    (before,) = results["stages"]
    assert before["steps"] == 3 and results["steps"] == 8
    assert results["kl_after"] < before["kl_before"]
    card = (folder / "out/README.md").read_text()
    assert "# student, distilled" in card and "Stage 1 before: 192 tokens in sequences of 16" in card
    assert not (folder / "out.work").exists()
    assert Checkpoint(folder / "out").headers.keys() == Checkpoint(folder / "student").headers.keys()


def test_a_stage_that_is_done_is_not_run_again(
    folder: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def broken(asked: Distillation, *given: Any, **named: Any) -> Any:
        calls.append(asked.student.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return distill(asked, *given, **named)

    monkeypatch.setattr(stages_module, "distill", broken)
    assert run(arguments(folder, tiny_llama)) == 130
    capsys.readouterr()
    assert run([*arguments(folder, tiny_llama), "--json"]) == 0
    assert calls == ["student", "stage-1", "stage-1"]
    assert json.loads(capsys.readouterr().out)["results"]["stages"][0]["steps"] == 3


def test_another_recipe_does_not_go_on_there(
    folder: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "distill", stopped)
        assert run(arguments(folder, tiny_llama)) == 130
    (folder / "recipe.toml").write_text(RECIPE.replace("steps = 3", "steps = 2"))
    assert run(arguments(folder, tiny_llama)) == 2
    assert "another stage 1.recipe.steps (3, now 2)" in capsys.readouterr().err
    (folder / "recipe.toml").write_text(RECIPE)
    assert run([*arguments(folder, tiny_llama), "--teacher-precision", "fp8"]) == 2
    assert "stage 1.teacher_precision ('bf16', now 'fp8')" in capsys.readouterr().err
    assert run([*arguments(folder, tiny_llama), "--overwrite"]) == 0


def test_a_later_stages_mistake_is_told_before_the_first_begins(
    folder: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "long.txt").unlink()
    assert run(arguments(folder, tiny_llama)) == 2
    assert "long.txt" in capsys.readouterr().err
    tiny_models.write_text(folder / "long.txt", seed=1, sentences=400)
    assert run([*arguments(folder, tiny_llama), "--track", "paper"]) == 2
    assert "no tracker 'paper'" in capsys.readouterr().err
    cache = ["--cache-teacher", str(folder / "cache")]
    (folder / "recipe.toml").write_text(RECIPE.replace("steps = 3", "steps = 3\nloss = 'sampled:4'"))
    assert run([*arguments(folder, tiny_llama), *cache]) == 2
    assert "forward_kl" in capsys.readouterr().err
    assert not (folder / "out").exists() and not (folder / "out.work").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "not valid TOML"),
        ("steps = 3", r"no \[\[stages\]\]"),
        ("[[stages]]\nsteps = 3\ncolour = 'red'", "stage 1: there is no setting 'colour'"),
        ("[[stages]]\nsteps = 3\ndata = 'a.txt'", "not a list of texts"),
        ("[[stages]]\nlearning_rate = 1", "either tokens or steps"),
        ("[[stages]]\nsteps = 'three'", "three"),
        ("[[stages]]\nsteps = 3\nlearning_rate = 'high'", "learning_rate is 'high', not a number"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(MinitronError, match=words):
        read_recipe(folder / "recipe.toml")


def test_two_ways_to_say_how_are_one_too_many(
    folder: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(folder, tiny_llama, "--steps", "3")) == 2
    assert "--steps conflicts with --recipe" in capsys.readouterr().err
    typed = [word for word in arguments(folder, tiny_llama) if word not in ("--data", str(folder / "text.txt"))]
    assert run(typed) == 2
    assert "stage 1 of the recipe names no data" in capsys.readouterr().err
    assert run(typed[: typed.index("--recipe")]) == 2
    assert "no text to train on" in capsys.readouterr().err


def test_the_recipes_that_are_shipped_are_called_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(bundled()) >= 4
    for name in bundled():
        assert all(stage.recipe.total_tokens > 10**8 and not stage.data for stage in read_recipe(Path(name)))
    # A file of that name is what is meant.
    Path("short-then-long").write_text("[[stages]]\nsteps = 3\n")
    assert [stage.recipe.steps for stage in read_recipe(Path("short-then-long"))] == [3]
    with pytest.raises(MinitronError, match="or one of nemotron-3-nano"):
        read_recipe(Path("short-then-long.toml"))
