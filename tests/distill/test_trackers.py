"""Figures on their way to trackers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.trackers import TRACKERS, require_tracker
from distill.run.train import distill
from minitron.errors import MinitronError

RECIPE = Recipe(steps=3, sequence_length=16, batch_tokens=64, validation_sequences=4, precision="fp32")


def test_tensorboard_shows_every_step_and_validation(tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)
    found = distill(
        Distillation(tmp_path / "student", tiny_llama, short_text, tmp_path / "out", track="tensorboard"), RECIPE
    )
    seen = events.EventAccumulator(str(tmp_path / "out.tensorboard")).Reload()
    assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3]
    assert [event.value for event in seen.Scalars("train/loss")] == pytest.approx(found.losses)
    assert seen.Scalars("held-out/kl")[-1].value == pytest.approx(found.kl_after)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_told_by_wandbs_functions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, Any]] = []
    service = SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda figures, step: calls.append(("log", (figures, step))),
        finish=lambda: (calls.append(("finish", None)), print("See you."))[0],
    )
    monkeypatch.setitem(sys.modules, name, service)
    with TRACKERS[name](tmp_path / "out", {"seed": 0}, 4) as send:
        send(5, {"train/loss": 1.0})
    assert [call[0] for call in calls] == ["init", "log", "finish"]
    out, err = capsys.readouterr()
    assert out == "" and "See you." in err
    given = calls[0][1]
    assert (given["project"], given["name"], given["config"], given["resume"]) == (
        "minitron",
        "out",
        {"seed": 0},
        "allow",
    )
    assert calls[1][1] == ({"train/loss": 1.0}, 5)
    if name == "wandb":
        # The same run goes on under its id; another recipe or folder is another run.
        for folder, settings in (("out", {"seed": 0}), ("out", {"seed": 1}), ("other/out", {"seed": 0})):
            with TRACKERS[name](tmp_path / folder, settings, 4):
                pass
        ids = [call[1]["id"] for call in calls if call[0] == "init"]
        assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_tracker_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MinitronError, match="no tracker 'paper'"):
        require_tracker("paper")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MinitronError, match="pip install wandb"):
        require_tracker("wandb")
