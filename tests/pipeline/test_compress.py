"""The chain: from a text and a budget to a distilled checkpoint, killed anywhere and gone on with."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pipeline.chain
from cli.app import run
from cli.schemas import schema
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from pipeline.plan_document import serve_line_for
from pipeline.planning import Planning
from pipeline.quantising import Quantising, quantise

SMALL = [
    *("--context", "32", "--weights", "fp32", "--sequence-length", "32", "--samples", "2", "--layer-samples", "2"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "256", "--dtype", "fp32"),
    *("--dtype", "fp32", "--no-speed", "--evaluate", "4", "--combinations", "4", "--trial-samples", "2"),
    *("--finalists", "2", "--finalist-tokens", "64"),
]


@pytest.fixture
def arguments(tiny_hybrid: Path, short_text: Path, tmp_path: Path) -> list[str]:
    budget = round(Checkpoint(tiny_hybrid).weight_bytes * 0.75)
    return [
        *("compress", str(tiny_hybrid), "--data", str(short_text), "--budget", str(budget)),
        *("-o", str(tmp_path / "run"), *SMALL),
    ]


def states(run_folder: Path) -> dict[str, int]:
    """The modification times of the artefacts, by which a step that was redone shows."""
    names = ("scores.safetensors", "plan.json", "pruned", "distilled", "evaluation.json")
    return {name: (run_folder / name).stat().st_mtime_ns for name in names if (run_folder / name).exists()}


def test_a_run_that_stops_in_any_step_goes_on_with_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only a GGUF file is exported (tests/gguf/test_compress.py).
    steps = {name: step for name, step in pipeline.chain.STEPS.items() if name != pipeline.chain.EXPORT}

    def stop(request: Any, *rest: Any) -> None:
        raise KeyboardInterrupt

    before: dict[str, int] = {}
    for place, (name, (artefact, _)) in enumerate(steps.items()):
        with monkeypatch.context() as patch:
            patch.setitem(pipeline.chain.STEPS, name, (artefact, stop))
            assert run(arguments) == 130
        now = states(tmp_path / "run")
        assert len(now) == place
        assert {key: now[key] for key in before} == before
        before = now
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"output", "inputs", "settings", "results", "seconds"}
    models = document["results"]["models"]
    assert list(models) == ["teacher", "pruned", "distilled"]
    assert models["teacher"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert models["pruned"]["weight_bytes"] == models["distilled"]["weight_bytes"]
    assert models["pruned"]["promised"]["weight_bytes"] == models["pruned"]["weight_bytes"]
    assert set(document["results"]["steps"]) == set(steps)
    load_model(tmp_path / "run" / "distilled")
    curve = document["results"]["steps"]["distill"]["results"]["curve"]
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert [point["kl_nats"] for point in report["training"]["points"]] == [point["kl"] for point in curve]
    assert 'id="training"' in (tmp_path / "run" / "report" / "report.html").read_text()
    jsonschema.validate(document, schema("compress"))
    # The folder keeps its settings, by which the run goes on: there is nothing left to do.
    done = states(tmp_path / "run")
    assert run(["compress", "--config", str(tmp_path / "run" / "run.toml")]) == 0
    assert states(tmp_path / "run") == done
    assert document["results"]["serve"] == ""
    assert run(arguments) == 0
    assert {key: states(tmp_path / "run")[key] for key in before} == before


@pytest.mark.parametrize(("form", "flag"), [("", "--dtype float32 "), ("int8", "")])
def test_the_line_that_serves_the_result_is_of_its_folder_as_it_is_stored(
    form: str, flag: str, tiny_hybrid: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder"
    if form:
        quantise(Quantising(tiny_hybrid, folder, form))
    else:
        shutil.copytree(tiny_hybrid, folder)
    planning = Planning(budget=2**30, context=32, engine="vllm", weights="fp32", keep={"attention": "fp8"})
    line = serve_line_for(folder, planning)
    room = re.sub(r" --kv-cache-memory-bytes \d+", "", line)
    assert room == (
        f"vllm serve '{folder}' --max-model-len 32 --max-num-seqs 1 --max-num-batched-tokens 2048 {flag}"
        "--mamba-ssm-cache-dtype float32 --enable-prefix-caching"
    )
    assert line != room
    assert serve_line_for(folder, replace(planning, engine="plain")) == ""


def test_another_request_does_not_go_on_from_a_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def done(request: Any, *rest: Any) -> None:
        (request.output / "scores.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.chain.STEPS, "score", ("scores.safetensors", done))
    assert run(arguments) == 130
    assert run([*arguments, "--learning-rate", "0.01"]) == 2
    assert "run with another training" in capsys.readouterr().err
    assert run([*arguments, "--learning-rate", "0.01", "--overwrite"]) == 130


def test_another_training_text_does_not_go_on_from_a_run(
    arguments: list[str],
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def done(request: Any, *rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.chain.STEPS, "score", ("scores.safetensors", done))
    arguments += ["--calibration", str(short_text)]
    assert run(arguments) == 130
    other = tmp_path / "other.txt"
    other.write_text(short_text.read_text() + " And more of it.")
    arguments[arguments.index("--data") + 1] = str(other)
    assert run(arguments) == 2
    assert "run with another data" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_touched(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert run([*arguments, *more]) == 2
        assert "not a run folder of minitron" in capsys.readouterr().err
    assert (tmp_path / "run" / "precious").read_text() == "mine"


def test_a_run_that_holds_its_own_input_is_not_overwritten(arguments: list[str], tmp_path: Path) -> None:
    inside = tmp_path / "run" / "data.txt"
    inside.parent.mkdir()
    inside.write_text("Anna sees the old road. " * 200)
    (tmp_path / "run" / "run.json").write_text("{}")
    arguments[arguments.index("--data") + 1] = str(inside)
    assert run([*arguments, "--overwrite"]) == 2
    assert inside.exists()


def test_judging_text_is_not_trained_on(arguments: list[str], short_text: Path, tmp_path: Path) -> None:
    assert run([*arguments, "--text", str(short_text)]) == 2
    assert not (tmp_path / "run").exists()


def test_text_held_back_is_the_end_of_the_data(
    arguments: list[str], short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(request: Any, *rest: Any) -> None:
        assert request.data.read_text() + request.heldout.read_text() == short_text.read_text()
        assert 0.03 < len(request.heldout.read_text()) / len(short_text.read_text()) < 0.06
        assert request.calibration == request.data
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.chain.STEPS, "score", ("scores.safetensors", look))
    assert run(arguments) == 130


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--gpu", "A10G"], "--gpu and --budget are both"),
        (["--tokens", "32"], "less than one step"),
        (["--distill-sequence-length", "48"], "not a multiple of the sequence length"),
        (["--layers", "4", "--pattern", "M"], "--layers and --pattern"),
    ],
)
def test_contradictions_are_told_before_any_work(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], why: str
) -> None:
    assert run([*arguments, *more]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_flipped_bit_in_what_a_step_left_is_found(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(request: Any, *rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.chain.STEPS, "distill", ("distilled", stop))
        assert run(arguments) == 130
    folder = tmp_path / "run"
    for name in ("run.json", "scores.safetensors", "plan.json", "pruned/model.safetensors", "text/heldout.txt"):
        whole = (folder / name).read_bytes()
        half = len(whole) // 2
        (folder / name).write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
        capsys.readouterr()
        assert run(arguments) == 2
        assert f"{folder / name} is damaged" in capsys.readouterr().err
        (folder / name).write_bytes(whole)
    shutil.rmtree(folder / "pruned")  # as the message says, after which it is made again
    with monkeypatch.context() as patch:
        patch.setitem(pipeline.chain.STEPS, "distill", ("distilled", stop))
        assert run(arguments) == 130
    assert (folder / "pruned/model.safetensors").exists()
