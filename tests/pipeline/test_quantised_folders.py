"""Quantised folders: counted to the byte, and refused before any work by every command that reads weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quantising import quantise_folder
from safetensors.torch import load_file
from torch import Tensor

from cli import app
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.stored import quantisation_in, read_stored_spec

FP8 = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}


def fp8(_: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max().float() / 448
    return {
        ".weight": (weight.float() / scale).to(torch.float8_e4m3fn),
        ".weight_scale": scale,
        ".input_scale": torch.ones(()),
    }


def cast(_: str, weight: Tensor) -> dict[str, Tensor]:
    return {".weight": weight.to(torch.float8_e4m3fn)}


def strange(_: str, weight: Tensor) -> dict[str, Tensor]:
    """A layout of nobody's, with a blob of its own size for every matrix."""
    return {
        ".codes": torch.zeros(weight.numel() // 3, dtype=torch.uint8),
        ".codebook": torch.zeros(len(_), dtype=torch.float32),
    }


@pytest.fixture(scope="module", params=["modelopt", "hf_quant_config", "cast", "strange"])
def folder(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "model"
    match request.param:
        case "modelopt":
            return quantise_folder(tiny_llama, target, fp8, FP8)
        case "hf_quant_config":
            beside = {
                "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
            }
            return quantise_folder(tiny_llama, target, fp8, None, beside={"hf_quant_config.json": beside})
        case "cast":
            return quantise_folder(tiny_llama, target, cast, None)
        case _:
            return quantise_folder(tiny_llama, target, strange, {"quant_method": "strange"})


def size_of(folder: Path) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(folder / "model.safetensors").values())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; returns what it printed, or where it is to fail the message."""

    def run(*words: object, code: int = 0) -> str:
        assert app.run([str(word) for word in words]) == code, words
        told = capsys.readouterr()
        return told.err if code else told.out

    return run


def test_bytes_are_those_of_the_files(folder: Path, run: Any) -> None:
    assert quantisation_in(folder) is not None
    spec = read_stored_spec(folder)
    assert footprint(spec, workload_of(spec, 8)).weights == size_of(folder)
    document = json.loads(run("inspect", folder, "--json"))
    assert document["weight_bytes"] == size_of(folder)
    assert document["quantisation"] == spec.quantisation.told  # type: ignore[union-attr]
    found = json.loads(run("plan", folder, "--budget", "1GiB", "--context", "64", "--json"))
    assert found["parent"]["lines_bytes"]["weights"] == size_of(folder)
    (line,) = (term for term in found["terms"]["parent"] if term["name"] == "weights")
    assert (line["bytes"], line["origin"]) == (size_of(folder), "exact")
    smaller = [
        one["lines_bytes"]["weights"]
        for one in found["candidates"]
        if one["sizes_count"] != found["parent"]["sizes_count"]
    ]
    assert smaller
    assert max(smaller) < size_of(folder)


def test_every_command_that_reads_weights_refuses_it_before_any_work(
    folder: Path, tiny_llama: Path, short_text: Path, tmp_path: Path, run: Any
) -> None:
    output = tmp_path / "output"
    found = quantisation_in(folder)
    assert found is not None
    commands = [
        ("score", folder, "--data", short_text, "-o", tmp_path / "scores.safetensors"),
        ("prune", folder, "--set", "hidden_size=16", "--data", short_text, "-o", output),
        ("distill", folder, "--teacher", tiny_llama, "--data", short_text, "-o", output),
        ("compress", folder, "--budget", "1MiB", "--data", short_text, "-o", output),
    ]
    if not found.can_be_undone:
        commands += [
            ("eval", folder, "--text", short_text),
            ("eval", tiny_llama, "--teacher", folder, "--text", short_text),
            ("distill", tiny_llama, "--teacher", folder, "--data", short_text, "-o", output),
        ]
    for words in commands:
        assert f"{folder} is quantised (" in run(*words, code=2)
    assert sorted(tmp_path.iterdir()) == []


def test_eval_and_a_teacher_read_what_can_be_undone(
    folder: Path, tiny_llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = quantisation_in(folder)
    assert found is not None
    if not found.can_be_undone:
        return  # refused above
    assert app.run(["prune", str(folder), "--dequantise", "-o", str(tmp_path / "plain")]) == 0
    capsys.readouterr()
    measure = ("--text", str(short_text), "--sequence-length", "32", "--samples", "4", "--no-speed", "--json")
    results = []
    for model in (folder, tmp_path / "plain"):
        assert app.run(["eval", str(model), "--teacher", str(tiny_llama), *measure]) == 0
        told = capsys.readouterr()
        results.append(json.loads(told.out)["results"][str(model)])
        assert ("with its weights as bf16" in told.err) == (model == folder)
    same = ("perplexity", "kl_to_teacher", "parameters")
    assert [results[0][key] for key in same] == [results[1][key] for key in same]
    assert results[0]["weight_bytes"] == size_of(folder)
    taught = ("--data", str(short_text), "--sequence-length", "32", "--tokens", "128", "--batch-tokens", "64")
    words = ["distill", str(tiny_llama), "--teacher", str(folder), *taught, "-o", str(tmp_path / "distilled")]
    assert app.run(words) == 0


def test_a_folder_whose_tensors_are_missing_is_refused_by_name(tiny_llama: Path, tmp_path: Path, run: Any) -> None:
    def forgetful(name: str, weight: Tensor) -> dict[str, Tensor]:
        return {} if name.endswith("layers.1.mlp.up_proj") else fp8(name, weight)

    quantise_folder(tiny_llama, tmp_path / "model", forgetful, FP8)
    assert "model.layers.1.mlp.up_proj.weight" in run("inspect", tmp_path / "model", code=2)
