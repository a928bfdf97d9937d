"""A tiny judge with a chat template, pairs, short instructions, and what such a judge might say."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from judge.generating import Drawn, Ids
from judge.instructions import DEFAULT
from minitron.model.loading import load_tokenizer

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
END = 2

BRANCH = "[FOCUS]\nlogic\n[END FOCUS]\n[ANSWER 1]\nsalt\n[END ANSWER 1]\n[ANSWER 2]\nbread\n[END ANSWER 2]"
RANKING = "read\n[RANKING]\n\\boxed{{{}}}\n[END RANKING]"

PAIRS = [("Anna sees", "a bird", "salt"), ("Ben finds", "the road", "three"), ("Clara wants", "an apple", "birds")]


def save_judge(model: Path, folder: Path) -> Path:
    """A copy of a tiny model that knows chats, and reads long ones."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


def save_pairs(path: Path, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> Path:
    """Pairs as preference training has them."""
    rows = [{"prompt": question, "chosen": better, "rejected": worse} for question, better, worse in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_instructions(path: Path) -> Path:
    """Short ones."""
    text = DEFAULT.read_text(encoding="utf-8")
    given = "{question} {answer_1} {answer_2} {format}"
    turns = f'[turns]\nbranch = "{given} {{qualities}}"\nrethink = "{{focus}}: {{format}}"\nsingle = "{given}"\n'
    path.write_text(text[: text.index("[[qualities]]")] + QUALITY + turns)
    return path


QUALITY = """[[qualities]]
name = "logic"
means = "sound"
[[priorities]]
name = "all"
when = "always"
order = ["logic"]
"""


class Actor:
    """Says what is in the format instead of a model; who wins is drawn with torch's generator."""

    def __init__(self, judge: Path) -> None:
        self.tokenizer = load_tokenizer(judge)
        self.calls: list[int] = []
        """Prompts of each call."""

    def ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, model: Any, prompts: Sequence[Ids], limit: int, **_: Any) -> list[Drawn]:
        self.calls.append(len(prompts))
        return [self.said(prompt) for prompt in prompts]

    def said(self, prompt: Ids) -> Drawn:
        asked = self.tokenizer.decode(list(prompt)).rpartition("user: ")[2]
        if "[FOCUS]" in asked:
            return self.ids(BRANCH), END
        return self.ids(RANKING.format(1 + int(torch.randint(2, ())))), END
