"""Every command line in README.md, docs/, the Dockerfile and the Slurm script is one that Minitron takes, and the cheap
ones of the documents print what is told.

Of a block of code each line that begins with `minitron`, after a `$` or not, or that calls `-m cli`, is parsed, with
all its checks.  `plan`, `compare`, `inspect` and the like run, and where a block shows what they print they must print
it: all but the lines for which it has `...`.  What needs weights, time or a network is parsed only.
"""

import functools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from planning_models import MODELS

from cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = {"plan", "compare", "inspect", "export", "gpus", "schema"}
"""Commands that read a config alone, if anything, `export` where it writes nothing."""

START = re.compile(r"(?:\$ )?(?:minitron |torchrun .*-m cli |python -m cli )")

USAGE: Any = typer.BadParameter.__base__
"""The error of click for a line that cannot be parsed; typer brings its own click."""

SMOLLM2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
"""SmolLM2-135M's config.json."""

FOREIGN = {
    *("--enable-mamba-cache-stochastic-rounding", "--enable-prefix-caching", "--enforce-eager", "--host", "--port"),
    *("--kv-cache-memory-bytes", "--trust-remote-code", "--process-output", "--parallel", "--cache-ram", "--only"),
    *("--install-completion", "--cost"),
}
"""Options of other programs, or of all commands, of which the documents speak."""


class Line(NamedTuple):
    """A command line in a document."""

    document: str
    arguments: tuple[str, ...]
    """What stands behind `minitron`."""

    shown: str
    """What the document says that it prints; empty where it says nothing."""

    def __str__(self) -> str:
        return f"{self.document}: minitron {shlex.join(self.arguments)}"


def blocks(text: str) -> Iterator[str]:
    """The blocks of code of a document: fenced ones without a language or of a shell, and indented ones."""
    fence, block, before = "", list[str](), ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if fence in ("```", "```bash", "```console"):
                yield "\n".join(block)
            fence, block = ("", []) if fence else (line, [])
        elif fence:
            block.append(line)
        elif line.startswith("    ") and (block or not before.strip()):
            block.append(line[4:])
        elif not line and block:
            block.append("")
        elif block:
            yield "\n".join(block)
            block = []
        before = line
    if block:
        yield "\n".join(block)


def lines_of(path: Path) -> Iterator[Line]:
    """The command lines of a document."""
    name = str(path.relative_to(ROOT))
    for text in blocks(path.read_text(encoding="utf-8")):
        text = re.sub(r" *\\\n *", " ", text)
        # A line that is typed, and what follows up to the next one.
        for part in re.split(r"^(?=\$ )|^(?=minitron |torchrun )", text, flags=re.MULTILINE):
            typed, _, shown = part.partition("\n")
            if START.match(typed):
                told = re.split(r" {2,}| && ", typed)[0]
                words = shlex.split(told.translate(str.maketrans("", "", "[]")), comments=True)
                begin = words.index("cli") if "-m" in words else words.index("minitron")
                yield Line(name, tuple(words[begin + 1 :]), shown if typed.startswith("$") else "")


def deployed(path: Path) -> Iterator[Line]:
    """The command lines of a Dockerfile or a script, comments included."""
    text = re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for found in re.finditer(r"(?:-m cli|\bminitron) ([a-z]+ (?:[^\n]*\\\n)*[^\n]*)", text):
        words = shlex.split(found[1].replace("\\\n", " "))
        if words[0] in app.COMMANDS:
            yield Line(str(path.relative_to(ROOT)), tuple(words), "")


DEPLOYED = [line for path in (ROOT / "docker/Dockerfile", ROOT / "examples/slurm.sh") for line in deployed(path)]
LINES = [*(line for path in DOCUMENTS for line in lines_of(path)), *DEPLOYED]


@functools.cache
def command_of(name: str) -> Any:
    """A command as click sees it."""
    group: Any = typer.main.get_command(app.build(name))
    assert name in group.commands, f"there is no command {name}"
    return group.commands[name]


