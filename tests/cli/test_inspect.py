"""`minitron inspect`: the document that others rely on, and what it says of bad checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli import app
from minitron.model.families import FAMILIES, WRAPPERS

REFERENCE = Path(__file__).parents[1] / "reference"
PUBLISHED = json.loads((REFERENCE / "param_counts.json").read_text(encoding="utf-8"))["models"]


def inspect(capsys: pytest.CaptureFixture[str], model: Path) -> Any:
    assert app.run(["inspect", str(model), "--json"]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    return json.loads(seen.out)


def test_a_published_config(capsys: pytest.CaptureFixture[str]) -> None:
    told = inspect(capsys, REFERENCE / "models" / "Nemotron-3-Nano-30B-A3B.json")
    assert list(told) == [
        "model_type",
        "family",
        "layers",
        "sizes",
        "differing",
        "parameters",
        "extras",
        "weight_bytes",
        "quantisation",
    ]
    published = PUBLISHED["Nemotron-3-Nano-30B-A3B"]
    assert told["model_type"] == published["model_type"]
    assert told["family"] == "nemotron_h"
    # The model card: 23 Mamba, 6 attention and 23 MoE layers.
    assert {letter: told["layers"].count(letter) for letter in set(told["layers"])} == {"M": 23, "*": 6, "E": 23}
    assert told["sizes"]["hidden"] == 2688
    assert told["sizes"]["expert"] == 128
    assert list(told["parameters"]) == ["total", "active", "mtp", "by_component"]
    assert told["parameters"]["total"] == published["total"]
    assert told["parameters"]["active"] == published["active_with_embeddings"]
    assert told["parameters"]["by_component"] == published["by_component"]
    assert told["weight_bytes"] == 2 * published["total"]


def test_a_checkpoint_is_counted_from_its_headers(
    capsys: pytest.CaptureFixture[str], tiny_hybrid: Path, tiny_llama_tied: Path
) -> None:
    from safetensors import safe_open

    for folder in (tiny_hybrid, tiny_llama_tied):
        told = inspect(capsys, folder)
        parameters = num_bytes = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as stream:
                for name in stream.keys():  # noqa: SIM118 (safe_open is no mapping)
                    tensor = stream.get_tensor(name)
                    parameters += tensor.numel()
                    num_bytes += tensor.numel() * tensor.element_size()
        assert told["parameters"]["total"] == parameters
        assert told["weight_bytes"] == num_bytes
        assert told["parameters"]["mtp"] == 0
    assert inspect(capsys, tiny_hybrid)["layers"] == "MEM*-ME*"


def test_what_a_person_sees(capsys: pytest.CaptureFixture[str], tiny_hybrid: Path) -> None:
    assert app.run(["inspect", str(tiny_hybrid)]) == 0
    told = capsys.readouterr().out
    for part in ("MEM*-ME*", "hidden_size", "active", "moe_routed", "Weights: "):
        assert part in told
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("config", sorted(REFERENCE.glob("models/Nemotron*.json")), ids=lambda path: path.stem)
def test_every_view_fits_80_columns(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert app.run(["inspect", str(config)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_bad_checkpoints_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tiny_hybrid: Path, tmp_path: Path
) -> None:
    def refused(model: Path) -> str:
        assert app.run(["inspect", str(model), "--json"]) == 2
        seen = capsys.readouterr()
        assert seen.out == ""
        assert seen.err.count("\n") == 1
        return seen.err

    assert "does not exist" in refused(tmp_path / "absent")
    model = tmp_path / "model"
    shutil.copytree(tiny_hybrid, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}), encoding="utf-8")
    assert "'mystery'" in refused(model)
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 40}), encoding="utf-8")
    assert "shape" in refused(model)
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (weights,) = model.glob("*.safetensors")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    assert "truncated" in refused(model)
    weights.unlink()
    assert "safetensors" in refused(model)
    (model / "config.json").write_text('{"model_type": ', encoding="utf-8")
    assert "not valid JSON" in refused(model)


def test_the_list_names_every_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", "--list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["types"]) == {*FAMILIES, *WRAPPERS} and not set(told["types"]) & set(told["unsupported"])
    assert all(told["types"].values())
    assert app.run(["inspect", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.split()} >= {*FAMILIES, *WRAPPERS}
    assert app.run(["inspect", "--list", "some/model"]) == 2
    assert "leave MODEL out" in capsys.readouterr().err
    assert app.run(["inspect"]) == 2
    assert "or --list for the model types" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("qwen3_5_txt", "is qwen3_5_text meant"),
        (None, "does not support"),
        ("gemma3n", "embeddings of each layer"),
        ("nemotron-nas", "sizes that differ from layer to layer"),
        ("kimi_k2", "write that as model_type"),
    ],
)
def test_an_unknown_type_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str | None, told: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 64}))
    assert app.run(["inspect", str(tmp_path / "config.json")]) == 2
    error = capsys.readouterr().err
    assert told in error and "inspect --list" in error


def test_a_type_with_code_of_its_own_is_not_taken_for_a_slip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"auto_map": {"AutoConfig": "configuration_of_its_own.ItsConfig"}}
    for model_type in ("phi3small", "chatglm"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        assert app.run(["inspect", str(tmp_path / "config.json")]) == 2
        error = capsys.readouterr().err
        assert f"{model_type!r}, which Minitron does not support;" in error and "meant" not in error
