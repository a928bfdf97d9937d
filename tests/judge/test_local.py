"""Models of folders that answer: against a plain greedy loop, with a thinking budget, drawn by a seed, as judges."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cli.app import run
from judge.instructions import DEFAULT
from judge.local import LocalModel
from judge.replies import Replies
from judge.speaking import Reply, Speaking, ask
from minitron.model.loading import load_model, load_tokenizer

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<think>\n{% endif %}"
)
PROMPTS = ("Anna sees", "the old road and three birds", "Ben", "Clara", "a red apple, bread and salt; the king wants")


def conversations(*prompts: str) -> list[tuple[dict[str, Any], ...]]:
    return [({"role": "user", "content": prompt},) for prompt in prompts]


def greedy(model: PreTrainedModel, ids: list[int], most: int, ends: tuple[int, ...] = (2,)) -> list[int]:
    """The most likely token each time, the whole text read anew: no cache, no batch, no padding."""
    said: list[int] = []
    with torch.no_grad():
        while len(said) < most:
            token = int(model(input_ids=torch.tensor([[*ids, *said]]), use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            said.append(token)
    return said


def answered(speaker: LocalModel, folder: Path, prompts: tuple[str, ...] = PROMPTS) -> list[Reply]:
    return ask(speaker, conversations(*prompts), Replies(folder / "replies.jsonl"))


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_hybrid"])
def test_batched_answers_are_those_of_one_at_a_time(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    speaker = LocalModel(folder, Speaking(max_tokens=6), "fp32", "cpu", batch_size=3)
    assert speaker.pads_exactly == (kind == "tiny_llama")
    for prompt, reply in zip(PROMPTS, answered(speaker, tmp_path), strict=True):
        ids = [1, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        expected = greedy(model, ids, 6)
        assert (reply.tokens, reply.finished) == (len(expected), len(expected) < 6)
        text = tokenizer.decode(expected)
        assert reply.text == text.replace("<pad>", "").replace("<s>", "").strip()


@pytest.fixture(scope="module")
def thinker(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template opens a thought, which it never ends."""
    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def test_a_thought_is_ended_by_its_budget_and_the_answer_follows(thinker: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(thinker, dtype=torch.float32), load_tokenizer(thinker)
    budget = Speaking(max_tokens=5, max_thinking_tokens=4)
    found = answered(LocalModel(thinker, budget, "fp32", "cpu"), tmp_path)
    for prompt, reply in zip(PROMPTS, found, strict=True):
        ids = tokenizer(f"user: {prompt}\n<think>\n", add_special_tokens=False)["input_ids"]
        thought = greedy(model, ids, 4)
        assert len(thought) == 4
        ending = tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"]
        answer = greedy(model, [*ids, *thought, *ending], 5)
        assert reply.cut_thinking and reply.thinking_tokens == 4
        assert reply.tokens == 4 + len(ending) + len(answer)
        shown = tokenizer.decode([*thought, *ending, *answer]).rpartition("</think>")[2]
        assert reply.text == shown.replace("<pad>", "").replace("<s>", "").strip()
    # Without a budget all that is said is thought, and nothing is answered.
    unlimited = answered(LocalModel(thinker, Speaking(max_tokens=6), "fp32", "cpu"), tmp_path)
    assert all(not reply.text and not reply.finished for reply in unlimited)


def test_drawn_answers_follow_from_the_seed_also_after_a_stop(tiny_llama: Path, tmp_path: Path) -> None:
    drawn = Speaking(max_tokens=6, temperature=1.0, top_p=0.9, seed=3)
    speaker = LocalModel(tiny_llama, drawn, "fp32", "cpu", batch_size=2)
    whole = answered(speaker, tmp_path)
    kept = (tmp_path / "replies.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "stopped").mkdir()
    # The second of a batch was not kept.
    (tmp_path / "stopped" / "replies.jsonl").write_bytes(kept[0] + kept[2])
    assert answered(speaker, tmp_path / "stopped") == whole
    other = LocalModel(tiny_llama, Speaking(max_tokens=6, temperature=1.0, seed=4), "fp32", "cpu", batch_size=2)
    assert answered(other, tmp_path) != whole


def test_a_small_model_as_a_bad_judge(
    tiny_llama: Path, tiny_hybrid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPTS[0]}) + "\n" + json.dumps({"prompt": PROMPTS[1]}) + "\n")
    line = ["judge", str(tiny_hybrid), "--teacher", str(tiny_llama), "--prompts", str(prompts), "--answer-tokens", "3"]
    short = tmp_path / "mine.toml"
    text = DEFAULT.read_text(encoding="utf-8")
    turns = "{question} {answer_1} {answer_2} {format}"
    head = text[: text.index("[turns]")]
    short.write_text(head + f'[turns]\nbranch = "{turns} {{qualities}}"\nrethink = "{{format}}"\nsingle = "{turns}"\n')
    line += [
        "--instructions",
        str(short),
        "--judge",
        str(tiny_llama),
        "--judge-tokens",
        "2",
        "-o",
        str(tmp_path / "out"),
        "--dtype",
        "fp32",
    ]
    assert run([*line, "--device", "cpu"]) == 2
    assert "kept to the format in none of 4 verdicts" in " ".join(capsys.readouterr().err.split())
    lines = (tmp_path / "out" / "transcripts.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["outcome"] == "broken"
    answers = [json.loads(one) for one in (tmp_path / "out" / "answers-teacher.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in answers] == list(PROMPTS[:2]) and all(one["tokens"] <= 3 for one in answers)
