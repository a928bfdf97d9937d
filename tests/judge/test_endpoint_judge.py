"""`minitron judge` with a real server on this machine that plays the judge: right, biased, broken, slow, spoilt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judge_server
import pytest
from judge_server import GOOD, JudgeServer, serving

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


def test_some_broken_verdicts_stay_in_the_denominator(files: Path) -> None:
    def says(messages: list[dict[str, str]]) -> str:
        return "no" if "Question 2?" in messages[0]["content"] else judge_server.right(messages)

    with serving(says=says) as server:
        assert run(line(files, server.place)) == 0
    verdict = results(files)["verdict"]
    assert [verdict[name]["value"] for name in ("wins", "ties", "losses", "broken")] == [0.25, 0, 0.5, 0.25]
    assert verdict["broken_verdicts"] == 2 and verdict["contests"] == 4


def test_empty_answers_need_no_judge(files: Path) -> None:
    (files / "student.jsonl").write_text("".join(json.dumps({"answer": text}) + "\n" for text in ("", " \n", "a", "b")))
    empty = [{"answer": text} for text in ("said", "", "", GOOD)]
    (files / "teacher.jsonl").write_text("".join(json.dumps(one) + "\n" for one in empty))
    with serving() as server:
        assert run(line(files, server.place)) == 0
        assert len(server.asked) == 4
    verdict = results(files)["verdict"]
    assert [verdict[name]["count"] for name in ("wins", "ties", "losses")] == [1, 1, 2]
    assert verdict["decided_by_an_empty_answer"] == 3


def html(server: JudgeServer) -> None:
    server.bodies = [b"<html><title>Gateway</title></html>"] * 4


def half(server: JudgeServer) -> None:
    server.bodies = [b'{"choices": [{"mess'] * 4


def other(server: JudgeServer) -> None:
    server.named = "another-model"


def slow(server: JudgeServer) -> None:
    server.delay = 5


def statuses(*found: int) -> Callable[[JudgeServer], None]:
    def spoil(server: JudgeServer) -> None:
        server.statuses = list(found)

    return spoil


SPOILT: dict[str, tuple[Callable[[JudgeServer], None], str]] = {
    "hangs": (slow, "did not answer within 0.2 s, twice"),
    "429": (statuses(*[429] * 4), "answers 429"),
    "500": (statuses(*[500] * 4), "answers 500"),
    "401": (statuses(401), "the key in MINITRON_JUDGE_KEY is not taken"),
    "404": (statuses(404), "there is no such path or model"),
    "half JSON": (half, "answers what is no reply (it is no JSON and begins"),
    "HTML": (html, "no JSON and begins '<html>"),
    "another model": (other, "answers as 'another-model'"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_endpoint_that_fails_is_told_in_a_sentence(
    how: str, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINITRON_JUDGE_KEY", "sk-secret")
    monkeypatch.setattr("judge.endpoint._PAUSE", 0.01)
    spoil, told = SPOILT[how]
    with serving() as server:
        spoil(server)
        slow_too = ("--timeout", "200ms") if how == "hangs" else ()
        assert run(line(files, server.place, "--concurrency", "1", *slow_too)) == 2
        error = capsys.readouterr().err
        assert told in error and "sk-secret" not in error
        assert not (files / "out" / "results.json").exists()


def test_an_endpoint_that_recovers_is_asked_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judge.endpoint._PAUSE", 0.01)
    with serving(statuses=[429, 503], bodies=[b"", b"", b"{}"]) as server:
        assert run(line(files, server.place, "--concurrency", "1", "--retries", "3")) == 0
    assert results(files)["verdict"]["losses"]["count"] == 3


def test_what_a_server_will_not_read_is_broken(files: Path) -> None:
    with serving(statuses=[400]) as server:
        assert run(line(files, server.place, "--concurrency", "1")) == 0
    assert results(files)["verdict"]["broken"]["count"] == 1
    assert "nothing was said" in transcripts(files)[0]["verdicts"][0]["broken"]


def test_a_run_that_stopped_asks_nothing_twice(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(refuse_after=5) as server:
        assert run(line(files, server.place, "--concurrency", "1", "--retries", "0")) == 2
        assert "run again: what was answered so far is kept" in capsys.readouterr().err
        kept = files / "out" / "replies.jsonl"
        whole = kept.read_bytes()
        # The last line is torn, as by a machine that stopped.
        kept.write_bytes(whole[:-20])
        server.refuse_after, before = None, len(server.asked)
        assert run(line(files, server.place)) == 0
        assert len(server.asked) - before == 16 - 5 + 1
        expected = results(files)
        assert run([*line(files, server.place), "--overwrite"]) == 0
        assert results(files) == expected


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINITRON_JUDGE_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-host")
    with serving() as server:
        assert run(line(files, server.place, "--json")) == 0
        assert server.keys == {"Bearer sk-secret"}
    for file in (files / "out").rglob("*"):
        assert b"sk-" not in file.read_bytes()
    assert "sk-" not in capsys.readouterr().out
    assert run(line(files, "http://me:sk-secret@127.0.0.1/v1")) == 2
    told = capsys.readouterr().err
    assert "put the key into the environment" in told and "sk-secret" not in told


def test_two_runs_on_one_output(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess
    import sys

    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from pathlib import Path; from minitron.files import sole\n"
            "with sole(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(files / "out"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with serving() as server:
        assert run(line(files, server.place)) == 2
        assert server.asked == []
    holder.communicate(b"")
    assert "is being written by process" in capsys.readouterr().err


def test_another_run_in_the_folder_is_not_mixed_in(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server, serving(model="other-judge") as second:
        assert run(line(files, server.place)) == 0
        assert run(line(files, second.place)) == 2
        assert "holds a run with another" in capsys.readouterr().err and second.asked == []


def test_both_models_behind_endpoints(files: Path) -> None:
    with serving() as judge, serving(model="small", says=lambda asked: f"short {GOOD}") as small:
        command = ["judge", small.place, "--teacher", judge.place, "--prompts", str(files / "prompts.jsonl")]
        command += ["-o", str(files / "out"), "--judge", judge.place, "--answer-thinking-tokens", "7", *FAST]
        assert run([*command, "--answer-tokens", "20"]) == 0
        assert small.asked[0]["thinking_token_budget"] == 7 and small.asked[0]["max_tokens"] == 27
        assert "temperature" in small.asked[0] and "seed" not in small.asked[0]
    found = results(files)
    assert found["verdict"]["wins"]["count"] == 4
    assert found["tokens"] == {
        "prompts": 4,
        "student_mean": 2.0,
        "teacher_mean": 5.0,
        "ratio": pytest.approx(0.4),
        "interval": [pytest.approx(0.4)] * 2,
    }
    answers = [json.loads(one) for one in (files / "out" / "answers-student.jsonl").read_text().splitlines()]
    assert answers[1]["prompt"] == "Question 1?" and answers[1]["tokens"] == 2
