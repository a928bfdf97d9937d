"""benchmarks/gpu.py on the CPU: every part runs at tiny sizes, and says nothing of what a GPU alone can tell."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minitron.files import read_json, write_json
from minitron.model.spec import read_spec

ROOT = Path(__file__).parent.parent
PARTS = ["tests", "fp8", "loss", "distill", "compiled", "checkpoints", "offload", "memory"]
MADE = """
import time, pytest

@pytest.mark.gpu
def test_good() -> None: pass

@pytest.mark.gpu
@pytest.mark.skip(reason="there is none")
def test_skipped() -> None: pass

@pytest.mark.gpu
def test_bad() -> None: assert 1 == 2

def test_of_a_cpu() -> None: time.sleep(600)
"""


def measured(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, gpu.json, gpu.md)."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--out", str(folder)]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=os.environ | paths, capture_output=True, text=True, check=False)
    assert (folder / "gpu.json").is_file(), done.stderr
    return done.returncode, read_json(folder / "gpu.json"), (folder / "gpu.md").read_text(encoding="utf-8")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """All parts, of which the first one fails: it finds no tests."""
    return measured(tmp_path_factory.mktemp("gpu") / "out", "--tests", "nowhere")


def row(document: dict[str, Any], part: str, what: str) -> dict[str, Any]:
    (found,) = (each for each in document["parts"][part]["rows"] if each["what"] == what)
    return dict(found)


def test_a_part_that_fails_is_told_and_the_rest_go_on(whole: tuple[int, dict[str, Any], str]) -> None:
    code, document, table = whole
    assert code == 1
    assert list(document["parts"]) == PARTS
    error = document["parts"]["tests"]["error"]
    assert "pytest ended with 4" in error and "nowhere" in error
    assert {name: part["error"] for name, part in document["parts"].items() if name != "tests"} == dict.fromkeys(
        PARTS[1:]
    )
    assert all(part["rows"] for name, part in document["parts"].items() if name != "tests")
    assert f"| tests | **failed** | | {error} |" in table
    assert document["versions"]["torch"] == torch.__version__ and document["gpu"] is None


def test_what_torch_cuda_alone_can_tell_is_left_open(whole: tuple[int, dict[str, Any], str]) -> None:
    _, document, table = whole
    open_rows = {
        "fp8": ["64 x 64 x 128, _scaled_mm alone"],
        "loss": ["ours: peak beside inputs and gradients", "ours, compiled", "liger"],
        "distill": ["dense: model FLOPs utilisation", "hybrid: peak of a step"],
        "compiled": ["hybrid: model FLOPs utilisation", "dense: peak of a step"],
        "offload": ["peak", "peak / checkpoint"],
        "memory": ["dense: torch.cuda / law", "hybrid: torch.cuda / law"],
    }  # fmt: skip
    for part, names in open_rows.items():
        for name in names:
            found = row(document, part, name)
            assert (found["value"], found["note"]) == (None, "needs a GPU"), name
    # No bytes but those that follow from shapes and files.
    told = {
        each["what"]
        for part in document["parts"].values()
        for each in part["rows"]
        if each["unit"] == "B" and each["value"] is not None
    }
    assert told == {
        "a checkpoint",
        "checkpoint",
        "largest layer, embeddings and output layer",
        *(f"{name}: {what} by the law" for name in ("dense", "hybrid") for what in ("weights", "caches and states")),
    }
    assert "| cpu |" not in table and "cpu (no figure of it means anything)" in table


def test_what_does_not_depend_on_the_device(whole: tuple[int, dict[str, Any], str]) -> None:
    _, document, table = whole
    for way in ("none", "in step", "behind"):
        assert row(document, "checkpoints", f"{way}: 5 steps")["value"] > 0
    for way in ("in step", "behind"):
        assert row(document, "checkpoints", f"{way}: curve against none")["value"] == "the same to the last bit"
        assert row(document, "checkpoints", f"{way}: the newest checkpoint's weights")["value"] == "those of its step"
    for way in ("plain, whole logits", "ours"):
        assert row(document, "loss", f"{way}: digits of the loss")["value"] > 3
    assert row(document, "offload", "layers")["value"] == 6
    # 2 layers of keys and values, 2 sequences of 28 tokens, one head of 16 numbers in two bytes.
    assert row(document, "memory", "dense: caches and states by the law")["value"] == 2 * 2 * 2 * 28 * 16 * 2
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 5 for line in lines)
    assert len(lines) == 2 + sum(len(part["rows"]) + 1 for part in document["parts"].values()) + 1


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(MADE)
    code, document, _ = measured(tmp_path / "out", "--parts", "tests", "--tests", str(tmp_path))
    counts = {each["what"]: each["value"] for each in document["parts"]["tests"]["rows"]}
    assert (code, counts) == (1, {"passed": 1, "failed": 1, "skipped": 1})
    assert document["parts"]["tests"]["error"].startswith("RuntimeError: 1 of 3 tests failed: test_made::test_bad")


def test_a_part_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(
        MADE.replace("def test_good() -> None: pass", "def test_good() -> None: time.sleep(600)")
    )
    code, document, _ = measured(tmp_path / "out", "--parts", "tests", "--tests", str(tmp_path), "--budget", "tests=2")
    part = document["parts"]["tests"]
    assert (code, part["error"]) == (1, "took longer than its 2 s")
    assert part["seconds"] < 30


def test_flops_of_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own counter, which counts all of a square of scores where a causal model needs half."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu_setting import built, llama
    from gpu_training import _per_token

    model = built(tmp_path, llama(32, 64, 2, (4, 2, 8), 96), torch.device("cpu"), torch.float32)
    model.set_attn_implementation("eager")
    length = 48
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    matrices, attention = counts[torch.ops.aten.mm], 2 * 2 * 2 * length**2 * 4 * 8
    # The rest of bmm turns positions into angles.
    assert attention <= counts[torch.ops.aten.bmm] < 1.01 * attention
    assert 2 * length * _per_token(model, length) == matrices + attention / 2


@pytest.mark.parametrize(
    ("name", "row"),
    [("NVIDIA H100 80GB HBM3", "H100-80GB-SXM"), ("NVIDIA H100 PCIe", "H100-80GB-PCIe"), ("NVIDIA H200", "H200"),
     ("NVIDIA A100-SXM4-40GB", "A100-40GB-SXM"), ("NVIDIA L40S", "L40S")],
)  # fmt: skip
def test_a_gpu_by_the_name_that_torch_has_for_it(name: str, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu_training import known_gpu

    assert known_gpu(name).name == row


def test_the_shape_of_nano_9b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu_memory import NANO_9B

    write_json(tmp_path / "config.json", NANO_9B)
    assert read_spec(tmp_path).parameters().total == 8_888_227_328
