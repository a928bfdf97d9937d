"""benchmarks/accuracy.py: its table, with the commands of minitron replaced by what they would say."""

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import accuracy


def test_texts_of_the_same_name_have_columns_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [tmp_path / "encyclopedia" / "heldout.txt", tmp_path / "documents" / "heldout.txt"]
    perplexities = dict(zip(map(str, texts), (30.0, 70.0), strict=True))

    def said(*command: object) -> str:
        text = str(command[command.index("--text") + 1])
        tasks = {"local_piqa": {"acc_norm": 0.75}} if "--tasks" in command else {}
        return json.dumps({"results": {"one": {"perplexity": perplexities[text], "tasks": tasks}}})

    monkeypatch.setattr(accuracy, "minitron", said)
    options = argparse.Namespace(
        work=tmp_path, text=texts, samples=4, model=Path("parent"), student=Path("student"), tasks="piqa.yaml",
        task_limit=None, device="cpu", title="T", batch_tokens=512, rate="1e-4", options="", data=[Path("train.txt")],
    )  # fmt: skip
    found = {name: accuracy.measured(options, name, Path(name)) for name in (accuracy.TEACHER, accuracy.PRUNED)}
    head, _, teacher, pruned = accuracy.section(options, found).splitlines()[2:6]
    assert head.startswith(
        "| model | perplexity, KL: encyclopedia/heldout.txt | perplexity, KL: documents/heldout.txt |"
    )
    assert teacher == "| teacher | 30.00, 0.0000 | 70.00, 0.0000 | 0.7500 | 1.000 |"
    assert pruned.split(" | ")[1:3] == ["30.00, 0.0000", "70.00, 0.0000"]
