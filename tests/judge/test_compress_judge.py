"""A judge inside `compress` and `eval`."""

import json
from pathlib import Path

import judge_server
import pytest
from judge_server import BRANCH, RANKING, serving

from cli.app import run

pytest.importorskip("openai")

SMALL = (
    *("--context", "32", "--weights", "fp32", "--sequence-length", "16", "--samples", "2", "--layer-scores", "none"),
    *("--distill-sequence-length", "16", "--batch-tokens", "32", "--tokens", "64", "--dtype", "fp32"),
    *("--dtype", "fp32", "--no-speed", "--evaluate", "2", "--combinations", "4", "--trial-samples", "2"),
    *("--finalists", "2", "--finalist-tokens", "32", "--lattice", "intermediate_size=32,40,48"),
)


def prefers_the_later(messages: list[dict[str, str]]) -> str:
    """The answer that comes later in the alphabet."""
    if judge_server.turn_of(messages) == 1:
        return BRANCH
    one, other = judge_server.shown_answers(messages)
    return RANKING.format(1 if one > other else 2)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Anna sees"}\n{"prompt": "the old road"}\n')
    return path


@pytest.mark.slow
def test_a_judge_chooses_among_the_finalists_and_is_in_the_report(
    tiny_hybrid: Path, short_text: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.choosing.NEAR", 1e9)
    output = tmp_path / "run"
    with serving(says=prefers_the_later) as server:
        line = ["compress", str(tiny_hybrid), "--data", str(short_text), "--budget", "377KiB", "-o", str(output)]
        line += ["--objective", f"judge:{server.place}", "--prompts", str(prompts), "--answer-tokens", "4"]
        assert run([*line, *SMALL]) == 0
    raced = json.loads((output / "search.json").read_text())["finalists"]
    assert len(raced["finalists"]) == 2
    margins = [one["margin"] for one in raced["finalists"]]
    assert margins[raced["chosen"]] == max(margins) and "of its answers won" in raced["finalists"][0]["reason"]
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["judged"]["rows"][0]["pairs_count"] == 2
    assert "The answers, judged" in (output / "report" / "report.html").read_text()
    assert (output / "judged" / "transcripts.jsonl").is_file()


def test_what_compress_needs_for_a_judge(
    tiny_hybrid: Path, short_text: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compress", str(tiny_hybrid), "--data", str(short_text), "--budget", "1MB", "-o", str(tmp_path / "run")]
    for more, told in (
        (["--objective", "judge:x"], "belong together; give both"),
        (["--prompts", str(prompts)], "belong together; give both"),
        (["--objective", "judge:x", "--prompts", str(prompts), "--finalists", "1"], "chooses among finalists"),
        (["--objective", "judge"], "is unknown; give kl, perplexity, task:NAME or judge:JUDGE"),
        (["--objective", "judge:x", "--prompts", str(short_text.with_name("none"))], "does not exist"),
    ):
        assert run([*line, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_eval_with_a_judge(
    tiny_llama: Path,
    tiny_hybrid: Path,
    short_text: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["eval", str(tiny_llama), str(tiny_hybrid), "--teacher", str(tiny_hybrid), "--text", str(short_text)]
    line += ["--sequence-length", "16", "--samples", "1", "--no-speed", "--dtype", "fp32"]
    assert run([*line, "--judge", "http://127.0.0.1:9/v1#m"]) == 2
    assert "give --prompts FILE too" in capsys.readouterr().err
    small = tmp_path / "one.jsonl"
    small.write_text('{"prompt": "Anna sees"}\n')
    with serving(says=prefers_the_later) as server:
        line += ["--judge", server.place, "--prompts", str(small), "--judge-output", str(tmp_path / "judged"), "--json"]
        line += ["--answer-tokens", "4"]
        assert run(line) == 0
        asked = len(server.asked)
    found = json.loads(capsys.readouterr().out)["results"]
    judged = found[str(tiny_llama)]["judged"]
    assert asked == 4 and judged["verdict"]["contests"] == 1 and "judged" not in found[str(tiny_hybrid)]
    assert judged["tokens"]["prompts"] == 1
