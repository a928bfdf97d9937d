"""`minitron score` and what it calls: a folder and a text in, a file out."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from slow_importance import (
    EXPERTS,
    HEADS,
    blocks_of,
    loaded,
    quick,
)

from cli import app
from cli.schemas import schema
from importance.score.calibrate import calibrate
from importance.score.options import ScoringOptions
from minitron.cut.scores import load_scores
from minitron.errors import MinitronError
from minitron.model.spec import read_spec


def test_calibrate_reads_a_folder_and_a_text(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> None:
    scores = calibrate(
        tiny_hybrid,
        short_text,
        ScoringOptions(samples=4, sequence_length=32, layers="fast", dtype="fp32"),
        device="cpu",
    )
    scores.require(read_spec(tiny_hybrid))
    settings = scores.settings
    assert (settings["samples"], settings["sequence_length"], settings["dtype"]) == (4, 32, "float32")
    assert settings["seconds"] > 0
    scores.save(tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors")
    assert again.importance.keys() == scores.importance.keys()
    for key, values in scores.importance.items():
        assert (again.importance[key] == values).all()


def test_what_a_user_can_mend(tiny_hybrid: Path, tiny_llama: Path, short_text: Path) -> None:
    with pytest.raises(MinitronError, match=r"tokens, less than one sequence of 100000"):
        calibrate(tiny_hybrid, short_text, ScoringOptions(sequence_length=100_000))
    with pytest.raises(MinitronError, match="longer than the 256 positions"):
        calibrate(tiny_llama, short_text, ScoringOptions(samples=1, sequence_length=300), device="cpu")
    with pytest.raises(MinitronError, match="no device"):
        calibrate(tiny_llama, short_text, ScoringOptions(samples=1, sequence_length=32), device="gpu:0")
    model, spec = loaded(tiny_llama)
    with pytest.raises(MinitronError, match="token id 300 and the model has 300 embeddings"):
        quick(model, spec, np.full((1, 4), 300))
    model.get_submodule("model.layers.1.mlp.up_proj").weight[0] = float("nan")
    for layers in ("none", "fast", "iterative"):
        with pytest.raises(MinitronError, match="not finite"):
            quick(model, spec, blocks_of(1), layers=layers)


def test_positions_of_a_model_without_rotary_embeddings_have_no_end(tiny_hybrid: Path) -> None:
    model, spec = loaded(tiny_hybrid)
    assert quick(model, spec, np.full((1, 300), 5)).settings["sequence_length"] == 300


def test_score_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", str(tiny_hybrid), "--data", str(short_text), "-o", str(output), "--sequence-length", "32"]
    line += ["--samples", "4", "--batch-size", "2", "--layer-samples", "2", "--max-dropped", "1", "--device", "cpu"]
    assert app.run([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["output", "inputs", "settings", "results", "seconds"]
    jsonschema.validate(told, schema("score"))
    assert told["output"] == str(output)
    results = told["results"]
    assert results["tokens"] == 4 * 32
    assert [row["kind"] for row in results["layers"]] == list("MEM*-ME*")
    assert results["axes"]["expert_ffn"]["places"] == 2 * EXPERTS
    assert results["axes"]["mamba_channel"]["size"] == HEADS * 10
    for row in results["axes"].values():
        assert 0.25 <= row["best_quarter"] <= row["best_half"] <= 1
    load_scores(output).require(read_spec(tiny_hybrid))
    costs = results["costs"]
    assert list(costs) == [
        "model's pass",
        "channels, norms, experts",
        "covariance of the stream",
        "states",
        "second moments",
        "projection bases",
        "surgeon and ridges",
        "layers",
        "the rest",
    ]
    assert all(part["seconds"] > 0 for part in costs.values())
    assert sum(part["share"] for part in costs.values()) == pytest.approx(1)

    assert app.run(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert app.run([*line, "--overwrite", "--layer-scores", "fast"]) == 0
    seen = capsys.readouterr()
    assert "best quarter" in seen.out and "1 - cosine" in seen.out and str(output) in seen.out
    assert "4 asked for" not in seen.err
    assert re.search(r"Scoring took [\d.]+ s: model's pass [\d.]+ s \(\d+%\), .*second moments", seen.err)
    assert "layers" not in seen.err.partition("Scoring took")[2]


def test_a_text_with_fewer_sequences_than_asked_for_is_told(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", str(tiny_llama), "--data", str(short_text), "-o", str(output), "--sequence-length", "256"]
    assert app.run([*line, "--samples", "999", "--layer-scores", "none", "--device", "cpu"]) == 0
    assert "not the 999 asked for" in capsys.readouterr().err
    assert app.run(["score", str(tiny_llama), "--data", str(tmp_path / "none.txt"), "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
