"""Training by TRL: rollouts of a tiny judge whose words are scripted, so that there is something to learn from."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from judge_school import Actor, save_instructions, save_judge, save_pairs
from safetensors.torch import load_file

from cli.app import run
from cli.schemas import schema
from judge.learning import Learning
from judge.reward import Rewards
from minitron.errors import MinitronError
from minitron.progress import Advance
from pipeline import JudgeTraining, train_judge

SMALL: dict[str, Any] = {
    "steps": 3,
    "prompts": 2,
    "group": 4,
    "updates": 2,
    "batch_size": 4,
    "max_tokens": 6,
    "learning_rate": 1e-3,
    "warmup": 0,
    "checkpoint_every": 1,
    "evaluate_every": 2,
    "rewards": Rewards(1.0, 0.0, -1.0),
}


@pytest.fixture(scope="module")
def place(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("school")
    save_judge(tiny_llama, folder / "judge")
    save_pairs(folder / "pairs.jsonl")
    save_instructions(folder / "instructions.toml")
    return folder


def asked(place: Path, output: Path, **learning: Any) -> JudgeTraining:
    how = Learning(**SMALL | learning)
    files = {"held_out": place / "pairs.jsonl", "instructions": place / "instructions.toml"}
    return JudgeTraining(place / "judge", place / "pairs.jsonl", output, how, device="cpu", **files)


def test_without_trl_it_says_what_to_install(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MinitronError, match=r"minitron\[rl\]"):
        train_judge(asked(place, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_judge_that_never_keeps_to_the_format_ends_it_and_what_it_said_stays(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    line = ["judge-train", str(place / "judge"), "--pairs", str(place / "pairs.jsonl"), "-o", str(tmp_path / "out")]
    line += ["--instructions", str(place / "instructions.toml"), "--device", "cpu"]
    line += ["--pairs-per-step", "1", "--group-size", "2"]
    assert run([*line, "--batch-size", "2", "--judge-tokens", "2", "--steps", "4"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "kept to the format in none of the last 6 rollouts (mostly: turn 1" in said
    kept = (tmp_path / "out.work" / "rollouts.jsonl").read_text().splitlines()
    assert len(kept) == 6 and json.loads(kept[0])["reward"] == -100.0 and not (tmp_path / "out").exists()


class Killed(BaseException):
    """Ends a run in its midst."""


def killing(step: int) -> Any:
    """A progress bar that ends the run at a step."""

    @contextmanager
    def bar(description: str, total: float, unit: str) -> Iterator[Advance]:
        done = 0.0

        def advance(amount: float, note: str = "") -> None:
            nonlocal done
            done += amount
            if done == step:
                raise Killed

        yield advance

    return bar


def without_seconds(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in curve]


def test_a_run_that_was_killed_goes_on_and_gives_the_same_judge(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    actor = Actor(place / "judge")
    monkeypatch.setattr("judge.training.continued", actor)
    seen = list[dict[str, Any]]()
    generate = trl.GRPOTrainer._generate_and_score_completions

    def watched(trainer: Any, inputs: Any) -> Any:
        found = generate(trainer, inputs)
        seen.append({"advantages": found["advantages"], "args": trainer.args, "mask": found["tool_mask"]})
        return found

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_and_score_completions", watched)
    whole = train_judge(asked(place, tmp_path / "whole"))
    assert not (tmp_path / "whole.work").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (place / "judge", tmp_path / "whole"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    document = json.loads((tmp_path / "whole" / "judge_training.json").read_text())
    assert document == whole.to_json() and [line["step"] for line in document["curve"]] == [0, 1, 2, 3]

    # Each reward less the mean of the three others of its group, by the rollouts that were kept: the first group's.
    kept = [json.loads(line) for line in (tmp_path / "whole" / "rollouts.jsonl").read_text().splitlines()]
    assert len(kept) == 3 * SMALL["group"]
    for step, found in enumerate(seen[:3]):
        rewards = [line["reward"] for line in kept if line["step"] == step + 1]
        expected = [one - (sum(rewards) - one) / (len(rewards) - 1) for one in rewards]
        torch.testing.assert_close(found["advantages"][: len(rewards)], torch.tensor(expected))
    args = seen[0]["args"]
    assert (args.epsilon, args.epsilon_high, args.beta, args.num_generations) == (0.2, 0.28, 0.01, 4)
    assert 0 < float(seen[0]["mask"].float().mean()) < 1  # what was asked second is not learned from

    with pytest.raises(Killed):
        train_judge(asked(place, tmp_path / "out"), progress=killing(2))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.work" / "checkpoints" / "checkpoint-2" / "whole.json").is_file()
    resumed = train_judge(asked(place, tmp_path / "out", checkpoint_every=3, max_seconds=1e6))
    assert without_seconds(resumed.results["curve"]) == without_seconds(document["curve"])
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(again[name], after[name]) for name in after)
    names = ["rollouts.jsonl", "config.json", "tokenizer.json", "README.md"]
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    with pytest.raises(MinitronError, match="exists already"):
        train_judge(asked(place, tmp_path / "out"))


def test_a_time_that_is_over_ends_it_after_a_step_and_writes_the_judge(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr("judge.training.continued", Actor(place / "judge"))
    line = ["judge-train", str(place / "judge"), "--pairs", str(place / "pairs.jsonl"), "-o", str(tmp_path / "out")]
    line += ["--instructions", str(place / "instructions.toml"), "--device", "cpu"]
    line += ["--pairs-per-step", "1", "--group-size", "2"]
    line += ["--batch-size", "2", "--judge-tokens", "2", "--turns", "one", "--held-out", str(place / "pairs.jsonl")]
    assert run([*line, "--time", "1ms", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("judge-train"))
    found = document["results"]
    assert found["steps"] == 1 and found["stopped"] and found["turns"] == "one" and found["after"]["broken"] == 0
    assert "trained by Minitron on 3 pairs: 1 steps" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "holds no"),
        ([("Anna sees", "", "salt")], "no pair of which both answers say something"),
        ([("Anna sees", "a bird", "salt")], "give 2 prompts in both orders, and a step takes 4"),
        ([("Anna sees " * 900, "a bird", "salt"), ("Ben " * 900, "a", "b")], "no pair leaves room for 2 turns"),
    ],
)
def test_pairs_that_nothing_can_be_learned_from(
    place: Path, tmp_path: Path, pairs: list[tuple[str, str, str]], said: str
) -> None:
    pytest.importorskip("trl")
    bad = save_pairs(tmp_path / "bad.jsonl", pairs)
    how = Learning(**SMALL | {"prompts": 4})
    with pytest.raises(MinitronError, match=said):
        train_judge(JudgeTraining(place / "judge", bad, tmp_path / "out", how, device="cpu"))
    assert not (tmp_path / "out").exists()
