"""--dry-run: what would be read, written and needed; what would be refused is refused, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cli.app import run
from cli.schemas import schema
from minitron.model.checkpoint import Checkpoint
from minitron.model.spec import read_spec
from pipeline import dry_run, machine

SCORING = ["--samples", "2", "--sequence-length", "16"]
TRAINING = ["--sequence-length", "16", "--batch-tokens", "64"]
COMPRESS = ["--context", "16", "--weights", "fp32", "--tokens", "640", "--batch-tokens", "64", *SCORING]
COMPRESS += ["--distill-sequence-length", "16"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0.01)


def lines(model: Path, text: Path, out: Path) -> dict[str, list[str]]:
    """Command -> a sound command line of it."""
    data, budget = ["--data", str(text)], str(round(Checkpoint(model).weight_bytes * 0.8))
    return {
        "score": [*data, *SCORING],
        "prune": [*data, *SCORING, "--set", "hidden_size=24"],
        "quantize": ["--format", "int8"],
        "distill": ["--teacher", str(model), "--format", "int8", *data, "--steps", "3", *TRAINING],
        "compress": [*data, "--budget", budget, *COMPRESS],
    }


def told(command: str, model: Path, out: Path, *given: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([command, str(model), *given, "-o", str(out), "--device", "cpu", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["output", "inputs", "settings", "results", "seconds"]
    jsonschema.validate(document, schema(command))
    found: dict[str, Any] = document["results"]["dry_run"]
    return found


@pytest.mark.parametrize("command", ["score", "prune", "quantize", "distill", "compress"])
def test_nothing_is_written_and_what_is_needed_is_told(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "out"
    line = lines(tiny_hybrid, short_text, out)[command]
    found = told(command, tiny_hybrid, out, *line, capsys=capsys)
    assert not list(tmp_path.iterdir())
    assert found["short"] == [] and found["device"] == "cpu"
    assert found["available_memory_bytes"] > 0 and found["available_disk_bytes"] > 0
    assert any(Checkpoint(tiny_hybrid).weight_bytes == size for size in found["reads"].values())
    assert sum(found["seconds"].values()) >= 0 and sum(found["writes"].values()) > 0
    assert run([command, str(tiny_hybrid), *line, "-o", str(out), "--dry-run"]) == 0
    seen = capsys.readouterr().out
    assert "Would read" in seen and "Nothing was written." in seen
    # What is refused is refused now.
    out.mkdir()
    (out / "precious").write_text("mine")
    assert run([command, str(tiny_hybrid), *line, "-o", str(out), "--dry-run"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [each.name for each in out.iterdir()] == ["precious"]


def test_sizes_and_work_are_those_of_the_model(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = read_spec(tiny_hybrid), tmp_path / "out"
    every = lines(tiny_hybrid, short_text, out)
    found = told("distill", tiny_hybrid, out, *every["distill"], capsys=capsys)
    count = spec.parameters()
    assert sorted(found["memory"].values()) == [2 * count.total, 16 * count.total]
    flops = 3 * 64 * 8 * count.active
    assert found["seconds"]["distill"] == pytest.approx(flops / found["measured"]["flops_per_s"], abs=1e-3)
    smaller = told("prune", tiny_hybrid, out, "--set", "hidden_size=24", *every["prune"][:-2], capsys=capsys)
    assert run(["prune", str(tiny_hybrid), *every["prune"], "-o", str(out), "--dtype", "fp32", "--json"]) == 0
    assert smaller["writes"] == {f"model ({out})": json.loads(capsys.readouterr().out)["results"]["weight_bytes"]}


@pytest.mark.parametrize(
    ("command", "more", "why"),
    [
        ("prune", ["--set", "num_key_value_heads=1"], "is more than the 2 that are in the 1 groups that stay"),
        ("prune", ["--layers", "7", "--set", "num_hidden_layers=3"], "both say which layers stay"),
        ("quantize", ["--kv", "fp8"], "give --data with calibration text"),
        ("distill", ["--text", "/none"], "does not exist"),
        ("compress", ["--budget", "1KiB"], "nothing fits"),
        ("compress", ["--format", "int4"], "--format int4 writes the model, and --weights fp32 plans for another"),
        ("score", ["--data", "/none"], "does not exist"),
    ],
)
def test_refusals_come_at_once(
    tiny_hybrid: Path,
    short_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    more: list[str],
    why: str,
) -> None:
    line = lines(tiny_hybrid, short_text, tmp_path / "out")[command]
    if "--budget" in more:
        line = line[: line.index("--budget")] + line[line.index("--budget") + 2 :]
    assert run([command, str(tiny_hybrid), *line, *more, "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_too_little_memory_or_disk_is_an_error(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    line = ["score", str(tiny_hybrid), "--data", str(short_text), *SCORING, "-o", str(tmp_path / "out"), "--dry-run"]
    monkeypatch.setattr(dry_run, "free_disk", lambda path: 1000)
    assert run(line) == 2
    assert "has 1,000 B free" in capsys.readouterr().err
    monkeypatch.setattr(dry_run, "free_memory", lambda device: 1000)
    assert run([*line, "--json"]) == 2
    seen = capsys.readouterr()
    assert len(json.loads(seen.out)["results"]["dry_run"]["short"]) == 2
    assert "cpu has 1,000 B of free memory" in seen.err
