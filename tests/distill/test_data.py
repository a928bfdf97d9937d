"""What a run reads: kinds of files, blends, conversations, and records that are broken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from cli.app import run
from distill.text.data import Part, Text, read_text
from distill.text.tokens import Tokens, tokenise
from minitron.errors import MinitronError
from minitron.measure.records import Source

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TALK = [
    {"role": "user", "content": "What does Anna eat?"},
    {"role": "assistant", "content": "A red apple."},
    {"role": "user", "content": "And Ben?"},
    {"role": "assistant", "content": "Bread and salt."},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    made = tiny_models.tokenizer()
    made.chat_template = CHAT
    return made


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_of_a_conversation_the_assistants_words_count(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "talk.jsonl", [{"messages": TALK}, {"text": "not said by anyone"}])
    found = tokenise(tokenizer, Source(str(path)), tmp_path / "tokens", assistant_only=True)
    assert found.counted is not None
    said = tokenizer.decode(found.ids[:][found.counted[:]].tolist())
    assert said == "A red apple.</s>Bread and salt.</s></s>"
    everything = tokenise(tokenizer, Source(str(path)), None)
    assert everything.counted is None and everything.ids[:].tolist() == found.ids[:].tolist()
    again = tokenise(tokenizer, Source("absent"), tmp_path / "tokens", assistant_only=True)
    assert again.ids[:].tolist() == found.ids[:].tolist()


def test_a_conversation_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = Source(str(write_rows(tmp_path / "talk.jsonl", [{"messages": TALK}])))
    tokenizer.chat_template = None
    with pytest.raises(MinitronError, match="no chat template"):
        tokenise(tokenizer, path, None)


def blend(*parts: tuple[float, int]) -> Text:
    """Sequences of one token: part p's number n is 1000 p + n."""
    made = tuple(
        Part(f"{place}", weight, Tokens(np.arange(size, dtype=np.int32) + 1000 * place, None, 0, ()), size, 1)
        for place, (weight, size) in enumerate(parts)
    )
    return Text(made, np.zeros((1, 1), dtype=np.int64), {})


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_a_blend_follows_from_the_position_alone(weights: list[float], seed: int, cuts: list[int]) -> None:
    text = blend(*((weight, 7 + place) for place, weight in enumerate(weights)))
    whole = text.batch(0, sum(cuts), seed=seed).ids[:, 0]
    pieces: list[NDArray[np.int64]] = []
    position = 0
    for cut in cuts:
        # Another reader, who begins there.
        other = blend(*((weight, 7 + place) for place, weight in enumerate(weights)))
        pieces.append(other.batch(position, cut, seed=seed).ids[:, 0])
        position += cut
    assert np.concatenate(pieces).tolist() == whole.tolist()
    for place in range(len(weights)):
        mine = whole[whole // 1000 == place]
        epochs = [mine[start : start + 7 + place] for start in range(0, len(mine), 7 + place)]
        assert all(len(set(epoch.tolist())) == len(epoch) for epoch in epochs)


def test_a_blend_has_the_shares_that_were_asked_for() -> None:
    text = blend((0.7, 50), (0.2, 50), (0.1, 50))
    ids = text.batch(0, 2000, seed=0).ids[:, 0]
    counts = np.bincount(ids // 1000)
    assert np.abs(counts - [1400, 400, 200]).max() <= 3
    # Evenly all along: in any stretch of twenty there are about fourteen of the first.
    stretches = (ids // 1000 == 0).reshape(-1, 20).sum(1)
    assert stretches.min() >= 12 and stretches.max() <= 16


def test_the_end_of_every_source_is_held_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    one = tiny_models.write_text(tmp_path / "one.txt", seed=1)
    two = tiny_models.write_text(tmp_path / "two.txt", seed=2)
    sources = [Source(str(one), 3.0), Source(str(two), 1.0)]
    text = read_text(tokenizer, sources, sequence_length=16, validation_sequences=8, folder=tmp_path / "tokens")
    assert [part.name for part in text.parts] == ["one.txt", "two.txt"] and text.validation.shape == (8, 16)
    assert text.source["data 2"]["weight"] == 1.0
    ids = tokenizer(two.read_text(), add_special_tokens=False)["input_ids"]
    used = (text.parts[1].sequences + 2) * 16
    assert text.validation[-2:].flatten().tolist() == ids[used - 32 : used]


def test_a_conversation_that_the_template_refuses_is_a_broken_record(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + CHAT
    )
    system = {"role": "system", "content": "Be brief."}
    rows = [{"messages": TALK}, {"messages": [system, *TALK]}, {"text": "half \ud83d"}, {"messages": TALK}]
    source = Source(str(write_rows(tmp_path / "talk.jsonl", rows)))
    found = tokenise(tokenizer, source, None, most_broken=2)
    assert found.broken == 2
    assert "line 2 is refused by the chat template (No system!)" in found.named[0]
    assert "line 3 has half a surrogate pair" in found.named[1]
    assert len(found.ids) == 2 * len(tokenise(tokenizer, source_of(tmp_path, [{"messages": TALK}]), None).ids)
    with pytest.raises(MinitronError, match=r"line 2 .*--most-broken"):
        tokenise(tokenizer, source, None, most_broken=0)


def test_templates_are_shown_tools_calls_and_reasoning(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.chat_template = (
        "{% for t in tools %}[tool {{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}: {{ m.reasoning_content or '' }}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %};"
        "{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    row = {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "dry", "tool_call_id": "1"},
            {"role": "assistant", "content": "No.", "reasoning_content": "dry means no."},
        ],
    }
    found = tokenise(tokenizer, source_of(tmp_path, [row]), None)
    assert tokenizer.decode(found.ids[:].tolist()) == (
        '[tool weather]user: Rain?;assistant: <weather {"city": "Oslo"}>;tool: dry;assistant: dry means no.No.;</s>'
    )


def source_of(folder: Path, rows: list[Any]) -> Source:
    return Source(str(write_rows(folder / "rows.jsonl", rows)))


def test_a_blend_as_it_is_typed(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = tiny_models.save_llama(tmp_path / "student", seed=4, intermediate_size=40)
    for folder in (student,):
        made = tiny_models.tokenizer()
        made.chat_template = CHAT
        made.save_pretrained(folder)
    talks = write_rows(tmp_path / "talk.jsonl", [{"messages": TALK}] * 40 + ["{half"])
    text = tiny_models.write_text(tmp_path / "text.txt")
    arguments = ["distill", str(student), "--teacher", str(tiny_llama), "-o", str(tmp_path / "out")]
    arguments += ["--data", f"0.75:{text}", "--data", f"0.25:{talks}", "--assistant-only", "--sequence-length", "16"]
    arguments += ["--steps", "3", "--batch-tokens", "64", "--device", "cpu", "--dtype", "fp32", "--json"]
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [found["weight"] for found in document["inputs"]["data"]] == [0.75, 0.25]
    assert "1 broken records skipped" in err and "talk.jsonl line 41" in err
    card = (tmp_path / "out/README.md").read_text()
    assert "`talk.jsonl`" in card and "weight 0.25" in card
    assert run([*arguments, "--overwrite", "--most-broken", "0"]) == 2
    assert not (tmp_path / "out.work").exists()
