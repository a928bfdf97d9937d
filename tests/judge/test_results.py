"""Shares and intervals against brute force, replies on disk, and the section of the report."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from cli.app import run
from judge.contests import Contest
from judge.judging import Judged, Verdict
from judge.replies import Replies
from judge.results import Results, Tally, lengths, results_of
from judge.speaking import Reply
from judge.telling import SHOWN, Telling
from minitron.errors import MinitronError
from minitron.report.document import add_part, read_schema
from minitron.report.judged import judged_document, write_page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31m \u202e </pre>"


def judged(number: int, *winners: int | None, text: str = "an answer") -> Judged:
    contest = Contest(({"role": "user", "content": f"{text} {number}"},), (text, f"{text} b"), f"p:{number}", ("g",))
    orders = ((0, 1), (1, 0))
    turns = (("asked", "said"), ("asked", f"{text}\n[RANKING]\n\\boxed{{1}}\n[END RANKING]"))
    verdicts = [
        Verdict(order, winner, ("logic",), "" if winner is not None else f"broken {text}", turns)
        for order, winner in zip(orders, winners, strict=True)
    ]
    return Judged(contest, tuple(verdicts))


def some(text: str = "an answer") -> list[Judged]:
    pairs = [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (1, 1), (0, 1), (None, 1)]
    return [judged(number, *pair, text=text) for number, pair in enumerate(pairs)]


def test_shares_and_intervals_are_those_of_a_bootstrap_over_pairs() -> None:
    found = results_of(some())
    counts = found.whole.counts
    assert counts == {"first": 2, "tie": 1, "second": 4, "broken": 1}
    shares = found.whole.shares()
    assert shares["margin"].value == -0.25 and sum(shares[name].value for name in counts) == pytest.approx(1)
    # Brute force: pairs drawn with replacement, one by one.
    rng = np.random.default_rng(1)
    margins = np.array([1, 1, -1, -1, -1, -1, 0, 0])[rng.integers(8, size=(20_000, 8))].mean(1)
    assert shares["margin"].interval == pytest.approx(np.quantile(margins, [0.025, 0.975]), abs=0.13)
    assert found.broken_verdicts == 1 and found.verdicts == 16
    assert (found.both, found.agreed, found.took_the_first) == (7, 6, 9)
    assert Tally().to_json()["wins"]["value"] == 0.0 and not Results().all_broken


def test_tokens_to_answer() -> None:
    student = [Reply("a", tokens) for tokens in (10, 20, 30, None)]
    teacher = [Reply("a", tokens) for tokens in (8, 16, 24, 9)]
    found = lengths(student, teacher)
    assert found is not None and found["prompts"] == 3 and found["ratio"] == pytest.approx(1.25)
    assert found["interval"] == [pytest.approx(1.25)] * 2  # every pair has the same ratio
    assert lengths([Reply("a")], [Reply("b")]) is None


def test_replies_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    kept = Replies(path)
    for number in range(3):
        kept.put(f"k{number}", {"text": f"said {number}"})
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    # A bit of the second has changed, and the third is torn.
    path.write_bytes(lines[0] + lines[1].replace(b"said 1", b"said 9") + lines[2][:-9])
    found = Replies(path)
    assert len(found) == 1 and found.get("k0") == {"text": "said 0"} and found.get("k1") is None
    found.put("k2", {"text": "again"})
    assert Replies(path).get("k2") == {"text": "again"} and len(Replies(path)) == 2
    (tmp_path / "other").write_text("one\ntwo\n")
    with pytest.raises(MinitronError, match="holds no replies"):
        Replies(tmp_path / "other")


def document(text: str = "an answer") -> dict[str, Any]:
    pairs = some(text)
    telling = Telling()
    for one in pairs:
        telling.add(one)
    names = {"student": text, "teacher": "t", "judge": "j"}
    tokens = lengths([Reply("a", 10)], [Reply("a", 8)])
    return judged_document({**names, "verdict": results_of(pairs).to_json(), "tokens": tokens}, telling.found())


def test_the_pairs_that_tell_most() -> None:
    shown = [one["outcome"] for one in document()["telling"]]
    assert shown == ["second"] * 3 + ["first"] * 2 + ["tie", "broken"]
    assert sum(SHOWN.values()) == 7 and document()["telling"][0]["reasons"] == "an answer"


def test_the_section_in_the_report_of_a_plan(tiny_hybrid: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    assert run(["plan", str(tiny_hybrid), "--budget", "1MB", "--context", "32", "-o", str(folder)]) == 0
    add_part(folder, "judged", document(HOSTILE))
    found = json.loads((folder / "report.json").read_text())
    validator = jsonschema.Draft202012Validator(read_schema())
    validator.validate(found)
    spoiled = copy.deepcopy(found)
    spoiled["judged"]["rows"][0]["wins_share"] = 2
    assert not validator.is_valid(spoiled)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "The answers, judged" in page and "The answers, judged" in text
    write_page(tmp_path / "page.html", document(HOSTILE))
    for shown in (page, (tmp_path / "page.html").read_text()):
        assert "<script>alert" not in shown and "<img src=x" not in shown and "\x1b" not in shown
        assert "&lt;script&gt;alert(1)" in shown and "\\u202e" in shown
