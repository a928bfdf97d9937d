"""Chat templates are programs that came with a model: they render what transformers renders, and end."""

import json
import os
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import tiny_models
from transformers import PreTrainedTokenizerBase

from minitron.errors import MinitronError
from minitron.measure import rendering
from minitron.measure.records import Broken, Record, Source, records
from minitron.measure.rendering import BrokenRecordError, Renderer
from minitron.measure.text import token_blocks

TALK: Final = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Anna."})
TEMPLATE: Final = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'skip' %}{% continue %}{% endif %}{{ m.role }}: {{ m.content }}"
    "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson(indent=2) }}{% endfor %}\n"
    "{% endfor %}{{ documents }}{{ mood }}{% if add_generation_prompt %}assistant: {% endif %}"
)
CALL: Final = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None, "é"]}}}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    made = tiny_models.tokenizer()
    made.chat_template = TEMPLATE
    return made


def children() -> list[Any]:
    return psutil.Process(os.getpid()).children(recursive=True)


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(
    "template", [TEMPLATE, {"default": "{{ messages }}", "tool_use": TEMPLATE}], ids=["one", "two"]
)
@pytest.mark.parametrize(
    "more",
    [{}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"mood": "glad", "documents": [{"text": "x"}]}],
)
def test_it_renders_what_transformers_does(
    tokenizer: PreTrainedTokenizerBase, template: Any, prompt: bool, more: dict[str, Any]
) -> None:
    tokenizer.chat_template = template
    messages = [*TALK, {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Hm."}]
    with Renderer(tokenizer) as renderer:
        found = renderer.text(Record("here", None, tuple(messages), more), prompt=prompt)
    assert found == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **more)


def test_what_a_row_holds_for_the_template_reaches_it_and_no_more(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    row = {
        "messages": list(TALK),
        "tools": json.dumps([{"type": "function"}]),
        "chat_template_kwargs": {
            "mood": "glad",
            "chat_template": "other",
            "add_generation_prompt": True,
            "tokenize": 1,
        },
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (record,) = records(Source(str(tmp_path / "a.jsonl")), Broken())
    with Renderer(tokenizer) as renderer:
        assert renderer.text(record) == '<s>[{"type": "function"}]user: Who?assistant: Anna.Noneglad'


BOMBS: Final = {
    "for ever": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = 1 %}{% endfor %}{% endfor %}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "a product": "{{ 'x' * 10**10 }}",
    "a list": "{{ ([0] * 10**10) | length }}",
    "a power": "{{ (9**(9**9)) | string | length }}",
    "a width": "{{ '%10000000000d' % 1 }}",
    "a format": "{{ '{:>10000000000}'.format(1) }}",
    "a filter": "{{ 'x' | center(10**10) }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "long output": "{% for a in range(99999) %}{% for b in range(999) %}0123456789abcdef{% endfor %}{% endfor %}",
    "some megabytes": "{% for a in range(999) %}{% for b in range(999) %}0123456789{% endfor %}{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "outside": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "not a template": "{% for %}",
    "no division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_broken_record(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1)
    monkeypatch.setattr(rendering, "MEMORY", 2**28)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'Boom' %}" + BOMBS[name] + "{% endif %}{{ messages[0].content }}"
    )
    before = children()
    with Renderer(tokenizer) as renderer:
        with pytest.raises(BrokenRecordError, match=r"is refused by the chat template|needs more than 1 s or"):
            renderer.text(Record("here", None, ({"role": "user", "content": "Boom"},)))
        if name not in ("not a template", "a power"):  # this one is reckoned out when the template is compiled
            assert renderer.text(Record("here", None, TALK)) == "Who?"
    assert children() == before


def test_a_bomb_in_a_file_is_named_by_its_line(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1)
    tokenizer.chat_template = "{% if messages | length > 1 %}" + BOMBS["for ever"] + "{% endif %}x"
    rows = [{"messages": list(TALK[:1])}, {"messages": list(TALK)}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MinitronError, match=r"a\.jsonl line 2 needs more than 1 s or"):
        token_blocks(tokenizer, tmp_path / "a.jsonl", sequence_length=2)


def test_plain_texts_start_no_process(tokenizer: PreTrainedTokenizerBase) -> None:
    before = children()
    with Renderer(tokenizer) as renderer:
        assert renderer.text(Record("here", "plain")) == "plain"
        assert children() == before
        assert renderer.text(Record("here", None, TALK[:1])).endswith("user: Who?None")
        assert len(children()) == len(before) + 1
    assert children() == before
