"""The hooks for NeMo-RL and verl in docs/judge.md do what judge-train does; their base classes are stand-ins."""

import asyncio
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from judge_server import BRANCH, RANKING

from pipeline import Contest, first_turn, material, parse_branch, read_instructions, second_turn

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "judge.md").read_text(encoding="utf-8")
NEMO, VERL = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)

NAMES = ("observations", "metadata", "next_stop_strings", "rewards", "terminateds", "answers")
RETURN = namedtuple("RETURN", NAMES, defaults=[None])

PAIR = Contest(({"role": "user", "content": "2 + 2?"},), ("4", "5"))


def defined(code: str, monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> dict[str, Any]:
    """What a piece of the document defines."""
    for name, content in modules.items():
        parts = name.split("__")
        for count in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(parts[count - 1]))
        vars(sys.modules[".".join(parts)]).update(content)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def conversation(*said: str) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """(messages up to what was said last, the row, what is asked second)."""
    instructions = read_instructions()
    given = material(PAIR, (1, 0))
    asked = first_turn(given, instructions)
    again = second_turn(asked, BRANCH, parse_branch(BRANCH, instructions.names), given, instructions)
    messages = [dict(asked[0]), {"role": "assistant", "content": said[0]}]
    if len(said) > 1:
        messages += [dict(again[-1]), {"role": "assistant", "content": said[1]}]
    return messages, {"better": 2, "code": given.code}, str(again[-1]["content"])


CASES = [(BRANCH,), ("hm",), (BRANCH, RANKING.format(2)), (BRANCH, RANKING.format(1)), (BRANCH, "2")]
WORTH = [0.0, -100.0, 0.0, -1.0, -100.0]


def test_the_environment_of_nemo_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"EnvironmentInterface": object, "EnvironmentReturn": RETURN}
    environment = defined(NEMO, monkeypatch, nemo_rl__environments__interfaces=base)["JudgeEnvironment"]()
    logs, rows, asked = zip(*(conversation(*case) for case in CASES), strict=True)
    found = environment.step(list(logs), list(rows))
    assert found.rewards.tolist() == WORTH and found.terminateds.tolist() == [False, True, True, True, True]
    assert found.observations[0] == {"role": "user", "content": asked[0]}


def test_the_interaction_of_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    interaction = defined(VERL, monkeypatch, verl__interactions__base={"BaseInteraction": object})["JudgeInteraction"]()
    for case, worth in zip(CASES, WORTH, strict=True):
        messages, row, asked = conversation(*case)
        over, text, reward, _ = asyncio.run(interaction.generate_response("1", messages, **row))
        assert (over, reward) == (case != CASES[0], worth) and text == ("" if over else asked)
