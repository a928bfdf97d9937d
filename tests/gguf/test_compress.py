"""`compress --engine llama.cpp --formats`: types of ggml are measured, chosen, and written into a GGUF file."""

import json
from pathlib import Path

import pytest
from tiny_models import save_llama, write_text

from cli.app import run
from minitron.files import read_json

SMALL = [
    *("--context", "32", "--sequence-length", "32", "--samples", "4", "--layer-samples", "2", "--no-speed"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "128", "--dtype", "fp32"),
    *("--dtype", "fp32", "--evaluate", "4", "--trial-samples", "2", "--combinations", "4", "--finalists", "0"),
]


def asked(model: Path, text: Path, out: Path, *more: str) -> list[str]:
    return ["compress", str(model), "--data", str(text), "-o", str(out), *SMALL, "--engine", "llama.cpp", *more]


@pytest.mark.slow
def test_types_that_the_search_chose_are_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("conversion", reason="needs the extra gguf")
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    model, text = save_llama(tmp_path / "model", **sizes), write_text(tmp_path / "text")
    out = tmp_path / "run"
    more = ("--formats", "bf16,q8_0,q4_k,iq2_s", "--lattice", "intermediate_size=512,256", "--budget", "0.6MiB")
    assert run([*asked(model, text, out, *more), "--json"]) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)["results"]
    chosen = document["steps"]["plan"]["results"]["chosen"]
    file = gguf.GGUFReader(out / "distilled.gguf")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in file.tensors}
    assert types["blk.0.attn_q.weight"] == chosen["formats"]["attention"]
    assert types["blk.1.ffn_up.weight"] == chosen["formats"]["mlp"]
    assert types["token_embd.weight"] == chosen["formats"]["embedding"]
    assert types["output.weight"] == chosen["formats"]["lm_head"]
    assert {"q4_k", "q8_0", "iq2_s"} & set(chosen["formats"].values())
    # To the byte what was counted, in the types that were chosen.
    written = sum(int(tensor.n_bytes) for tensor in file.tensors)
    assert written == chosen["footprint"]["weights"] == document["steps"]["export"]["results"]["weight_bytes"]
    models = document["models"]
    assert models["exported"]["weight_bytes"] == written < models["distilled"]["weight_bytes"]
    # What it loses was measured (tests/gguf/test_in_types.py holds what is measured against files).
    assert models["exported"]["kl_to_teacher"] != models["distilled"]["kl_to_teacher"]
    assert document["serve"].startswith(f"llama-server -m {out / 'distilled.gguf'}")
    report = read_json(out / "report/report.json")
    assert report["why"].startswith("Lost, as measured: ")
    # A run that goes on writes nothing anew.
    before = (out / "distilled.gguf").stat().st_mtime_ns
    assert run([*asked(model, text, out, *more), "--json"]) == 0
    assert (out / "distilled.gguf").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--formats", "int4"], "no type of ggml"),
        (["--formats", "q8_0", "--search-kv"], "give --kv instead"),
        (["--formats", "q8_0", "--sizes", "per-layer"], "llama.cpp does not read"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_scored(
    more: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = save_llama(tmp_path / "model"), write_text(tmp_path / "text")
    assert run(asked(model, text, tmp_path / "run", "--budget", "1MiB", *more)) == 2
    assert why in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run/scores.safetensors").exists()
