"""Of a conversation the assistant's words alone are taught, whatever the template does to earlier turns."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
import tiny_models

from distill.text.answers import answers
from distill.text.tokens import tokenise
from minitron.measure.records import Broken, Source, records
from minitron.measure.rendering import BrokenRecordError, Renderer

PLAIN: Final = (
    "{% for m in messages %}<s>{{ m.role }}:\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:\n{% endif %}"
)
COUNTING: Final = "{{ messages | length }} turns. " + PLAIN
# As Qwen3's: the reasoning of the last answer alone is shown, and an empty thought where there is none.
FORGETS: Final = (
    "{% for m in messages %}<s>{{ m.role }}:\n"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    "{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant:\n{% endif %}"
)
MARKED: Final = (
    "{% for m in messages %}<s>{{ m.role }}:\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
CALLS: Final = (
    "{% for m in messages %}<s>{{ m.role }}:\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:\n{% endif %}"
)
STRICT: Final = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles!') }}"
    "{% endif %}{% endfor %}{% if messages[-1].role == 'user' and not add_generation_prompt %}"
    "{{ raise_exception('Nobody answers') }}{% endif %}" + PLAIN
)
TWICE: Final = "{% for m in messages %}{{ m.content }} {{ m.content }};{% endfor %}{{ messages | length }}"
LAST_ONLY: Final = "{{ messages | length }}<s>{{ messages[-1].role }}:\n{{ messages[-1].content }}</s>"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: object, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL: Final = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
TALK: Final = [user("What does Anna eat?"), said("A red apple."), user("And Ben?"), said("Bread and salt.")]
THOUGHT: Final = [
    user("Who?"),
    said("Anna.", reasoning_content="It is she."),
    user("And?"),
    said("Ben.", reasoning_content="He."),
]


def taught(template: str, messages: list[dict[str, Any]], folder: Path, **more: Any) -> list[str]:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = template
    path = folder / "talk.jsonl"
    path.write_text(json.dumps({"messages": messages, **more}) + "\n")
    (record,) = records(Source(str(path)), Broken())
    with Renderer(tokenizer) as renderer:
        text, spans = answers(renderer, record)
    parts = [text[start:stop] for start, stop in spans]
    # The tokens that count are those of these characters, and the end of the record where the last turn counts.
    found = tokenise(tokenizer, Source(str(path)), None, assistant_only=True)
    assert found.counted is not None
    end = "</s>" if spans and spans[-1][1] == len(text) else ""
    assert tokenizer.decode(found.ids[found.counted].tolist()) == "".join(parts) + end
    return parts


@pytest.mark.parametrize(
    ("template", "messages", "wanted"),
    [
        (PLAIN, TALK, ["A red apple.</s>", "Bread and salt.</s>"]),
        (COUNTING, TALK, ["A red apple.</s>", "Bread and salt.</s>"]),
        (MARKED, TALK, ["A red apple.</s>", "Bread and salt.</s>"]),
        (STRICT, TALK, ["A red apple.</s>", "Bread and salt.</s>"]),
        (FORGETS, THOUGHT, ["Anna.</s>\n", "<think>He.</think>Ben.</s>\n"]),
        (FORGETS, TALK, ["A red apple.</s>\n", "<think></think>Bread and salt.</s>\n"]),
        (FORGETS, [user("Who?"), said("  Anna. ")], ["<think></think>Anna.</s>\n"]),
        (COUNTING, [said("Hello."), user("Hi.")], ["Hello.</s>"]),
        (COUNTING, [user("A"), said("A"), user("A"), said("A")], ["A</s>", "A</s>"]),
        (COUNTING, [user("Größe?"), said("日本 😀 é"), user("x"), said("é")], ["日本 😀 é</s>", "é</s>"]),
        (LAST_ONLY, TALK, ["Bread and salt.</s>"]),
        (CALLS, [user("Rain?"), said(None, tool_calls=CALL)], ['[weather {"city": "Oslo"}]</s>']),
        (
            PLAIN,
            [user("One"), said([{"type": "text", "text": "Two "}, {"type": "text", "text": "three"}])],
            ["Two three</s>"],
        ),
    ],
)
def test_the_answers_are_found(
    template: str, messages: list[dict[str, Any]], wanted: list[str], tmp_path: Path
) -> None:
    assert taught(template, messages, tmp_path) == wanted


@pytest.mark.parametrize("template", [PLAIN, COUNTING, MARKED, FORGETS, CALLS])
@pytest.mark.parametrize("nothing", ["", "  \n", []])
def test_an_empty_turn_is_never_taught_as_an_end(template: str, nothing: object, tmp_path: Path) -> None:
    first = taught(template, [user("Who?"), said(nothing), user("And?"), said("Ben.")], tmp_path)
    assert len(first) == 1 and "Ben." in first[0]
    assert taught(template, [user("Who?"), said(nothing)], tmp_path) == []


def test_a_turn_whose_calls_the_template_does_not_show_is_an_empty_one(tmp_path: Path) -> None:
    assert taught(PLAIN, [user("Rain?"), said(None, tool_calls=CALL)], tmp_path) == []


def test_an_answer_that_is_shown_twice_is_a_broken_record(tmp_path: Path) -> None:
    with pytest.raises(BrokenRecordError, match=r"\(message 2\) that the chat template shows more than once"):
        taught(TWICE, TALK, tmp_path)
