"""`minitron plan` as a person or a script uses it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from planning_models import MODELS, random_scores

from cli import app
from minitron.cut.plan import load_plan
from minitron.model.spec import read_spec
from minitron.report.document import read_schema
from minitron.units import GiB, MiB

NANO_12B = MODELS / "Nemotron-Nano-12B-v2.json"
LONG = ["--gpu", "A10G", "--context", "128k", "--concurrency", "1"]
NANO_2 = [
    *LONG,
    *("--reserve", "1.3GiB", "--utilization", "0.95", "--workspace", "0.65GiB", "--layers", "56"),
    *("--lattice", "hidden_size=4480,4800,5120", "--lattice", "mamba_num_heads=112,120,128"),
    *("--lattice", "intermediate_size=3x,3.5x,4x", "--sort", "memory"),
]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `minitron plan` and returns what it printed, as a document where --json is asked for."""

    def run(model: Path, *arguments: str, code: int = 0) -> Any:
        assert app.run(["plan", str(model), *arguments]) == code
        told = capsys.readouterr()
        if code:
            assert not told.out
            return told.err
        return json.loads(told.out) if "--json" in arguments else told.out

    return run


def test_nvidias_choice_of_nano_2(plan: Any) -> None:
    document = plan(NANO_12B, *NANO_2, "--json")
    assert document["gpu"]["name"] == "A10G"
    assert document["searched_architectures"] == 27
    sizes = ("hidden_size", "intermediate_size", "mamba_num_heads")
    chosen = [tuple(candidate["sizes_count"][name] for name in sizes) for candidate in document["candidates"]]
    assert chosen[:3] == [(4800, 14400, 120), (4480, 17920, 112), (4480, 15680, 128)]
    assert all(candidate["sizes_count"]["num_hidden_layers"] == 56 for candidate in document["candidates"])
    assert round(document["budget"]["available_bytes"] / GiB, 3) == 19.657
    assert document["parent"]["fits"] is False
    assert round(document["parent"]["lines_bytes"]["weights"] / GiB, 3) == 22.929
    told = plan(NANO_12B, *NANO_2)
    rows = [line.split() for line in told.splitlines() if line[:1].isdigit() and line.rstrip().endswith("GiB")]
    assert [row[:4] for row in rows[:3]] == [
        ["1", "4,800", "14,400", "120"],
        ["2", "4,480", "17,920", "112"],
        ["3", "4,480", "15,680", "128"],
    ]


def test_the_released_9b_is_one_of_them_by_its_pattern(plan: Any) -> None:
    letters = read_spec(MODELS / "Nemotron-Nano-9B-v2.json").letters
    arguments = [*NANO_2[: NANO_2.index("--layers")], "--pattern", letters]
    fixed = ["--lattice", "hidden_size=4480", "--lattice", "intermediate_size=15680", "--json"]
    document = plan(NANO_12B, *arguments, *fixed)
    assert document["candidates"][0]["letters"] == letters
    assert document["candidates"][0]["parameters"] == 8_888_227_328


def test_what_a_person_reads(plan: Any) -> None:
    told = plan(NANO_12B, *LONG, "--reserve", "1.3GiB")
    assert "Budget: 22.060 GiB x 0.95 - 1.300 GiB reserved = 19.657 GiB" in told
    rows = {line.split("   ")[0].strip(): line for line in told.splitlines()}
    for term, size in (("weights", "22.929 GiB"), ("KV cache", "3.000 GiB"), ("SSM state", "140.000 MiB")):
        assert size in rows[term]
    assert "estimated" in told
    assert "It does not fit: 7.061 GiB too much. Its weights alone exceed the budget." in told
    assert "ranked by kept parameters (no scores given)" in told
    assert "Chosen: number 1" in told


@pytest.mark.parametrize("name", ["Nemotron-Nano-12B-v2", "Llama-3.1-8B"])
def test_it_reads_at_80_columns(plan: Any, name: str) -> None:
    told = plan(MODELS / f"{name}.json", "--gpu", "A10G", "--context", "16k")
    body = told[told.index("\n") :]
    assert max(len(line.rstrip()) for line in body.splitlines()) <= 80, body


def test_a_model_that_fits_needs_no_cut(plan: Any) -> None:
    document = plan(MODELS / "Nemotron-Nano-9B-v2.json", "--gpu", "A10G", "--context", "128k", "--json")
    assert document["parent"]["fits"]
    best = document["candidates"][document["chosen_index"]]
    assert best["sizes_count"] == document["parent"]["sizes_count"]
    assert best["letters"] == document["parent"]["letters"]
    assert "It fits, 1.618 GiB to spare." in plan(MODELS / "Nemotron-Nano-9B-v2.json", *LONG)


