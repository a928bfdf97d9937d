"""`minitron judge` with a real server on this machine that plays the judge: right, biased, broken, slow, spoilt."""

import json
from pathlib import Path
from typing import Any

import judge_server
import pytest
from judge_server import GOOD, serving

from cli.app import run

pytest.importorskip("openai")

FAST = ("--retries", "1", "--timeout", "5s")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four prompts in two groups; the student's answer is the better one to the first alone."""
    prompts = [{"prompt": f"Question {n}?", "category": "even" if n % 2 == 0 else "odd", "id": n} for n in range(4)]
    student = [{"answer": f"student {n} {GOOD if n == 0 else 'so so'}"} for n in range(4)]
    teacher = [{"answer": f"teacher {n} {'so so' if n == 0 else GOOD}"} for n in range(4)]
    for name, lines in (("prompts", prompts), ("student", student), ("teacher", teacher)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def line(folder: Path, judge: str, *more: str) -> list[str]:
    """The command line of a comparison whose answers are there already."""
    given = ["--answers-student", str(folder / "student.jsonl"), "--answers-teacher", str(folder / "teacher.jsonl")]
    output = ["--prompts", str(folder / "prompts.jsonl"), "-o", str(folder / "out")]
    return ["judge", *given, *output, "--judge", judge, *FAST, *more]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return found


def transcripts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in (folder / "out" / "transcripts.jsonl").read_text().splitlines()]


def test_a_right_judge_tells_wins_from_losses(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        assert run(line(files, server.place)) == 0
        assert len(server.asked) == 4 * 2 * 2
        again = len(server.asked)
        assert run(line(files, server.place, "--json")) == 0
        assert len(server.asked) == again
    told = capsys.readouterr().out
    assert "25.0% (" in told and "75.0% (" in told and "compared the answers of student.jsonl" in told
    verdict = results(files)["verdict"]
    assert [verdict[name]["count"] for name in ("wins", "ties", "losses", "broken")] == [1, 0, 3, 0]
    assert verdict["orders_agree"] == 1 and verdict["took_the_first"] == 0.5
    assert verdict["by_group"]["even"]["wins"]["count"] == 1 and verdict["by_group"]["odd"]["losses"]["count"] == 2
    assert set(verdict["by_quality"]) == {"accuracy", "logic"} and verdict["by_quality"]["logic"]["contests"] == 4
    lines = transcripts(files)
    assert [one["outcome"] for one in lines] == ["first", "second", "second", "second"]
    assert [one["order"] for one in lines[0]["verdicts"]] == [[0, 1], [1, 0]]
    assert "[RANKING]" in lines[0]["verdicts"][0]["turns"][1]["said"]
    page = (files / "out" / "report.html").read_text()
    assert "the teacher won" in page and "Question 1?" in page


def test_a_judge_biased_to_position_makes_ties(files: Path) -> None:
    with serving(says=judge_server.biased) as server:
        assert run(line(files, server.url)) == 0  # the only model that is served there
    verdict = results(files)["verdict"]
    assert verdict["ties"]["count"] == 4 and verdict["orders_agree"] == 0 and verdict["took_the_first"] == 1


def test_a_judge_that_never_keeps_to_the_format(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(says=judge_server.broken) as server:
        assert run(line(files, server.place)) == 2
    told = capsys.readouterr().err
    assert "kept to the format in none of 8 verdicts" in told and "transcripts.jsonl" in told
    assert {one["outcome"] for one in transcripts(files)} == {"broken"}
    assert "turn 1" in transcripts(files)[0]["verdicts"][0]["broken"]
    assert results(files)["verdict"]["broken"]["value"] == 1
