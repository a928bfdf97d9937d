"""`compress --format`: planned, trained and written in fewer bits, with one distillation."""

import json
from pathlib import Path

import pytest
from quantising import save_wide_llama

from cli.app import run
from minitron.files import read_json
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model

SMALL = [
    *("--context", "32", "--sequence-length", "32", "--samples", "2", "--layer-samples", "2", "--no-speed"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "256", "--precision", "fp32"),
    *("--scoring-dtype", "fp32", "--evaluate", "0"),
]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_wide_llama(tmp_path / "model")


def asked(model: Path, text: Path, output: Path, *more: str) -> list[str]:
    return ["compress", str(model), "--data", str(text), "-o", str(output), *SMALL, *more]


def test_what_is_planned_in_a_format_is_what_is_written(
    llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ("--format", "int4", "--keep", "attention=bf16", "--budget", "400KiB", "--lattice", "intermediate_size=96")
    assert run([*asked(llama, short_text, out, *more), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["format"] == "int4"
    models = document["results"]["models"]
    assert models["distilled"]["weight_bytes"] < models["pruned"]["weight_bytes"]
    # What the plan counted is what lies on the disk.
    chosen = document["results"]["steps"]["plan"]["results"]["chosen"]
    assert Checkpoint(out / "distilled").weight_bytes == chosen["footprint"]["weights"]
    section = read_json(out / "distilled/config.json")["quantization_config"]
    assert section["quant_method"] == "compressed-tensors" and any("self_attn" in name for name in section["ignore"])
    # It was trained so, and what was trained is what is there.
    curve = document["results"]["steps"]["distill"]["results"]["curve"]
    assert models["distilled"]["kl_to_teacher"] is not None and len(curve) > 1
    assert "quantization_config" not in read_json(out / "pruned/config.json")
    load_model(out / "distilled")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--format", "int5"], "int5 is no format"),
        (["--format", "int4", "--weights", "fp8"], "drop --weights"),
        (["--format", "int4", "--keep", "lm_head=int8"], "--keep"),
        (["--format", "int4", "--keep", "nothing=bf16"], "nothing"),
        (["--format", "bf16"], "not quantised"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_scored(
    llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], why: str
) -> None:
    assert run([*asked(llama, short_text, tmp_path / "run", *more, "--budget", "400KiB")]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run/scores.safetensors").exists()