def test_a_gpu_that_is_not_in_the_table(plan: Any) -> None:
    here, there = (plan(NANO_12B, *LONG[2:], "--gpu", gpu, "--json") for gpu in ("a10g", "22.06GiB"))
    assert (here["gpu"]["name"], there["gpu"]["name"]) == ("A10G", "22.06GiB")
    assert there["speed"] is None  # of a bare size nobody knows the bandwidth
    assert all(here[key] == there[key] for key in ("budget", "parent", "candidates", "workload", "curves"))


def test_a_budget_in_bytes_is_taken_as_it_is(plan: Any, tiny_hybrid: Path) -> None:
    whole = plan(tiny_hybrid, "--budget", "8MiB", "--json")
    spec = read_spec(tiny_hybrid)
    assert whole["gpu"] is None
    assert whole["budget"] == {
        "usable_bytes": 8 * MiB,
        "utilization_share": 1.0,
        "reserve_bytes": 0,
        "available_bytes": 8 * MiB,
    }
    # The config says fp32, and how long its context is.
    assert whole["workload"]["weights"] == "fp32"
    assert whole["workload"]["context_tokens"] == 256
    assert whole["parent"]["lines_bytes"]["weights"] == 4 * spec.parameters().total
    budget = round(whole["parent"]["total_bytes"] * 0.65)
    smaller = plan(tiny_hybrid, "--budget", str(budget), "--json")
    assert not smaller["parent"]["fits"]
    assert smaller["candidates"][0]["total_bytes"] <= budget


def test_dtypes_and_batch_count(plan: Any) -> None:
    def footprint(*arguments: str) -> dict[str, int]:
        document = plan(NANO_12B, "--gpu", "H200", "--context", "128k", *arguments, "--json")
        return dict(document["parent"]["lines_bytes"])

    plain = footprint("--weights", "fp32", "--kv", "bf16", "--conv-state", "bf16")
    narrow = footprint("--kv", "fp8", "--ssm-state", "bf16", "--concurrency", "4")
    assert narrow["weights"] * 2 == plain["weights"]
    assert narrow["kv_cache"] == plain["kv_cache"] * 2
    assert narrow["ssm_state"] == plain["ssm_state"] * 2
    assert narrow["conv_state"] == plain["conv_state"] * 4


def test_a_gguf_file_is_counted_as_llama_cpp_would_quantise_it(plan: Any) -> None:
    """4.5 bits a number are the least of q4_k_m: some matrices have more, norms and convolutions 32."""
    document = plan(NANO_12B, *LONG, "--weights", "q4_k_m", "--json")
    jsonschema.validate(document, read_schema())
    least = read_spec(NANO_12B).parameters().total * 144 // 256
    assert least < document["parent"]["lines_bytes"]["weights"] < 1.15 * least
    assert "(q6_k)" in plan(NANO_12B, *LONG, "--weights", "q4_k_m")
    solved = plan(NANO_12B, "--gpu", "RTX 4090", "--weights", "q8_0", "--context", "8k", "--solve", "weights", "--json")
    assert solved["value"] == "q8_0"


