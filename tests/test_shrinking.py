"""An input that becomes shorter while a command reads it is an error, not the end of the process by SIGBUS."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distill.run.trainer
import importance.score.calibrate
import minitron.model.checkpoint
import minitron.model.layer_by_layer
from cli.app import run
from minitron.cut.scores import load_scores

SCORE = ("--samples", "2", "--sequence-length", "16", "--dtype", "fp32", "--layer-scores", "none")
TRAIN = (
    *("--steps", "3", "--sequence-length", "16", "--batch-tokens", "32", "--dtype", "fp32"),
    *("--validation-sequences", "2", "--validate-every", "1", "--device", "cpu"),
)


def forked(command: list[str], told: Path, module: Any, name: str, before: int, file: Path) -> tuple[int, str]:
    """Run a command in a process of its own in which `file` loses its second half just before `module.name` is called
    for the time of that number; returns its exit code, below zero where a signal ended it, and what it said."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            sys.stderr = told.open("w", buffering=1)
            plain: Callable[..., Any] = getattr(module, name)
            calls = iter(range(1000))

            def shortened(*given: Any, **named: Any) -> Any:
                if next(calls) == before:
                    os.truncate(file, file.stat().st_size // 2)
                return plain(*given, **named)

            setattr(module, name, shortened)
            code = run(command)
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), told.read_text()


@pytest.mark.parametrize(
    ("command", "module", "name", "before", "which", "code"),
    [
        # Weights that are in memory depend on no file any more.
        ("score", importance.score.calibrate, "score_model", 0, "teacher/model.safetensors", 0),
        ("score", minitron.model.checkpoint, "read_rows", 5, "teacher/model.safetensors", 2),
        ("score --offload", minitron.model.layer_by_layer.LayerByLayer, "go", 1, "teacher/model.safetensors", 2),
        ("distill", minitron.model.checkpoint, "read_rows", 5, "teacher/model.safetensors", 2),
        ("distill", distill.run.trainer.Trainer, "train_step", 1, "out.work/tokens/0/ids", 2),
        ("distill --cache", distill.run.trainer.Trainer, "train_step", 1, "cache/part-0-000000.safetensors", 2),
        ("distill --cache", distill.run.trainer.Trainer, "train_step", 1, "teacher/model.safetensors", 0),
    ],
)
def test_a_file_that_becomes_shorter_is_an_error(
    command: str, module: Any, name: str, before: int, which: str, code: int,
    tiny_llama: Path, tiny_llama_tied: Path, short_text: Path, tmp_path: Path,
) -> None:  # fmt: skip
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    shutil.copytree(tiny_llama, teacher)
    shutil.copytree(tiny_llama_tied, student)
    text, output = ["--data", str(short_text)], ["-o", str(tmp_path / "out")]
    if command.startswith("score"):
        line = ["score", str(teacher), *text, *SCORE, *output, *command.split()[1:]]
    else:
        line = ["distill", str(student), "--teacher", str(teacher), *text, *TRAIN, *output]
        if "--cache" in command:
            line += ["--cache-teacher", str(tmp_path / "cache"), "--loss", "sampled:4"]
    ended, told = forked(line, tmp_path / "told", module, name, before, tmp_path / which)
    assert ended == code, told
    if code == 2:
        assert f"{tmp_path / which} became shorter while it was read" in told
    else:
        assert (tmp_path / "out").exists()


def test_scores_that_are_cut_off_are_refused(tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    assert run(["score", str(tiny_llama), "--data", str(short_text), *SCORE, "-o", str(scores)]) == 0
    assert load_scores(scores).weights["sha256"]
    os.truncate(scores, scores.stat().st_size // 2)
    assert run(["plan", str(tiny_llama), "--budget", "1MiB", "--context", "32", "--scores", str(scores)]) == 2
