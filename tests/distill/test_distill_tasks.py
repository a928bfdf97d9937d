"""Tasks of lm-eval while a student is trained."""

import json
from dataclasses import replace
from pathlib import Path

import forks
import pytest
import tiny_models
import torch
from lm_eval_tasks import task_file

from cli.app import run
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.train import distill
from minitron.measure.benchmarks import Benchmarks
from minitron.model.loading import load_model, load_tokenizer

RECIPE = Recipe(
    steps=4, sequence_length=16, batch_tokens=64, micro_batch=2, learning_rate=0.02, warmup_steps=0, precision="fp32",
    validate_every=2, validation_sequences=4,
)  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> str:
    words = ["red", "bread", "birds", "road", "salt"]
    items = [
        {"query": f"Anna sees {a}", "choices": [b, f"{a} {b}"], "gold": i % 2}
        for i, (a, b) in enumerate((a, b) for a in words for b in words)
    ]
    (tmp_path / "task").mkdir()
    return str(task_file(tmp_path / "task", items))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)


def test_every_validation_asks_them_and_nothing_else_changes(
    student: Path, tiny_llama: Path, short_text: Path, tmp_path: Path, task: str
) -> None:
    plain = distill(Distillation(student, tiny_llama, short_text, tmp_path / "plain"), RECIPE)
    found = distill(Distillation(student, tiny_llama, short_text, tmp_path / "out"), replace(RECIPE, tasks=(task,)))
    assert found.losses == plain.losses
    assert [{name: value for name, value in point.items() if name != "tasks"} for point in found.curve] == plain.curve
    tokenizer = load_tokenizer(student)
    for folder, point in ((student, found.curve[0]), (tmp_path / "out", found.curve[-1])):
        model = load_model(folder, dtype=torch.float32)
        assert point["tasks"] == Benchmarks([task]).run(model, tokenizer), folder
    card = (tmp_path / "out/README.md").read_text()
    assert f"| birds acc | {found.curve[0]['tasks']['birds']['acc']:.4g} |" in card
    assert "| step | tokens | KL | perplexity | birds acc |" in card


def test_as_it_is_typed(
    student: Path,
    tiny_llama: Path,
    short_text: Path,
    tmp_path: Path,
    task: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["distill", str(student), "--teacher", str(tiny_llama), "--data", str(short_text)]
    arguments += ["--steps", "2", "--sequence-length", "16", "--batch-tokens", "64", "-o", str(tmp_path / "out")]
    assert run([*arguments, "--tasks", "no-such-task.yaml"]) == 2
    assert "no-such-task.yaml does not exist" in capsys.readouterr().err
    assert run([*arguments, "--tasks", task, "--task-limit", "5"]) == 0
    assert "birds acc" in capsys.readouterr().out
    assert run([*arguments, "--tasks", task, "--task-limit", "5", "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    accuracies = [point["tasks"]["birds"]["acc"] for point in document["results"]["curve"]]
    # Of five items.
    assert all(round(5 * accuracy, 6).is_integer() for accuracy in accuracies)


def run_process(rank: int, folder: Path, asked: Distillation, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=2)
    found = distill(asked, recipe, processes=Processes(rank, 2))
    (folder / f"{rank}.json").write_text(json.dumps([point["tasks"] for point in found.curve]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_ask_together(
    student: Path, tiny_llama: Path, short_text: Path, tmp_path: Path, task: str
) -> None:
    recipe = replace(RECIPE, tasks=(task,), batch_tokens=64)
    asked = Distillation(student, tiny_llama, short_text, tmp_path / "many")
    # First, so that the forks find lm-eval imported.
    alone = [point["tasks"] for point in distill(replace(asked, output=tmp_path / "alone"), recipe).curve]
    forks.two(run_process, tmp_path, asked, recipe)
    for rank in (0, 1):
        many = json.loads((tmp_path / f"{rank}.json").read_text())
        assert many[0] == alone[0]
        assert [each["birds"]["acc"] for each in many] == pytest.approx(
            [each["birds"]["acc"] for each in alone],
            abs=1 / 25 + 1e-9,  # one item
        )