def test_scores_rank_and_choose_the_indices(plan: Any, tiny_hybrid: Path, tmp_path: Path) -> None:
    spec = read_spec(tiny_hybrid)
    random_scores(spec).save(tmp_path / "scores.safetensors")
    budget = str(round(4 * spec.parameters().total * 0.7))
    by_size = plan(tiny_hybrid, "--budget", budget, "--context", "64", "--json")
    arguments = ["--budget", budget, "--context", "64", "--scores", str(tmp_path / "scores.safetensors")]
    by_score = plan(tiny_hybrid, *arguments, "-o", str(tmp_path / "plan.json"), "--json")
    assert "effective parameters" in by_score["ranking"]
    scores = [candidate["score_parameters"] for candidate in by_score["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert by_size["candidates"][0]["parameters"] == by_size["candidates"][0]["score_parameters"]
    written = load_plan(tmp_path / "plan.json")
    best = by_score["candidates"][0]
    assert written.has_indices(spec)
    assert list(written.layers) == best["kept_layer_indices"]
    assert written.target(spec).named_sizes == best["sizes_count"]
    assert written.parameters == best["parameters"]
    assert written.report["candidates"][0]["sizes"] == best["sizes_count"]
    assert written.report["chosen"] == by_score["chosen_index"]


def test_a_plan_without_scores_says_how_many_and_not_which(plan: Any, tmp_path: Path) -> None:
    told = plan(NANO_12B, *NANO_2, "-o", str(tmp_path / "new" / "plan.json"))
    assert "Written: " in told
    written = load_plan(tmp_path / "new" / "plan.json")
    assert not written.has_indices(read_spec(NANO_12B))
    assert written.sizes == {"hidden_size": 4800, "intermediate_size": 14400, "mamba_num_heads": 120}
    assert len(written.layers) == 56


def test_an_existing_output_is_kept(plan: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    assert "exists already" in plan(NANO_12B, *LONG, "-o", str(path), code=2)
    assert path.read_text() == "mine"
    plan(NANO_12B, *LONG, "-o", str(path), "--overwrite")
    assert load_plan(path).model == read_spec(NANO_12B).fingerprint


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "neither --gpu nor --budget is given"),
        (["--gpu", "A10G", "--budget", "8MiB"], "--gpu and --budget are both given"),
        (["--gpu", "A1OG"], "no GPU is called 'A1OG'; did you mean A10G"),
        (["--budget", "8 lots"], "'8 lots' is not a memory size"),
        (["--gpu", "A10G", "--context", "lots"], "'lots' is not a number of tokens"),
        (["--gpu", "A10G", "--layers", "56", "--pattern", "M-"], "--layers and --pattern both set the depth"),
        (["--gpu", "A10G", "--pattern", "M-X"], "letter 3, 'X', finds no layer"),
        (["--gpu", "A10G", "--layers", "63"], "63 layers cannot be kept of 62"),
        (["--gpu", "A10G", "--lattice", "hidden_size"], "--lattice 'hidden_size' is not NAME=VALUE"),
        (["--gpu", "A10G", "--lattice", "hidden_size=4480,,4800"], "'' is not a size"),
        (["--gpu", "A10G", "--lattice", "hidden=1"], "hidden is not a width of this model"),
        (["--gpu", "A10G", "--lattice", "mamba_num_heads=113"], "not a multiple of n_groups = 8"),
        (["--gpu", "A10G", "--utilization", "1.5"], "a utilization of 1.5"),
        (["--gpu", "A10G", "--reserve", "30GiB"], "nothing is left of 22.060 GiB x 0.95 after a reserve of 30.000 GiB"),
        (["--gpu", "A10G", "--kv", "int3"], "kv cannot be kept in int3"),
        (
            ["--gpu", "A10G", "--ssm-state", "int4"],
            "ssm_state cannot be kept in int4; choose fp32, bf16, fp16, fp8, int8",
        ),
        (["--gpu", "A10G", "--weights", "q4_k_m", "--keep", "attention=int4"], "keeps in a type of its own"),
        (["--gpu", "A10G", "--weights", "q4_k_m", "--tp", "2"], "drop --tp"),
        (["--gpu", "A10G", "--weights", "q4_k_m", "--engine", "vllm"], "vLLM loads safetensors files"),
        (["--gpu", "A10G", "--scores", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told_in_one_line(plan: Any, tmp_path: Path, arguments: list[str], told: str) -> None:
    output = tmp_path / "plan.json"
    error = plan(NANO_12B, *arguments, "-o", str(output), code=2)
    assert error.startswith("minitron: error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_scores_of_another_model_are_refused(plan: Any, tiny_hybrid: Path, tmp_path: Path) -> None:
    random_scores(read_spec(tiny_hybrid)).save(tmp_path / "scores.safetensors")
    error = plan(NANO_12B, "--gpu", "A10G", "--scores", str(tmp_path / "scores.safetensors"), code=2)
    assert "another config.json" in error


def test_where_nothing_fits_the_remedies_are_told_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["plan", str(NANO_12B), "--gpu", "L40S", "--context", "1m", "--concurrency", "8"]) == 2
    told = capsys.readouterr()
    assert "What would make it fit, besides pruning" in told.out
    assert "--context 95528" in told.out
    assert "too much (the largest part: kv cache" in told.err
    small = ["--gpu", "T4", "--context", "128k", "--layers", "60", "--leave", "head_dim", "--json"]
    assert app.run(["plan", str(NANO_12B), *small]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "too much (the largest part: weights" in told.err


def test_solving_the_other_way_round(plan: Any) -> None:
    nine = MODELS / "Nemotron-Nano-9B-v2.json"
    longest = plan(nine, "--gpu", "A10G", "--engine", "vllm", "--solve", "context", "--json")
    again = ["--gpu", "A10G", "--engine", "vllm", "--json", "--context"]
    assert plan(nine, *again, str(longest["value"]))["parent"]["fits"]
    assert not plan(nine, *again, str(longest["value"] + 1))["parent"]["fits"]
    assert sum(term["bytes"] for term in longest["terms"]) == longest["total_bytes"]
    assert "Smallest GPU: RTX 5090" in plan(NANO_12B, "--context", "128k", "--solve", "gpu")
    assert "leave --gpu, --gpu-memory and --budget out" in plan(nine, "--gpu", "A10G", "--solve", "gpu", code=2)


def test_vllm_prints_its_command(plan: Any) -> None:
    told = plan(MODELS / "Nemotron-Nano-9B-v2.json", *LONG, "--engine", "vllm", "--no-prefix-caching")
    assert "vllm serve" in told
    assert "--max-model-len 131072" in told
    assert "107 blocks a sequence" not in told  # notes of exact terms stay in the report
    assert "107 x 21,495,808 B" in told


def test_a_folder_holds_the_report_and_the_plan(plan: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    told = plan(NANO_12B, *NANO_2, "-o", str(folder))
    assert f"Written: {folder}" in told
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "report.html", "report.json", "report.md"]
    document = json.loads((folder / "report.json").read_text())
    jsonschema.validate(document, read_schema())
    assert document["command"].startswith("minitron plan ")
    assert document["speed"]["rows"]
    assert load_plan(folder).sizes == load_plan(folder / "plan.json").sizes
    assert "exists" in plan(NANO_12B, *NANO_2, "-o", str(folder), code=2)
    printed = plan(NANO_12B, *NANO_2, "--json")
    jsonschema.validate(printed, read_schema())
    assert printed["candidates"] == document["candidates"]


def test_parts_of_the_report_can_be_had_alone(plan: Any, tmp_path: Path) -> None:
    page, text = tmp_path / "a.html", tmp_path / "b.md"
    plan(NANO_12B, *NANO_2, "--html", str(page), "--markdown", str(text))
    assert page.read_text().lower().startswith("<!doctype html>")
    assert "19.475 GiB" in text.read_text()
    assert "writes nothing" in plan(NANO_12B, *LONG, "--solve", "weights", "--html", str(page), code=2)


def test_axes_and_layers_can_be_asked_for(plan: Any) -> None:
    free = ["--most", "ssm_state=0.5", "--leave", "hidden", "--leave", "ffn", "--may-go", "mlp", "--multiple", "M=1"]
    document = plan(NANO_12B, "--gpu", "L40S", "--context", "128k", *free[:-2], "--sort", "memory", "--json")
    assert {candidate["sizes_count"]["hidden_size"] for candidate in document["candidates"]} == {5120}
    assert len({candidate["sizes_count"]["ssm_state_size"] for candidate in document["front"]}) > 1
    assert all(c["letters"].count("M") == 28 and c["letters"].count("*") == 6 for c in document["candidates"])
    assert "is not an axis of this model" in plan(NANO_12B, *LONG, *free[-2:], code=2)
    assert "is not a number" in plan(NANO_12B, *LONG, "--most", "ffn=lots", code=2)


def test_dead_zones_are_warnings(plan: Any) -> None:
    arguments = [*LONG, "--lattice", "mamba_head_dim=48", "--lattice", "intermediate_size=15616"]
    document = plan(NANO_12B, *arguments, "--json")
    assert document["warnings"]
    assert all(warning["source"] for warning in document["warnings"])
    assert "Warning: " in plan(NANO_12B, *arguments)


def test_the_memory_of_a_gpu_can_be_given(plan: Any) -> None:
    alone = plan(NANO_12B, "--gpu-memory", "22.06GiB", *LONG[2:], "--json")
    named = plan(NANO_12B, *LONG, "--json")
    assert alone["budget"] == named["budget"]
    larger = plan(NANO_12B, *LONG, "--gpu-memory", "80GiB", "--json")
    assert larger["budget"]["usable_bytes"] == 80 * GiB
    assert larger["speed"] is not None
    assert "--gpu and --budget are both" in plan(NANO_12B, "--gpu-memory", "8GiB", "--budget", "8GiB", code=2)


def test_the_report_says_how_to_serve_and_how_fast(plan: Any, tmp_path: Path) -> None:
    page, text = tmp_path / "a.html", tmp_path / "b.md"
    nine = MODELS / "Nemotron-Nano-9B-v2.json"
    files = ["--html", str(page), "--markdown", str(text), "--json"]
    document = plan(nine, *LONG, "--engine", "vllm", *files)
    assert document["serve"].startswith("vllm serve Nemotron-Nano-9B-v2 --max-model-len 131072 ")
    assert document["serve"] in text.read_text()
    row = document["speed"]["rows"][0]
    assert (row["label"], row["batch_sequences"]) == ("model", 1)
    told = f"{row['prefill_tokens_per_s']:,.0f}"
    assert told in text.read_text() and told in page.read_text()
    cut = plan(NANO_12B, *LONG, "--engine", "vllm", "--json")
    assert cut["serve"].startswith("vllm serve PRUNED ")
