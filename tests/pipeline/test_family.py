"""Models of several budgets from one scoring: what they share is made once, and each is what it would be alone."""

import json
from pathlib import Path
from typing import Any

import pytest

import importance.score.calibrate
import importance.search.trial
from cli.app import run
from minitron.cut.scores import load_scores
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import read_spec
from pipeline import Compression, Planning, Recipe, Searching

SMALL = [
    *("--context", "32", "--weights", "fp32", "--sequence-length", "32", "--samples", "2", "--layer-samples", "2"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "64", "--dtype", "fp32"),
    *("--dtype", "fp32", "--no-speed", "--evaluate", "2", "--combinations", "4", "--trial-samples", "2"),
    *("--finalists", "0"),
]


def measured(folder: Path) -> set[str]:
    return {json.loads(line)["key"] for line in (folder / "trials.jsonl").read_text().splitlines()}


def test_a_family_is_scored_once_and_measures_what_it_shares_once(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = Checkpoint(tiny_hybrid).weight_bytes
    budgets = [round(whole * share) for share in (0.75, 0.9)]
    calls: list[str] = []
    calibrate, cut = importance.score.calibrate.calibrate, importance.search.trial.Trials._run
    monkeypatch.setattr(
        importance.score.calibrate, "calibrate", lambda *a, **b: calls.append("score") or calibrate(*a, **b)
    )
    monkeypatch.setattr(importance.search.trial.Trials, "_run", lambda *a, **b: calls.append("measure") or cut(*a, **b))
    out = tmp_path / "family"
    asked = ["compress", str(tiny_hybrid), "--data", str(short_text), "-o", str(out), *SMALL, "--json"]
    asked += ["--leave", "layer", "--leave", "head_dim", "--leave", "ssm_state"]
    asked += [word for budget in budgets for word in ("--budget", str(budget))]
    assert run(asked) == 0
    document = json.loads(capsys.readouterr().out)
    names = [f"budget-{budget}" for budget in reversed(budgets)]
    assert list(document["results"]["members"]) == names
    for name, budget in zip(names, reversed(budgets), strict=True):
        assert Checkpoint(out / name / "distilled").weight_bytes <= budget
        assert (out / name / "scores.safetensors").read_bytes() == (out / "scores.safetensors").read_bytes()
    # Scored once; every architecture measured once, though both searches asked for most of them.
    assert calls.count("score") == 1
    assert calls.count("measure") == len(measured(out))
    evaluations = [document["results"]["members"][name]["steps"]["plan"]["results"]["measured"] for name in names]
    assert calls.count("measure") < sum(evaluations)
    # It goes on where it was, and not with another member.
    calls.clear()
    assert run(asked) == 0
    assert calls == []
    assert run([*asked, "--budget", str(round(whole * 0.8))]) == 2
    assert "holds a run with another budgets" in " ".join(capsys.readouterr().err.split())


def test_scores_that_were_written_before_are_taken(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file = tmp_path / "scores.safetensors"
    scoring = ["--samples", "4", "--sequence-length", "32", "--layer-samples", "2", "--dtype", "fp32"]
    assert run(["score", str(tiny_hybrid), "--data", str(short_text), *scoring, "-o", str(file)]) == 0
    out, whole = tmp_path / "run", read_spec(tiny_hybrid).parameters().total
    asked = ["compress", str(tiny_hybrid), "--data", str(short_text), "--scores", str(file), "-o", str(out), *SMALL]
    asked += [
        "--params",
        str(int(whole * 0.95)),
        "--lattice",
        "intermediate_size=40,48,56",
        "--lattice",
        "n_routed_experts=4,6",
    ]
    seen = importance.search.trial.Trials.__init__
    blocks: list[Any] = []
    monkeypatch.setattr(
        importance.search.trial.Trials, "__init__", lambda self, *a, **b: blocks.append(a[2]) or seen(self, *a, **b)
    )
    assert run(asked) == 0
    assert load_scores(out / "scores.safetensors").fingerprint == load_scores(file).fingerprint
    assert read_spec(out / "distilled").parameters().total <= whole * 0.95
    # Candidates were not measured on what the scores had seen.
    from importance.score.blocks import shared
    from minitron.measure.text import token_blocks
    from minitron.model.loading import load_tokenizer

    scored = token_blocks(load_tokenizer(tiny_hybrid), short_text, sequence_length=32, samples=4)
    assert len(blocks[0]) > 0 and shared(blocks[0], scored) < 0.25
    # Others would be another run.
    other = tmp_path / "other.safetensors"
    assert run(["score", str(tiny_hybrid), "--data", str(short_text), *scoring, "--seed", "1", "-o", str(other)]) == 0
    assert run([str(other) if word == str(file) else word for word in asked]) == 2
    assert "run with another scores" in " ".join(capsys.readouterr().err.split())


def test_what_makes_no_family() -> None:
    def compression(**more: Any) -> Compression:
        return Compression(Path("m"), Path("o"), Path("d"), Planning(context=32), Recipe(tokens=4096), **more)

    one = compression(budgets=[5])
    assert (one.planning.budget, one.plannings) == (5, {})
    several = compression(params=[5, 7])
    assert [planning.params for planning in several.plannings.values()] == [5, 7]
    with pytest.raises(Exception, match="several --budget and several --params are given"):
        compression(budgets=[5, 6], params=[5, 7])
    with pytest.raises(Exception, match="--budget is given twice with the same number"):
        compression(budgets=[5, 5])
    with pytest.raises(Exception, match="--sizes per-layer keeps a budget of bytes alone; drop it, or --params"):
        compression(params=[5], searching=Searching(sizes="per-layer"))
