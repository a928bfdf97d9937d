"""`compress --active-params`: tokens are sent to fewer experts, which the config, the report and the JSON say."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cli.app import run
from minitron.cut.plan import load_plan
from minitron.files import read_json
from minitron.model.spec import read_spec

TOP = "num_experts_per_tok"

SMALL = [
    *("--context", "32", "--sequence-length", "32", "--samples", "4", "--layer-samples", "2", "--no-speed"),
    *("--distill-sequence-length", "32", "--batch-tokens", "64", "--tokens", "128", "--dtype", "fp32"),
    *("--dtype", "fp32", "--evaluate", "2", "--combinations", "4", "--finalists", "1", "--trial-samples", "2"),
]


def test_fewer_experts_a_token_are_measured_and_written(
    tiny_hybrid: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = read_spec(tiny_hybrid), tmp_path / "run"
    # One expert of two linears in each of the layers that have some: what is left when a token is sent to one less.
    each = 2 * whole.named_sizes["hidden_size"] * whole.named_sizes["moe_intermediate_size"]
    most = whole.parameters().active - whole.letters.count("E") * each
    asked = ["--active-params", str(most), "--lattice", f"{TOP}=2,1", "--lattice", "moe_intermediate_size=24,16"]
    done = run(["compress", str(tiny_hybrid), "--data", str(short_text), "-o", str(out), *SMALL, *asked, "--json"])
    assert done == 0
    document = json.loads(capsys.readouterr().out)
    chosen = document["results"]["steps"]["plan"]["results"]["chosen"]
    assert (whole.named_sizes[TOP], chosen["sizes"][TOP]) == (2, 1)
    assert chosen["measures"]["active_parameters"] <= most
    assert load_plan(out / "plan.json").sizes[TOP] == 1
    for name in ("pruned", "distilled"):
        assert read_json(out / name / "config.json")[TOP] == 1
        model = AutoModelForCausalLM.from_pretrained(out / name)
        assert {module.top_k for module in model.modules() if hasattr(module, "top_k")} == {1}
        assert model(torch.arange(8)[None]).logits.isfinite().all()
        assert read_spec(out / name).parameters().active <= most
    # Measured in memory, with the router that the files will have: it costs something.
    verdicts = read_json(out / "search.json")["measured"]["verdicts"]
    assert all(one["sizes"][TOP] == 1 and one["measured"]["kl"] > 0.01 for one in verdicts)
    report = read_json(out / "report/report.json")
    assert report["model"]["size_labels"][TOP] == "active experts"
    assert report["parent"]["sizes_count"][TOP] == 2
    assert report["candidates"][report["chosen_index"]]["sizes_count"][TOP] == 1
    assert "active experts 1" in report["summary"]
    assert "active experts" in (out / "report/report.html").read_text()
