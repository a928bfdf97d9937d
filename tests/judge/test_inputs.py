"""Prompts, answers and benchmark pairs: what is read, and what is refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import judge_server
import pytest
from judge_server import GOOD, serving

from cli.app import run
from judge.benchmark import Accuracy, read_benchmark
from judge.contests import Contest
from judge.judging import Judged, Verdict
from judge.questions import read_answers, read_questions
from minitron.errors import MinitronError


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_every_way_to_write_a_prompt(tmp_path: Path) -> None:
    history = [{"role": "system", "content": "Be brief."}, user("Hi"), {"role": "assistant", "content": "Hello"}]
    path = written(
        tmp_path / "a.jsonl",
        {"prompt": "one", "category": "maths"},
        {"prompt": [user("two")], "id": 7},
        {"messages": [*history, user("three"), {"role": "assistant", "content": "the reference"}]},
        {"instruction": "four", "input": "with", "output": "ignored"},
        {"conversations": [{"from": "human", "value": "five"}, {"from": "gpt", "value": "ignored"}]},
        {"question": "six"},
        {"text": "seven"},
        {"messages": [user("eight")]},
    )
    found = read_questions(path)
    last = [question.conversation[-1]["content"] for question in found]
    assert last == ["one", "two", "three", "four\n\nwith", "five", "six", "seven", "eight"]
    assert [message["role"] for message in found[2].conversation] == ["system", "user", "assistant", "user"]
    assert found[0].group == "maths" and found[1].name == "7"
    assert [one.conversation[-1]["content"] for one in read_questions(path, 4)] == ["one", "three", "five", "seven"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [user("x")], "tools": [{"type": "function"}]}, "offers tools"),
        ({"messages": [user("x"), {"role": "assistant", "tool_calls": [{"id": 1}]}, user("y")]}, "uses tools"),
        ({"messages": [user("x"), {"role": "tool", "content": "3"}, user("y")]}, "uses tools"),
        ({"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}, "shows something (image_url)"),
        ({"prompt": "x", "images": ["a.png"]}, "shows something (images)"),
        ({"messages": [user("x"), {"role": "critic", "content": "y"}, user("z")]}, "the role 'critic'"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, "does not end with what a user asks"),
        ({"prompt": "   "}, "has no `prompt`"),
        ({"prompt": "a\ud800b"}, "half a surrogate pair"),
        ({"id": 3}, "has no `prompt`"),
    ],
)
def test_a_prompt_that_is_refused(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(MinitronError, match=re.escape(told)) as caught:
        read_questions(path)
    assert "a.jsonl line 2" in str(caught.value)


def test_answers_are_matched_by_id_or_by_order(tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", {"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y"})
    questions = read_questions(prompts)
    by_id = written(tmp_path / "1.jsonl", {"id": "y", "answer": "to b", "tokens": 4}, {"id": "x", "response": "to a"})
    assert [(one.text, one.tokens) for one in read_answers(by_id, questions)] == [("to a", None), ("to b", 4)]
    spoken = {"messages": [user("b"), {"role": "assistant", "content": "to b"}]}
    in_order = written(tmp_path / "2.jsonl", {"output": ""}, spoken)
    assert [one.text for one in read_answers(in_order, questions)] == ["", "to b"]
    for rows, told in (
        ([{"answer": "to a"}], "has 1 answers and there are 2 prompts"),
        ([{"answer": 3}, {"answer": "b"}], "has no `answer`"),
        ([{"answer": "b", "prompt": "b"}, {"answer": "a", "prompt": "a"}], "answers another prompt"),
    ):
        with pytest.raises(MinitronError, match=re.escape(told)):
            read_answers(written(tmp_path / "3.jsonl", *rows), questions)


def test_what_a_command_line_may_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, output = str(written(tmp_path / "p.jsonl", {"prompt": "a"})), str(tmp_path / "out")
    judge = ["--judge", "http://127.0.0.1:9/v1#m", "-o", output]
    for more, told in (
        (["s", "--prompts", prompts], "there is no teacher; give --teacher MODEL"),
        (["--teacher", "t", "--prompts", prompts], "there is no student; give STUDENT"),
        (["s", "--teacher", "t"], "give --prompts FILE, or --benchmark FILE"),
        (["s", "--benchmark", prompts], "--benchmark tries the judge alone; drop STUDENT"),
        (["s", "--teacher", "t", "--prompts", prompts, "--answer-temperature", "3"], "the temperature is 3.0"),
        (["s", "--teacher", "t", "--prompts", prompts, "--answers-teacher", prompts, "--samples", "1"], "--samples"),
        (["http:///v1", "--teacher", "t", "--prompts", prompts], "names no host"),
        (["--prompts", prompts, "--answers-student", prompts, "--answers-teacher", prompts], "has no `answer`"),
        (["--benchmark", prompts], "is no pair of"),
    ):
        assert run(["judge", *judge, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split()), more


# --- benchmarks: fields as in the published files ---------------------------------------------------------------------

REWARD_BENCH = {"prompt": "q", "chosen": "c", "chosen_model": "m", "rejected": "r", "subset": "hep-python", "id": 1}
RM_BENCH = {"id": 1, "prompt": "q", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "domain": "math"}
RMB = {
    "pair_uid": "10067",
    "conversation_input": [{"content": "q", "language": "English", "role": "user"}],
    "chosen": {"llm_name": "a", "answer": "c", "score": 2.5},
    "reject": {"llm_name": "b", "answer": "r", "score": 1.5},
    "category_path": "Pairwise_set/Harmlessness/S7",
}
HELP_STEER = {"context": [user("q")], "response1": "r", "response2": "c", "overall_preference": 2, "domain": "code"}


def test_the_layouts_of_published_benchmarks(tmp_path: Path) -> None:
    for name, row, groups in (
        ("RewardBench", REWARD_BENCH, ("Reasoning", "hep-python")),
        ("RMB", RMB, ("Harmlessness", "S7")),
        ("HelpSteer3", HELP_STEER, ("code",)),
    ):
        found = read_benchmark(written(tmp_path / "b.jsonl", row))
        assert found.layout == name
        assert found.contests[0].answers == ("c", "r") and found.contests[0].groups == groups
        assert found.contests[0].question == ({"role": "user", "content": "q"},)
    styles = read_benchmark(written(tmp_path / "b.jsonl", RM_BENCH)).contests
    assert len(styles) == 9 and styles[2].answers == ("c1", "r3") and styles[2].groups == ("math", "style: hard")
    assert [one.groups[1] for one in styles].count("style: normal") == 3
    first = {**HELP_STEER, "overall_preference": -1}
    none = {**HELP_STEER, "overall_preference": 0}
    found = read_benchmark(written(tmp_path / "b.jsonl", first, none))
    assert found.contests[0].answers == ("r", "c") and found.without_preference == 1


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([REWARD_BENCH, RMB], "is no pair of RewardBench"),
        ([{**RM_BENCH, "chosen": ["c1"]}], "no lists of as many styles"),
        ([{**REWARD_BENCH, "rejected": 3}], "has an answer that is no text"),
        ([{**HELP_STEER, "overall_preference": "2"}], "overall_preference is no number"),
        ([{**RMB, "chosen": {}}], "is no pair of RMB ('answer')"),
        ([{**HELP_STEER, "overall_preference": 0}], "holds no pairs"),
    ],
)
def test_pairs_that_are_none(rows: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=re.escape(told)):
        read_benchmark(written(tmp_path / "b.jsonl", *rows))


def test_errors_count_as_wrong() -> None:
    contest = Contest(({"role": "user", "content": "q"},), ("better", "worse"), groups=("g",))
    accuracy = Accuracy()
    for one, other in ((0, 0), (0, 1), (0, None), (None, None)):
        accuracy.add(Judged(contest, (Verdict((0, 1), one), Verdict((1, 0), other))))
    found = accuracy.to_json()
    # 2 + 1 + 1 + 0 of 8 verdicts are right; one pair is right in both orders.
    assert found["accuracy"]["value"] == 0.5 and found["right_in_both_orders"]["value"] == 0.25
    assert found["broken_verdicts"] == 3 and found["by_group"]["g"]["pairs"] == 4
    low, high = found["accuracy"]["interval"]
    assert low < 0.5 < high


def test_a_judge_on_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    pairs = [{**REWARD_BENCH, "chosen": f"{GOOD} {n}", "rejected": f"bad {n}"} for n in range(3)]
    path, output = str(written(tmp_path / "b.jsonl", *pairs)), tmp_path / "out"

    def says(messages: list[dict[str, str]]) -> str:
        # Right with two turns; with one it goes by the place.
        return judge_server.right(messages) if judge_server.turn_of(messages) else judge_server.biased(messages)

    with serving(says=says) as server:
        assert run(["judge", "--benchmark", path, "--judge", server.place, "-o", str(output)]) == 0
    found = json.loads((output / "results.json").read_text())
    assert found["two_turns"]["accuracy"]["value"] == 1.0 and found["one_turn"]["accuracy"]["value"] == 0.5
    assert found["two_turns"]["by_group"]["Reasoning"]["pairs"] == 3
    assert "100.0% (100.0% to 100.0%)" in capsys.readouterr().out
    with serving(says=judge_server.broken) as server:
        assert run(["judge", "--benchmark", path, "--judge", server.place, "-o", str(output), "--overwrite"]) == 2
    assert "never kept to the format" in capsys.readouterr().err
    assert (output / "transcripts-two-turns.jsonl").is_file()