def options_of(name: str) -> set[str]:
    """All flags of a command that its help does not hide."""
    return {
        flag
        for option in command_of(name).params
        if not option.hidden
        for flag in (*option.opts, *option.secondary_opts)
    }


def flags(words: tuple[str, ...] | list[str]) -> set[str]:
    """The options among some words."""
    return {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}


def test_the_documents_have_command_lines() -> None:
    assert len(LINES) > 60
    assert {line.arguments[0] for line in LINES} >= {*app.COMMANDS}
    assert [line.arguments[0] for line in DEPLOYED] == ["plan", "compress", "distill"]


@pytest.mark.parametrize("line", LINES, ids=[f"{i}" for i in range(len(LINES))])
def test_a_command_line_is_parsed(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('command = "compress"\nmodel = "MODEL"\ndata = "text.jsonl"\noutput = "out"\n')
    name, *words = line.arguments
    unknown = flags(words) - options_of(name)
    assert not unknown, f"{line}\nhas options that `minitron {name} --help` does not show: {unknown}"
    given = [word for word in words if word != "..."]
    try:
        command_of(name).make_context(name, given)
    except typer.Exit:
        pass  # --help
    except USAGE as error:
        missing = type(error).__name__ == "MissingParameter" and "..." in words
        assert missing, f"{line}\n{error.format_message()}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_options_in_prose_are_options(path: Path) -> None:
    """`minitron plan --gpu` of that command, `--gpu` of any."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    # Names of before have a table of their own.
    text = re.sub(r"^<!-- table: old-names.*?<!-- end -->", "", text, flags=re.DOTALL | re.MULTILINE)
    known = set().union(*map(options_of, app.COMMANDS)) | FOREIGN
    for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text):
        words = span.split()
        said = {one.strip("[].,;") for word in flags(words) if not word.endswith("...") for one in word.split("|")}
        if words[:1] == ["minitron"] and len(words) > 1 and words[1] in app.COMMANDS:
            assert said <= options_of(words[1]), f"{path.name}: `{span}`"
        elif words[0].startswith("--"):
            assert said <= known, f"{path.name}: `{span}`"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A folder that holds what the documents call MODEL and the like, and published configs."""
    folder = tmp_path_factory.mktemp("documents")
    for path in MODELS.glob("*.json"):
        shutil.copy(path, folder)
        for name in (path.stem, f"nvidia/NVIDIA-{path.stem.removeprefix('NVIDIA-')}"):
            (folder / name).mkdir(parents=True)
            shutil.copy(path, folder / name / "config.json")
    (folder / "SmolLM2").mkdir()
    (folder / "SmolLM2/config.json").write_text(json.dumps(SMOLLM2))
    (folder / "SUPER").symlink_to(folder / "SmolLM2")
    (folder / "org").mkdir()
    for name in ("MODEL", "org/model", "pruned", "distilled"):
        (folder / name).symlink_to(tiny_llama)
    return folder


def runs(line: Line) -> bool:
    """Whether a command line is cheap, and complete."""
    words = line.arguments
    fetched = any("@" in word or word.startswith("hf:") for word in words)
    return (
        line not in DEPLOYED
        and words[0] in RUN
        # A page of all models takes long; tests/report/test_planner_page.py writes one.
        and "--page" not in words
        and not (words[0] == "export" and "--output" in words)
        and "..." not in words
        and not fetched
    )


CHEAP = [line for line in LINES if runs(line)]


@pytest.mark.parametrize("line", CHEAP, ids=[f"{i}" for i in range(len(CHEAP))])
def test_a_cheap_command_line_runs_and_prints_what_the_document_says(
    line: Line, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stand_ins)
    code = app.run([*line.arguments, *(["--overwrite"] if {"-o", "--page"} & {*line.arguments} else [])])
    told = capsys.readouterr()
    assert code == 0, f"{line}\n{told.err}"
    rest = " ".join(told.out.split())
    for piece in re.split(r"^\s*\.\.\.\s*$", line.shown, flags=re.MULTILINE):
        if piece := " ".join(piece.split()):
            _, found, rest = rest.partition(piece)
            assert found, f"{line}\nprints\n{told.out}\nand not\n{piece}"
