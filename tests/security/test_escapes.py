"""Names from configs, files and records are shown, and obeyed by no terminal, no Markdown and no HTML."""

import io
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from cli import bars, show, telling
from cli.app import run
from distill.recipe import Recipe
from distill.run.card import model_card
from minitron.escapes import code, html, markdown, visible

HOSTILE: Final = {
    "colour": "a\x1b[31mb",
    "title": "a\x1b]0;owned\x07b",
    "C1": "a\x9b31mb\x9d0;x\x9c",
    "direction": "a\u202etxt.exe\u2066b\u200e",
    "lines": "a\rb\nc\u2028d\x85e\x0bf",
    "back": "abc\x08\x08\x08xyz\x7f\x00",
    "markup": "<b>*x*</b> | `y` [l](http://evil.example) <img src=x onerror=alert(1)>",
    "link": "http://evil.example www.evil.example a@evil.example # x ## &lt;i&gt; ~~s~~ $x$ ```",
    "half": "a\ud800b",
}
"""Names that order something of what shows them."""


def unshown(text: str) -> list[str]:
    """The characters of an output that no terminal shows as themselves; lines may end."""
    return [one for one in text if not one.isprintable() and one != "\n"]


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_is_lost_and_nothing_unshown(name: str) -> None:
    shown = visible(name)
    assert not unshown(shown) and "\n" not in shown
    # Python reads its own spelling back; only what has a backslash itself would be read otherwise.
    spelled = "".join(one if ord(one) < 127 else one.encode("unicode_escape").decode() for one in shown)
    assert spelled.encode("ascii").decode("unicode_escape") == name
    assert visible(shown) == shown


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("Größe 4\u00d74 \u2212 1 \u00a0 \u3000 日本語 עברית العربية", "Ünïcödé-7B_v1.5", "░▒▓█ │ ─", ""):
        assert visible(text) == text


# --- the terminal -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_bars_of_transformers() -> Iterator[None]:
    """As the command has it, by its environment."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def file_name(name: str) -> str:
    """The same as a file's name can be."""
    return name.replace("/", ":").replace("\x00", "").replace("\ud800", "")


