"""`minitron distill` as it is typed."""

import errno
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
import safetensors.torch
import tiny_models
import torch
from safetensors.torch import load_file

from cli.app import run
from distill.teacher import drift as drift_module
from minitron.locks import locked

SETTINGS = ["--sequence-length", "16", "--batch-tokens", "64", "--validation-sequences", "4", "--learning-rate", "0.01"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("student") / "model", seed=1, num_hidden_layers=2)


@pytest.fixture
def arguments(student: Path, tiny_llama: Path, short_text: Path, tmp_path: Path) -> list[str]:
    """All but the length of the run; the output is tmp_path / "out"."""
    paths = [str(student), "--teacher", str(tiny_llama), "--data", str(short_text), "-o", str(tmp_path / "out")]
    return ["distill", *paths, *SETTINGS]


def test_json_is_one_document_that_says_it_all(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--tokens", "320", "--teacher-precision", "fp8", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert set(document) == {"output", "inputs", "settings", "results", "seconds"}
    assert document["output"] == str(tmp_path / "out") and (tmp_path / "out/model.safetensors").is_file()
    results = document["results"]
    assert results["steps"] == 5 and results["tokens"] == 320
    assert results["kl_after"] < results["kl_before"] == results["curve"][0]["kl"]
    drift = results["drift"]
    assert f"KL {drift['kl']:.3g}" in captured.err and f"{drift['top1_agreement']:.2%}" in captured.err


def test_a_person_reads_the_curve(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--steps", "2", "--validate-every", "1"]) == 0
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    assert [row[:2] for row in rows if row and row[0].isdigit()] == [["0", "0"], ["1", "64"], ["2", "128"]]
    assert "drift" not in captured.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokens", "320", "--steps", "5"], "not both"),
        (["--steps", "5", "--device", "tpu9"], "is no device"),
        (["--steps", "5", "--batch-tokens", "100"], "not a multiple"),
        (["--steps", "5", "--teacher-precision", "fp8-te", "--device", "cpu"], "Transformer Engine"),
        (["--steps", "5", "--teacher-precision", "fp8", "--fp8-keep", "router"], "names no part of a teacher"),
        (["--steps", "5", "--loss", "jsd:2"], "jsd:0.5"),
    ],
)
def test_contradictions_leave_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run([*arguments, *flags]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_drifts_is_warned_of(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_module, "DRIFT_LIMIT", 0.001)
    flags = ["--steps", "2", "--teacher-precision", "fp8", "--fp8-keep", "none", "--loss", "skewed_kl", "--json"]
    assert run([*arguments, *flags]) == 0
    out, err = capsys.readouterr()
    drift = json.loads(out)["results"]["drift"]
    found = re.search(r"Warning: the teacher's drift is .* with --fp8-keep ([0-9,]+)\.", err)
    assert found is not None
    shutil.rmtree(tmp_path / "out")
    again = [*flags[:5], found[1], *flags[6:]]
    assert run([*arguments, *again]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["drift"]["kl"] < drift["kl"]


@pytest.mark.parametrize("when", ["--sync-checkpoints", "--async-checkpoints"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    when: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ["--steps", "4", "--checkpoint-every", "1", "--validate-every", "4", when]
    saved = 0

    def save(*given: Any, **named: Any) -> bytes:
        nonlocal saved
        saved += 1
        if saved > 1:  # the second step's
            raise OSError(errno.ENOSPC, "No space left on device")
        return bytes(plain(*given, **named))

    plain = safetensors.torch.save
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save", save)
        assert run([*arguments, *flags]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out.work/checkpoints").iterdir()] == ["step-00000001"]
    assert run([*arguments, *flags]) == 0
    assert "Resuming after step 1 of 4" in capsys.readouterr().err


def test_sigterm_saves_and_ends_the_process_with_130(arguments: list[str], tmp_path: Path) -> None:
    flags = ["--steps", "100000", "--validate-every", "100000", "--checkpoint-every", "100000"]
    process = forks.command([*arguments, *flags], tmp_path / "said")
    metrics = tmp_path / "out.work/metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, process.stderr
    last = len(metrics.read_text().splitlines())
    assert f"Stopped and saved after step {last} of 100000" in process.stderr
    assert [path.name for path in (tmp_path / "out.work/checkpoints").iterdir()] == [f"step-{last:08d}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_starts_processes_that_take_the_steps_of_one(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--steps", "3", "--dtype", "fp32", "--json"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cli"]
    root = Path(__file__).parents[2]
    many = subprocess.run([*start, *arguments, *flags], cwd=root, capture_output=True, text=True, timeout=300)
    assert many.returncode == 0, many.stderr
    results = json.loads(many.stdout)["results"]
    shutil.rmtree(tmp_path / "out")
    assert run([*arguments, *flags]) == 0
    wanted = json.loads(capsys.readouterr().out)["results"]
    assert [point["kl"] for point in results["curve"]] == pytest.approx(
        [point["kl"] for point in wanted["curve"]], abs=1e-5
    )


@pytest.mark.slow
def test_under_torchrun_one_process_says_that_the_output_is_taken(arguments: list[str], tmp_path: Path) -> None:
    def hold() -> None:
        with locked(tmp_path / "out"):
            (tmp_path / "held").touch()
            signal.pause()

    holder = forks.fork(hold, tmp_path / "said-holder")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # What torchrun tells the processes that it starts.
    told = {"TORCHELASTIC_RUN_ID": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [
        forks.command([*arguments, "--steps", "3"], tmp_path / f"said-{rank}", RANK=rank, LOCAL_RANK=rank, **told)
        for rank in "01"
    ]
    codes = [process.wait() for process in pair]
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL and codes == [2, 2]
    first, second = (
        [line for line in process.stderr.splitlines() if line.startswith("minitron: error:")] for process in pair
    )
    assert len(first) == len(second) == 1
    assert "is being written by process" in first[0]
    assert "process 1 of 2 lost another" in second[0]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["--sync-checkpoints", "--async-checkpoints"])
def test_kills_at_any_moment_change_nothing(when: str, arguments: list[str], tmp_path: Path) -> None:
    flags = ["--steps", "60", "--checkpoint-every", "3", "--validate-every", "20", "--json", when]
    chance, said = random.Random(0), tmp_path / "said"
    line = [*arguments, *flags]
    whole = forks.command([str(tmp_path / "alone") if word == str(tmp_path / "out") else word for word in line], said)
    assert whole.wait() == 0, whole.stderr
    assert json.loads(whole.stdout)["results"]["steps"] == 60
    metrics, kills = tmp_path / "out.work/metrics.jsonl", 0
    while kills < 5:
        process = forks.command(line, said)
        before = metrics.stat().st_size if metrics.is_file() else 0
        # It must get some way, or it would never end: then it dies, at any moment of a step or of a checkpoint.
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        if (tmp_path / "out").exists():
            break
    if not (tmp_path / "out").exists():
        last = forks.command(line, said)
        assert last.wait() == 0, last.stderr
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "alone"))
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert (tmp_path / "out/README.md").read_text() == (tmp_path / "alone/README.md").read_text()
