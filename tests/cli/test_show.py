"""Tables, bars and documents, in a terminal and in a pipe."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli import bars, show

COLUMNS = ["model", "parameters", "weights", "perplexity", "KL to the teacher", "peak memory"]
ROWS: list[list[show.Cell]] = [
    ["teacher", 31_577_940_288, "58.818 GiB", 12.3456, None, "61.000 GiB"],
    ["a long name of a pruned model", 22_000_000_000, "40.978 GiB", 1234.56, 0.12345, "43.000 GiB"],
]

BAR = """
import sys, time
from cli import bars, show
with show.bar("Scoring", 40, "tokens") as advance:
    for i in range(4):
        advance(10, f"KL {i}")
        show.note("half way") if i == 1 else None
show.line("[bold]MEM*-[/bold] :smile:")
"""


def in_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(show, "_RESULTS", Console(file=screen, force_terminal=True, no_color=True, width=width))
    return screen


def test_a_cell() -> None:
    values: list[show.Cell] = [None, "text", 1234567, 0, 0.123456, 12.3456, 1234.56, 1e-7, float("inf")]
    assert [show.cell(value) for value in values] == [
        "-", "text", "1,234,567", "0", "0.1235", "12.35", "1,235", "1e-07", "inf"
    ]  # fmt: skip


def test_a_table_in_a_pipe_is_plain_and_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show.table("Quality", COLUMNS, ROWS)
    told = capsys.readouterr().out
    assert "\x1b" not in told
    lines = told.splitlines()
    assert lines[0] == "Quality"
    assert lines[1].split() == " ".join(COLUMNS).split()
    assert re.split(r"\s{2,}", lines[4].strip()) == [
        "a long name of a pruned model", "22,000,000,000", "40.978 GiB", "1,235", "0.1235", "43.000 GiB"
    ]  # fmt: skip


def test_a_table_wider_than_the_terminal_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = in_a_terminal(80, monkeypatch)
    show.table("Quality", COLUMNS, ROWS)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("a long name of a pruned model") for line in lines) == 2
    whole = "\n".join(lines)
    for value in ("31,577,940,288", "58.818 GiB", "0.1235", "43.000 GiB", "KL to the teacher"):
        assert value in whole


def test_a_table_that_fits_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = in_a_terminal(80, monkeypatch)
    show.table("", COLUMNS[:3], [row[:3] for row in ROWS])
    assert screen.getvalue().count("teacher") == 1


def test_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    show.table("Nothing", ["model", "size"], [])
    assert capsys.readouterr().out.split()[:3] == ["Nothing", "model", "size"]


def test_a_bar_in_a_pipe_is_lines_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert done.stdout == "[bold]MEM*-[/bold] :smile:\n"
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    first, last = done.stderr.splitlines()
    assert first == "half way"
    assert re.fullmatch(r"Scoring: 40 of 40 tokens, [\d,.e+]+ tokens/s, KL 3", last)


def test_a_bar_tells_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(bars.time, "monotonic", lambda: float(next(clock)))
    with show.bar("Distilling", 100, "tokens") as advance:
        for _ in range(10):
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10
    assert "left" in lines[0]
    assert lines[-1].startswith("Distilling: 100 of 100 tokens")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_bar_in_a_terminal(no_color: str) -> None:
    master, slave = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80"} | ({"NO_COLOR": no_color} if no_color else {})
    # stdout stays a pipe: results must reach it while the bar holds the terminal.
    process = subprocess.Popen([sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    finally:
        os.close(master)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out == b"[bold]MEM*-[/bold] :smile:\n"
    text = seen.decode()
    assert "Scoring" in text
    assert "100%" in text
    assert "KL 3" in text
    assert "half way" in text
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) == (not no_color)
    # The cursor is shown again.
    assert text.rstrip().endswith("\x1b[?25h")


def test_bars_may_be_nested_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), show.bar("outer", 2, "steps") as outer:
        outer(1)
        with show.bar("inner", 2, "tokens") as inner:
            inner(1)
            raise ValueError("stop")
    assert "of 2" not in capsys.readouterr().err


def test_a_document_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = show.run_document(
        Path("out"), {"model": Path("in")}, {"steps": 3}, {"perplexity": None, "名": 1.5}, 1.23456
    )
    show.document(value)
    seen = capsys.readouterr()
    assert json.loads(seen.out) == {
        "output": "out",
        "inputs": {"model": "in"},
        "settings": {"steps": 3},
        "results": {"perplexity": None, "名": 1.5},
        "seconds": 1.235,
    }
    assert seen.err == ""
    assert show.run_document(None, {}, {}, {}, 0)["output"] is None
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            show.document({"loss": bad})
    with pytest.raises(TypeError, match="set"):
        show.document({"x": {1}})
    assert capsys.readouterr().out == ""


def test_programs_are_told_in_objects(capsys: pytest.CaptureFixture[str]) -> None:
    show.begin("json", "SmolLM2-135M")
    try:
        show.note("[2/6] plan")
        with show.bar("Measuring candidates", 4, "candidates") as advance:
            advance(4, "KL 0.5")
    finally:
        show.begin()
    first, begun, ended = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first == {"event": "note", "text": "[2/6] plan"}
    about = {"stage": "[2/6] plan", "subject": "SmolLM2-135M", "work": "Measuring candidates", "unit": "candidates"}
    assert begun == {"event": "begin", **about, "done": 0, "total": 4, "seconds": begun["seconds"], "note": ""}
    assert ended == {"event": "end", **about, "done": 4, "total": 4, "seconds": ended["seconds"], "note": "KL 0.5"}


def test_a_log_has_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(bars.time, "monotonic", lambda: float(next(clock)))
    show.begin("lines")
    for _ in range(100):
        with show.bar("Measuring candidates", 10, "tokens") as advance:
            for _ in range(10):
                advance(1)
    show.begin()
    seconds = next(clock)
    assert 3 <= len(capsys.readouterr().err.splitlines()) <= seconds / 60 + 1


def test_no_progress_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    show.begin("none")
    with show.bar("Scoring", 1, "tokens") as advance:
        advance(1)
    show.begin()
    assert capsys.readouterr().err == ""