def changed(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    path = folder / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def shown_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command prints in all, with nothing in it that a terminal obeys."""
    run([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert not unshown(told.out + told.err)
    assert told.out + told.err
    return told.out + told.err


CONFIGS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "model_type": lambda name: {"model_type": name},
    "architectures": lambda name: {"architectures": [name + "Model"]},
    "a key": lambda name: {name: name},
    "a size": lambda name: {"hidden_size": name},
    "a pattern": lambda name: {"model_type": "nemotron_h", "hybrid_override_pattern": name},
    "a method": lambda name: {"quantization_config": {"quant_method": name}},
    "weights": lambda name: {"transformers_weights": name},
    "code": lambda name: {"model_type": name, "auto_map": {"AutoConfig": name}},
    "a kernel": lambda name: {"attn_implementation": f"x/{name}"},
}


@pytest.mark.parametrize("where", CONFIGS)
def test_names_in_a_config(where: str, name: str, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(llama, "config.json", lambda found: found | CONFIGS[where](name))
    shown_by(capsys, "inspect", llama)
    shown_by(capsys, "inspect", llama, "--json")
    shown_by(capsys, "plan", llama, "--budget", "1MiB")


def test_names_of_tensors(
    name: str, llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\ud800" in name:
        pytest.skip("safetensors writes no such name")
    tensors = load_file(llama / "model.safetensors")
    tensors[name] = tensors.pop("model.norm.weight")
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    shown_by(capsys, "inspect", llama)
    assert "minitron: error: " in shown_by(capsys, "prune", llama, "--output", tmp_path / "out")
    assert "minitron: error: " in shown_by(capsys, "eval", llama, "--text", short_text, "--no-speed")


def test_names_of_files(
    file_name: str, llama: Path, short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / file_name
    llama.rename(odd)
    shown_by(capsys, "inspect", odd)
    shown_by(capsys, "plan", odd, "--budget", "1MiB")
    few = ("--samples", "1", "--sequence-length", "32")
    shown_by(
        capsys, "prune", odd, "--output", tmp_path / "out", "--set", "intermediate_size=16", "--data", short_text, *few
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert not unshown(card) and not re.search(r"(?<!\\)<", outside_code(card))
    text = tmp_path / f"{file_name}.txt"
    shutil.copyfile(short_text, text)
    evaluated = shown_by(capsys, "eval", odd, "--text", text, "--no-speed", "--sequence-length", "32", "--samples", "1")
    assert "erplexity" in evaluated
    shown_by(capsys, "eval", odd, "--text", f"{text}.absent", "--no-speed")


ROWS: Final[dict[str, Callable[[str], str]]] = {
    "a.jsonl": lambda name: json.dumps({name: name}),
    "a.json": lambda name: json.dumps([{"messages": [{"role": name, "content": None}]}]),
    "b.jsonl": lambda name: f'{{"text": {name}}}',
    "a.csv": lambda name: '"' + name.replace('"', "").replace("\x00", "").replace("\ud800", "") + '"\nx\n',
    "c.jsonl": lambda name: json.dumps({"messages": [{"role": "user", "content": name}]}),
}


@pytest.mark.parametrize("file", ROWS)
def test_records(file: str, name: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / file).write_bytes(ROWS[file](name).encode("utf-8", "replace"))
    template = "{{ raise_exception(messages[0].content) }}"
    changed(llama, "tokenizer_config.json", lambda found: found | {"chat_template": template})
    told = shown_by(capsys, "eval", llama, "--text", tmp_path / file, "--no-speed")
    assert "minitron: error: " in told


def test_what_libraries_log_and_warn(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kept = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        show.guard_libraries()
        record = logging.getLogRecordFactory()("x", logging.ERROR, "f", 1, "%s", (name,), None)
        assert record.getMessage() == visible(name, keep="\n")
        assert not unshown(warnings.formatwarning(name, UserWarning, "f", 1, ""))
    finally:
        logging.setLogRecordFactory(kept[0])
        warnings.formatwarning = kept[1]


def test_bars_and_tables_in_a_terminal(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the escape sequences that are drawn there, none comes from a name."""

    def drawn(text: str) -> str:
        stream = io.StringIO()
        terminal = Console(
            file=stream, force_terminal=True, width=300, markup=False, emoji=False, highlight=False, color_system=None
        )
        monkeypatch.setattr(show, "_RESULTS", terminal)
        for module in (show, bars, telling):
            monkeypatch.setattr(module, "MESSAGES", terminal)
        with show.bar(text, 10, text) as advance:
            advance(10, text)
        show.table(text, [text, "b"], [[text, 1], [text, 2]])
        show.memory_bar([(text, 3)], 5)
        show.note(text)
        show.paragraph(text)
        return stream.getvalue()

    obeyed = set(re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", drawn("plain")))
    rest = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", lambda found: "" if found[0] in obeyed else found[0], drawn(name))
    assert not unshown(rest.replace("\r", ""))


def test_json_spells_out_and_keeps(capsys: pytest.CaptureFixture[str], name: str) -> None:
    show.document({name: [name]})
    told = capsys.readouterr().out
    assert not unshown(told)
    assert json.loads(told) == {name: [name]}


# --- Markdown and HTML --------------------------------------------------------------------------------------------


def outside_code(text: str) -> str:
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


def test_markdown_says_the_name_and_nothing_else(name: str) -> None:
    """CommonMark takes a sign behind a backslash for itself: without the backslashes the name is there again."""
    told = markdown(name)
    assert not unshown(told) and "\n" not in told
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", told).replace("\\", "") == visible(" ".join(name.split())).replace(
        "\\", ""
    )
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", told)
    assert not re.search(r"[`*\[\]<>|~$&@]|\b_|_\b|://|www\.|#(?=[#\s]|$)", bare)


@pytest.mark.parametrize("text", ["- x", "+ x", "1. x", "12) x", "# x", "--- x"])
def test_a_name_begins_no_list_and_no_heading(text: str) -> None:
    assert not re.match(r"[-+*]\s|\d+[.)]\s|#+\s", markdown(text))


def test_code_ends_where_it_should(name: str) -> None:
    told = code(name)
    fence = re.match("`+", told)
    assert fence is not None and told.endswith(fence[0])
    inside = told[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside)
    assert not unshown(told) and outside_code(told) == ""
    assert not re.search(r"(?<!\\)\|", code(name, cell=True))


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_says_the_name_and_nothing_else(name: str) -> None:
    seen = _Seen()
    seen.feed(f'<p title="{html(name)}">{html(name)}</p>')
    shown = visible(name, keep="\n")
    assert seen.tags == [("p", [("title", shown)])]
    assert seen.text == shown


@pytest.fixture
def planned(name: str, file_name: str, llama: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of a report whose model's folder has such a name, and whose plan was asked for by a hostile path."""
    llama.rename(tmp_path / file_name)
    assert run(["plan", str(tmp_path / file_name), "--budget", "1MiB", "--output", str(tmp_path / "report")]) == 0
    yield tmp_path / "report"


def test_a_report_of_a_hostile_folder(planned: Path) -> None:
    page = (planned / "report.html").read_text()
    own = page[: page.index("/**")] + page[page.rindex('"use strict"') :]  # without plotly.js
    assert not unshown(own.replace("\t", ""))
    seen = _Seen()
    seen.feed(own)
    assert not {"img", "b", "i"} & {tag for tag, _ in seen.tags} - {"b"} and "<img" not in own
    assert not [about for _, attributes in seen.tags for about in attributes if about[0].startswith("on")]
    told = (planned / "report.md").read_text()
    assert not unshown(told)
    outside = outside_code(re.sub(r"^~~~~.*?^~~~~|^```.*?^```", "", told, flags=re.DOTALL | re.MULTILINE))
    assert not re.search(r"(?<!\\)<", outside) and "://evil" not in re.sub(r"\\.", "", outside)


def test_a_model_card_of_a_training(name: str, file_name: str, tmp_path: Path) -> None:
    point = {"step": 1, "tokens": 64, "kl": 0.5, "perplexity": 9.0, "top1_agreement": 0.5, "tasks": {name: {name: 0.5}}}
    result = SimpleNamespace(
        recipe=Recipe(tokens=4096, tasks=(name,)),
        curve=[point],
        selected=point,
        teacher_precision="bf16",
        steps=1,
        tokens=64,
        perplexity_teacher=8.0,
        drift=None,
        range_test=None,
        stream_weight=0.0,
    )
    source = {"data": {"name": name, "sha256": name, "weight": 0.5}}
    told = model_card(tmp_path / file_name, tmp_path / file_name, source, cast("Any", result))
    assert not unshown(told)
    body = outside_code(told.split("---\n", 2)[2])
    assert not re.search(r"(?<!\\)[<`]", body) and "://evil" not in re.sub(r"\\.", "", body)
    for line in told.splitlines():
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) in (5, 6), line
