"""A tokenizer is a program that came with a model: one that explodes is refused, one that gives up is told of."""

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any, Final

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from distill.text.tokens import tokenise
from minitron.errors import MinitronError
from minitron.measure.records import Source
from minitron.measure.text import token_blocks
from minitron.model.loading import load_tokenizer
from minitron.model.text_growth import require_short


def replace(what: str, by: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: what}, "content": by}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(longest: str) -> str:
    return base64.b64encode((8).to_bytes(4, "little") + b"\1" * 8 + b"a\0" + longest.encode() + b"\0").decode()


EXPLODING: Final = {
    "ten by ten": sequence(*[replace("a", "a" * 10)] * 10),
    "in a chain": sequence(*(replace(chr(98 + n), chr(99 + n) * 10) for n in range(10))),
    "from a letter of the first": sequence(replace(" ", "x" * 100), replace("x", "y" * 100), replace("y", "z" * 100)),
    "one step": replace("e", "x" * 10**6),
    "any character": replace(".", "x" * 10**5, "Regex"),
    "between characters": sequence(*[replace("", "x", "Regex")] * 40),
    "nested": sequence(sequence(sequence(*[replace("a", "aa")] * 60))),
    "very many": sequence(*[replace("a", "b")] * 10**4),
    "a table": {"type": "Precompiled", "precompiled_charsmap": charsmap("x" * 10**5)},
    "tables": sequence(*[{"type": "Precompiled", "precompiled_charsmap": charsmap("x" * 100)}] * 3),
}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def put(folder: Path, part: str, value: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))


@pytest.mark.parametrize("name", EXPLODING)
def test_a_normalizer_that_explodes_is_refused(name: str, folder: Path) -> None:
    put(folder, "normalizer", EXPLODING[name])
    with pytest.raises(MinitronError, match=r"its normalizer (makes a text more than|has 10000 steps).* do not use"):
        load_tokenizer(folder)


USUAL: Final = {
    "none": None,
    "Llama": sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")),
    "Gemma": replace(" ", "\u2581"),
    "T5": sequence(
        {"type": "Precompiled", "precompiled_charsmap": charsmap("\u0635\u0644\u0649 \u0627\u0644\u0644\u0647")},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        replace(" {2,}", "\u2581", "Regex"),
    ),
    "ALBERT": sequence(
        *(replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}),
        replace(" {2,}", " ", "Regex"),
    ),
    "names of line ends": sequence(replace("\n", "</n>"), replace("\t", "<tab>"), replace("  ", "<spaces2>")),
    "many letters": sequence(*(replace(chr(0x600 + n), chr(0x620 + n) * 2) for n in range(30))),
    "CLIP": sequence({"type": "NFC"}, replace("\\s+", " ", "Regex"), {"type": "Lowercase"}),
}


@pytest.mark.parametrize("name", USUAL)
def test_what_tokenizers_do_is_not(name: str, tmp_path: Path) -> None:
    require_short(tmp_path, USUAL[name])


def test_what_is_reckoned_is_what_happens() -> None:
    """The bound lets a text grow a thousandfold, and not five thousandfold."""
    for each, refused in ((1000, False), (5000, True)):
        made = normalizers.Replace("e", "x" * each)
        assert len(made.normalize_str("eee")) == 3 * each
        if refused:
            with pytest.raises(MinitronError):
                require_short(Path("here"), json.loads(made.__getstate__()))
        else:
            require_short(Path("here"), json.loads(made.__getstate__()))


BACKTRACKS: Final = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def test_a_pattern_that_panics_is_a_broken_record(folder: Path, tmp_path: Path) -> None:
    """Rust's panics are no Exception of Python's."""
    put(folder, "pre_tokenizer", BACKTRACKS)
    tokenizer = load_tokenizer(folder)
    rows = [{"text": "Anna sees three birds."}, {"text": "a" * 60 + "b"}, {"text": "Ben."}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.monotonic()
    with pytest.raises(
        MinitronError, match=r"a\.jsonl line 2 is refused by the tokenizer \(Onig: .*; fix or remove it"
    ):
        token_blocks(tokenizer, path, sequence_length=2)
    found = tokenise(tokenizer, Source(str(path)), None, most_broken=1)
    assert found.broken == 1 and "line 2 is refused by the tokenizer" in found.named[0]
    assert time.monotonic() - start < 60


def test_a_pattern_that_always_panics_is_told_when_it_is_loaded(folder: Path) -> None:
    put(folder, "normalizer", replace("", "xx", "Regex"))
    with pytest.raises(MinitronError, match=r"the tokenizer in .* (does not work|cannot be read)"):
        load_tokenizer(folder)


def test_padding_in_the_file_makes_no_tokens(folder: Path) -> None:
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    put(folder, "padding", padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"})
    assert len(load_tokenizer(folder)("Anna sees", add_special_tokens=False)["input_ids"]) < 10


def test_what_the_library_prints_of_a_file_stands_among_no_results(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It writes past Python, with names from the file as they are."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    put(folder, "added_tokens", [tokens[0] | {"bogus\x1b[31m": 1}, *tokens[1:]])
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert "\x1b" in "".join(capfd.readouterr())
    load_tokenizer(folder)
    assert "".join(capfd.readouterr()) == ""
    print("heard again", flush=True)
    assert capfd.readouterr().out == "heard again\n"
