"""Files and folders in, records out, whatever they are called; broken ones are named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minitron.errors import MinitronError
from minitron.measure.records import Broken, Record, Source, parse_source, records

TEXTS = ["Anna sees three birds.", "Ben eats bread,\nand salt."]
TALK = [{"role": "user", "content": "What does Anna eat?"}, {"role": "assistant", "content": "A red apple."}]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path, broken: Broken | None = None) -> list[Record]:
    return list(records(Source(str(path)), broken or Broken()))


def texts_of(path: Path) -> list[str | None]:
    return [record.text for record in read(path)]


def files_of_all_kinds(folder: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text} for text in TEXTS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder.mkdir(exist_ok=True)
    for name in ("a.jsonl", "b.JSONL", "c.ndjson", "d.json", "e"):
        (folder / name).write_text(lines)
    for name in ("f.json", "g", "h.txt"):
        (folder / name).write_text(json.dumps(rows, indent=1))
    with gzip.open(folder / "i.jsonl.gz", "wt") as stream:
        stream.write(lines)
    quoted = ['"' + text + '"' for text in TEXTS]
    (folder / "j.csv").write_text("id,text\n" + "".join(f"{at},{text}\n" for at, text in enumerate(quoted)))
    (folder / "k.tsv").write_text("text\tid\n" + "".join(f"{text}\t{at}\n" for at, text in enumerate(quoted)))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "l.parquet")
    return sorted(folder.iterdir())


def test_all_kinds_of_files_hold_the_same_records(tmp_path: Path) -> None:
    for file in files_of_all_kinds(tmp_path / "files"):
        assert texts_of(file) == TEXTS, file.name


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    files = files_of_all_kinds(folder)
    (folder / "notes.pdf").write_text("no text")
    (folder / "dataset_info.json").write_text("{}")
    assert texts_of(folder) == TEXTS * len(files)
    before = Source(str(folder)).fingerprint()
    write_rows(folder / "a.jsonl", [{"text": "other"}])
    assert Source(str(folder)).fingerprint() != before


@pytest.mark.parametrize("text", ["[a note]\nand more", "{braces} in prose", "", "[1, 2]\n[3, 4]", '"quoted"\n'])
def test_a_text_that_only_looks_like_json_is_a_text(tmp_path: Path, text: str) -> None:
    for name in ("a.txt", "b", "c.text", "d.md"):
        (tmp_path / name).write_text(text)
        assert texts_of(tmp_path / name) == [text]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"messages": json.dumps(TALK)},
        {
            "conversations": [
                {"from": "human", "value": TALK[0]["content"]},
                {"from": "gpt", "value": TALK[1]["content"]},
            ]
        },
        {"conversations": TALK},
        {"prompt": TALK[:1], "completion": TALK[1:]},
        {"instruction": TALK[0]["content"], "input": "", "output": TALK[1]["content"]},
    ],
)
def test_conversations_in_all_dialects(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read(write_rows(tmp_path / "a.jsonl", [row]))
    assert list(found.messages) == TALK and found.text is None
    # As it is written, it reads again.
    assert [one.messages for one in read(write_rows(tmp_path / "b.jsonl", [found.row()]))] == [found.messages]


def test_a_prompt_and_its_completion_are_one_text(tmp_path: Path) -> None:
    assert texts_of(write_rows(tmp_path / "a.jsonl", [{"prompt": "1 + 1 =", "completion": " 2"}])) == ["1 + 1 = 2"]


def test_what_messages_hold_beside_their_content_is_kept(tmp_path: Path) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    row = {
        "tools": [{"type": "function", "function": {"name": "weather"}}],
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "content": "dry", "tool_call_id": "1"},
            {"role": "assistant", "content": "No rain.", "reasoning_content": "dry"},
        ],
    }
    (found,) = read(write_rows(tmp_path / "a.jsonl", [row]))
    called = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert found.messages[0] == {"role": "assistant", "content": "", "tool_calls": [called]}
    assert list(found.messages[1:]) == row["messages"][1:]
    assert found.template == {"tools": row["tools"]}


def test_broken_records_are_named_and_stop_past_the_limit(tmp_path: Path) -> None:
    rows = [{"text": "one"}, "{half", {"words": 3}, {"messages": [{"role": "user"}]}, {"text": "two"}, [1]]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"text": "\ud83d"}])
    broken = Broken(5, "--most-broken")
    assert [record.text for record in read(path, broken)] == ["one", "two"]
    assert broken.count == 5
    assert [name.split(" ", 3)[2] for name in broken.named] == ["2", "3", "4", "6", "7"]
    assert "half a surrogate pair" in broken.named[-1]
    with pytest.raises(MinitronError, match=r"3 records are broken, the first .*line 2 is not JSON.*--most-broken"):
        read(path, Broken(2, "--most-broken"))
    with pytest.raises(MinitronError, match=r"line 2 is not JSON .*; fix or remove it\.$"):
        read(path)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("a.txt", Source("a.txt")),
        ("0.7:a.txt", Source("a.txt", 0.7)),
        ("2:hf:some/name", Source("hf:some/name", 2.0)),
        (".5:dir/b", Source("dir/b", 0.5)),
        ("c:/d.txt", Source("c:/d.txt")),
    ],
)
def test_a_weight_stands_before_the_path(typed: str, wanted: Source) -> None:
    assert parse_source(typed) == wanted


def test_a_dataset_is_read_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(name: str, **how: object) -> list[dict[str, str]]:
        asked.append((name, how))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr("datasets.load_dataset", load)
    source = parse_source("0.5:hf:owner/set")
    assert source.path is None and [record.text for record in records(source, Broken())] == ["one", "two"]
    assert asked == [("owner/set", {"split": "train", "streaming": True, "trust_remote_code": False})]


def test_a_dataset_that_cannot_be_had_is_told() -> None:
    with pytest.raises(MinitronError, match="cannot be loaded from the hub"):
        list(records(parse_source("hf:owner/absent"), Broken()))


@pytest.mark.parametrize("name", ["", "/etc", "../x", "./x", "a/../b", "json", "imagefolder", "a/b/c", "a\\b", "~/x"])
def test_what_is_no_name_on_the_hub_is_refused(name: str) -> None:
    """`datasets` takes a path for a name, and a format's name for the files of the folder that it runs in."""
    with pytest.raises(MinitronError, match=r"is no dataset on the hub; write it like hf:owner/name"):
        list(records(Source(f"hf:{name}"), Broken()))


