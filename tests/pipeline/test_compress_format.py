"""`compress --format`: planned, trained and written in fewer bits, with one distillation."""

import json
from pathlib import Path

import pytest
from family_sizes import FAMILY_SIZES
from quantising import save_wide_hybrid, save_wide_llama
from tiny_models import save_family

from cli.app import run
from minitron.cut.plan import load_plan
from minitron.files import read_json
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.model.stored import read_stored_spec

SMALL = [
    *("--context", "32", "--sequence-length", "32", "--samples", "2", "--layer-samples", "2", "--no-speed"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "256", "--dtype", "fp32"),
    *("--dtype", "fp32", "--evaluate", "0"),
]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_wide_llama(tmp_path / "model")


def asked(model: Path, text: Path, output: Path, *more: str) -> list[str]:
    return ["compress", str(model), "--data", str(text), "-o", str(output), *SMALL, *more]


@pytest.mark.parametrize("kv", [[], ["--kv", "fp8"]])
def test_what_is_planned_in_a_format_is_what_is_written(
    kv: list[str], llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ("--format", "int4", "--keep", "attention=bf16", "--budget", "400KiB", "--lattice", "intermediate_size=96")
    more += tuple(kv)
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
    scales = [name for name in Checkpoint(out / "distilled").headers if name.endswith(("k_scale", "v_scale"))]
    assert len(scales) == (2 * len(read_spec(llama).layers) if kv else 0)
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
        (["--format", "int4", "--keep", "embedding=int8"], "--keep"),
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


@pytest.mark.slow
def test_formats_that_the_search_chose_are_written(
    llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    measured = [word if word != "0" else "4" for word in SMALL]
    asked = ["compress", str(llama), "--data", str(short_text), "-o", str(out), *measured]
    more = ("--formats", "bf16,int8,int4", "--budget", "300KiB", "--combinations", "4", "--finalists", "2")
    sizes = ("--lattice", "intermediate_size=96,64", "--trial-samples", "2")
    assert run([*asked, *more, *sizes, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    chosen = document["results"]["steps"]["plan"]["results"]["chosen"]
    # The output layer is a part too: vLLM reads it in fewer bits.
    assert set(chosen["formats"]) == {"attention", "mlp", "lm_head"}
    assert any(form != "bf16" for form in chosen["formats"].values())
    plan = read_json(out / "plan.json")
    assert plan["formats"] == chosen["formats"]
    assert load_plan(out / "plan.json").formats == chosen["formats"]
    # To the byte what was counted, in the formats that were chosen.
    assert Checkpoint(out / "distilled").weight_bytes == chosen["footprint"]["weights"]
    spec = read_stored_spec(out / "distilled")
    assert spec.quantisation is not None
    load_model(out / "distilled")
    search = read_json(out / "search.json")
    measured = [tuple(sorted(verdict["formats"].items())) for verdict in search["measured"]["verdicts"]]
    assert len(set(measured)) > 1
    assert measured[0] == tuple(sorted(chosen["formats"].items()))
    report = read_json(out / "report/report.json")
    assert report["why"].startswith("Lost, as measured: ")
    assert [layer["layer_index"] for layer in report["bits"]] == [*range(len(spec.layers)), None]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--formats", "int8", "--format", "int4"], "--format fixes what --formats lets the search choose"),
        (["--formats", "int8", "--weights", "int4"], "--formats lets the search choose what --weights fixes"),
        (["--formats", "int8,q4_k_m"], "--formats names 'q4_k_m', which is no format that Minitron writes"),
        (["--search-kv", "--kv", "fp8"], "--search-kv lets the search choose what --kv fixes"),
    ],
)
def test_formats_that_cannot_be_searched(
    llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], why: str
) -> None:
    assert run([*asked(llama, short_text, tmp_path / "run", "--budget", "400KiB"), *more]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("nemotron_h", "uniform"),
        pytest.param("nemotron_h", "per-layer", marks=pytest.mark.slow),
        pytest.param("granitemoehybrid", "uniform", marks=pytest.mark.slow),
    ],
)
def test_formats_of_a_hybrid_are_written_to_the_byte(
    family: str, sizes: str, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One has a published mixture, which must not widen what the search chose; the experts of a layer of the other are
    one tensor, which no format takes."""
    if family == "nemotron_h":
        model = save_wide_hybrid(tmp_path / "model")
    else:
        wide = {"hidden_size": 64, "intermediate_size": 32, "shared_intermediate_size": 64}
        wide |= {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2}
        model = save_family(tmp_path / "model", family, **FAMILY_SIZES[family][0] | wide)
    measured = [word if word != "0" else "2" for word in SMALL]
    out = tmp_path / "run"
    asked = ["compress", str(model), "--data", str(short_text), "-o", str(out), *measured, "--keep", "attention=bf16"]
    whole = int(footprint(read_spec(model), workload_of(read_spec(model), 32, weights="int8", keep={})).total)
    more = ("--formats", "int8,int4", "--budget", f"{whole}", "--combinations", "4", "--finalists", "0")
    more += ("--leave", "hidden", "--trial-samples", "2", "--sizes", sizes)
    assert run([*asked, *more, "--json"]) == 0, capsys.readouterr().err
    chosen = json.loads(capsys.readouterr().out)["results"]["steps"]["plan"]["results"]["chosen"]
    report = read_json(out / "report/report.json")
    # With one size for all layers or with sizes of their own: the parts of the loss are all there is.
    assert chosen["score"] < (chosen["parameters"] if sizes == "per-layer" else read_spec(model).parameters().total)
    assert sum(one["loss_share"] for one in report["costs"]) == pytest.approx(1)
    assert chosen["formats"]["attention"] == "bf16"
    assert {"int8", "int4"} & set(chosen["formats"].values())
    assert Checkpoint(out / "distilled").weight_bytes == chosen["footprint"]["weights"]
