"""minitron compare: the rows agree with the planner's own answers."""

import json
from typing import Any

import pytest
from planning_models import MODELS, published

from cli import app
from minitron.memory.budget import Budget
from minitron.memory.gpus import find_gpu
from minitron.memory.questions import fits
from minitron.memory.workload import workload_of
from minitron.units import GiB

NAMES = ("Nemotron-Nano-12B-v2", "Nemotron-Nano-9B-v2")
CONFIGS = [str(MODELS / f"{name}.json") for name in NAMES]


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert app.run(["compare", *CONFIGS, *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def test_a_row_for_every_model_on_every_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--gpu", "A10G", "--gpu", "l40s", "--context", "128k", "--workspace", "0.5GiB")
    assert [(row["model"], row["gpu"]) for row in found] == [(m, g) for m in NAMES for g in ("A10G", "L40S")]
    assert [row["fits"] for row in found] == [False, True, True, True]
    assert [row["parameters"] for row in found[::2]] == [12_310_001_152, 8_888_227_328]
    nine, budget = published(NAMES[1]), Budget(find_gpu("A10G").usable, 0.95, workspace=GiB // 2)
    longest = found[2]["longest_context_tokens"]
    assert fits(nine, workload_of(nine, longest), budget)
    assert not fits(nine, workload_of(nine, longest + 1), budget)
    assert found[2]["available_bytes"] == budget.available
    speeds = [row["estimated_output_tokens_per_s"] for row in found]
    assert speeds[0] is None
    assert speeds[3] > speeds[1]  # the smaller model, on the same GPU
    assert found[0]["longest_context_tokens"] == found[0]["largest_batch_sequences"] == 0


def test_the_options_of_the_engine_count(capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--gpu", "H200", "--context", "8k")
    plain, engine = rows(capsys, *base), rows(capsys, *base, "--engine", "vllm", "--max-num-seqs", "256")
    assert all(a["cache_bytes"] < b["cache_bytes"] for a, b in zip(plain, engine, strict=True))
    whole, half = rows(capsys, *base), rows(capsys, *base, "--tp", "2")
    assert all(b["total_bytes"] < a["total_bytes"] for a, b in zip(whole, half, strict=True))


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["compare", *CONFIGS, "--gpu", "A10G", "--weights", "fp8"]) == 0
    told = capsys.readouterr().out
    assert "Nemotron-Nano-9B-v2" in told
    assert "Each model's longest context x 1; engine plain" in told
    assert "has no native FP8" in told


def test_a_split_that_does_not_divide_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["compare", *CONFIGS, "--gpu", "A10G", "--tp", "3"]) == 2
    assert "cannot be split among 3 GPUs" in capsys.readouterr().err