def test_a_folder_of_a_datasets_name_is_not_read_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/set").mkdir(parents=True)
    write_rows(tmp_path / "owner/set/train.jsonl", [{"text": "one"}])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MinitronError, match="is also a path here"):
        list(records(Source("hf:owner/set"), Broken()))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.txt", None, "does not exist"),
        ("bad.parquet", b"PAR1 not at all", "not a readable Parquet"),
        ("bad.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("bad.json", b'[{"text": 1},', "neither one JSON document nor JSON lines"),
        ("bad.jsonl.gz", b"not packed", "cannot be unpacked"),
        ("bad.jsonl.bz2", b"not packed", "cannot be unpacked"),
        ("half.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, "cannot be unpacked"),
        ("deep.json", b"[" * 10**5, "neither one JSON document nor JSON lines"),
        ("a.jsonl.zst", b"(\xb5/\xfd", "compressed with Zstandard; unpack it first"),
        ("no_text.csv", b"words,more\none,two\n", "row 1 has no string `text`"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MinitronError, match=told) as raised:
        read(tmp_path / name)
    assert name in str(raised.value)


def test_a_folder_without_data_and_a_weight_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match="above 0"):
        parse_source("0:a.txt")
    with pytest.raises(MinitronError, match=r"holds no \.txt, "):
        read(tmp_path)
