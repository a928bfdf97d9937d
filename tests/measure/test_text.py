"""Files in, blocks of token ids out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tokenizer

from minitron.errors import MinitronError
from minitron.files import file_hash
from minitron.measure.text import documents, token_blocks

END = 2


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    assert [record.text for record in documents(path)] == ["one\ntwo\n"]


def test_each_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two\\n", "source": 3}\n', encoding="utf-8")
    assert [record.text for record in documents(path)] == ["one", "two\n"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\t", "no text"),
        ("a.jsonl", b"\n\n", "no text"),
        ("a.jsonl", b'{"text": "one"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'["one"]', "line 1 has no string `text`"),
        ("a.jsonl", b'{"text": 3}', "line 1 has no string `text`"),
        ("a.jsonl", b'{"content": "one"}', "line 1 has no string `text`"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}', "not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MinitronError, match=told) as raised:
        list(documents(path))
    assert str(path) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="does not exist"):
        list(documents(tmp_path / "absent.txt"))


def test_blocks_are_the_text_with_an_end_after_each_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["Anna sees the old road.", "Ben eats bread and salt.", "The dog wants a red apple."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    blocks = token_blocks(tokenizer(), path, sequence_length=5)
    expected: list[int] = []
    for text in texts:
        expected += [*tokenizer().encode(text, add_special_tokens=False), END]
    assert blocks.dtype == np.int64
    assert blocks.shape == (len(expected) // 5, 5)
    assert blocks.ravel().tolist() == expected[: blocks.size]


def test_a_tokenizer_without_an_end_adds_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Anna sees the old road.", encoding="utf-8")
    plain = tokenizer()
    plain.eos_token = None
    assert END not in token_blocks(plain, path, sequence_length=2)


def test_fewer_samples_are_spread_over_the_text(short_text: Path) -> None:
    every = token_blocks(tokenizer(), short_text, sequence_length=7)
    for samples in (1, 2, 3, len(every) // 2, len(every) - 1, len(every), len(every) + 1):
        blocks = token_blocks(tokenizer(), short_text, sequence_length=7, samples=samples)
        places = [int(np.flatnonzero((every == block).all(axis=1))[0]) for block in blocks]
        assert len(blocks) == min(samples, len(every))
        assert places[0] == 0
        if samples > 1:
            assert (blocks[-1] == every[-1]).all()
    four = token_blocks(tokenizer(), short_text, sequence_length=7, samples=4)
    step = (len(every) - 1) / 3
    assert all((block == every[round(i * step)]).all() for i, block in enumerate(four))


@pytest.mark.parametrize("long", [False, True], ids=["short records", "one long record"])
def test_of_a_large_text_only_what_is_read_becomes_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    monkeypatch.setattr("minitron.measure.text.LARGE", 2**12)
    lines = [f"Anna sees {number:04} birds on the old road." for number in range(4000)]
    path = tmp_path / ("a.txt" if long else "a.jsonl")
    path.write_text("\n".join(lines) if long else "".join(json.dumps({"text": line}) + "\n" for line in lines))
    made, read = tokenizer(), 0
    whole = type(made).__call__

    def counting(self: object, text: str, **more: object) -> object:
        nonlocal read
        read += len(text)
        return whole(self, text, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(made), "__call__", counting)
    blocks = token_blocks(made, path, sequence_length=24, samples=5)
    assert blocks.shape == (5, 24) and blocks.dtype == np.int64
    assert read < 5 * 24 * 16
    # Evenly spread over the lines, and each a stretch of the text.
    starts = [int(re.findall(r"\d{4}", made.decode(block))[0]) for block in blocks]
    assert all(abs(start - number * 800) < 2 for number, start in enumerate(starts))
    joined = "</s>".join(lines) if not long else "\n".join(lines)
    assert all(made.decode(block) in joined for block in blocks)


def test_a_conversation_is_read_through_the_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": "Anna sees three birds"}]}] * 2))
    made = tokenizer()
    with pytest.raises(MinitronError, match=r"record 1 is a conversation, but the tokenizer has no chat template"):
        token_blocks(made, path, sequence_length=4)
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    expected = [*made.encode("user: Anna sees three birds", add_special_tokens=False), END]
    assert token_blocks(made, path, sequence_length=len(expected)).tolist() == [expected, expected]
    made.chat_template = "{{ raise_exception('Never!') }}"
    with pytest.raises(MinitronError, match=r"record 1 is refused by the chat template \(Never!\); fix or remove it"):
        token_blocks(made, path, sequence_length=4)


def test_a_text_shorter_than_one_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Anna sees.", encoding="utf-8")
    tokens = len(tokenizer().encode("Anna sees.", add_special_tokens=False)) + 1
    assert token_blocks(tokenizer(), path, sequence_length=tokens).shape == (1, tokens)
    with pytest.raises(MinitronError, match=f"holds {tokens} tokens, less than one sequence of {tokens + 1}"):
        token_blocks(tokenizer(), path, sequence_length=tokens + 1)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    # The example of FIPS 180-4.
    assert file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
