"""--config and --save-config: what a file says, what goes before it, what is refused and what is never written."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.app import build, run
from cli.config_file import _toml_of, masked, read_config, settable, written

CONFIG = Path(__file__).parents[1] / "reference" / "models" / "Nemotron-Nano-9B-v2.json"


def parameters(command: str) -> Any:
    application: Any = typer.main.get_command(build(command))
    return application.commands[command].params


def planned(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {key: value for key, value in found.items() if key not in ("command", "created", "date")}


def test_a_file_says_what_one_would_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.json").write_bytes(CONFIG.read_bytes())
    file = tmp_path / "run.toml"
    file.write_text(
        """
        model = "model.json"
        gpu = "A10G"
        context = "128k"
        concurrency = 2
        keep = {attention = "bf16"}
        leave = ["hidden"]
        lattice = {num_hidden_layers = [56, 54]}
        every_mix = false
        """
    )
    typed = [str(tmp_path / "model.json"), "--gpu", "A10G", "--context", "128k", "--keep", "attention=bf16"]
    typed += ["--leave", "hidden", "--lattice", "num_hidden_layers=56,54"]
    by_file = planned("--config", str(file), capsys=capsys)
    assert by_file == planned(*typed, "--concurrency", "2", capsys=capsys)
    # What is typed goes before the file.
    assert planned("--config", str(file), "--concurrency", "1", capsys=capsys) == planned(*typed, capsys=capsys)


def test_what_is_saved_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.json").write_bytes(CONFIG.read_bytes())
    typed = ["models/m.json", "--budget", "18GiB", "--context", "32k", "--weights", "int8", "--top", "3"]
    line = ["--save-config", "kept/run.toml", "--overwrite"]
    (tmp_path / "kept").mkdir()
    first = planned(*typed, *line, capsys=capsys)
    kept = tomllib.loads((tmp_path / "kept" / "run.toml").read_text())
    assert kept == {
        "command": "plan",
        "model": "../models/m.json",
        "budget": 18 * 2**30,
        "context": 32 * 1024,
        "weights": "int8",
        "top": 3,
    }
    monkeypatch.chdir(tmp_path / "models")
    again = planned("--config", "../kept/run.toml", capsys=capsys)
    assert first["candidates"] == again["candidates"]
    assert run(["plan", "--config", "../kept/run.toml", "--save-config", "../kept/run.toml"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("contxt = 1", "minitron plan has no setting 'contxt'; did you mean context?"),
        ("xyzzy = 1", "see minitron plan --help-all."),
        ('command = "compress"', "is for minitron compress, not for minitron plan"),
        ("overwrite = true", "overwrite is typed and never read from a file"),
        ("context = [1, 2]", "context is a list; write one value as it is typed"),
        ("context = true", "context is true or false"),
        ("every-mix = 1", "every-mix is 1; write true or false."),
        ("context = ", "is not valid TOML"),
        ('context = "many"', "many"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert run(["plan", str(CONFIG), "--gpu", "A10G", "--config", str(file)]) == 2
    assert why in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert run(["plan", str(CONFIG), "--config", str(tmp_path / "none.toml")]) == 2


def test_old_names_are_read_with_a_warning(tmp_path: Path) -> None:
    file, told = tmp_path / "run.toml", list[str]()
    file.write_text('batch = 2\nselect = true\n"scoring-dtype" = "fp32"\n')
    found = read_config(file, "compress", parameters("compress"), told.append)
    assert sorted(str(value) for value in found.values()) == ["2", "False", "fp32"]
    assert len(told) == 3 and "batch is called concurrency by now" in told[0]


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "run.toml"
    file.write_text(
        """
        student = "here"
        teacher = ["math=org/name", "code=here"]
        data = ["math=2:texts", "hf:org/set", "0.5:/whole/path"]
        text = "held.txt"
        output = "out"
        """
    )
    known = settable(parameters("distill"))
    found = read_config(file, "distill", parameters("distill"), print)
    by_key = {key: found[each.name] for key, each in known.items() if each.name in found}
    assert by_key == {
        "student": str(tmp_path / "here"),
        "teacher": ["math=org/name", f"code={tmp_path / 'here'}"],
        "data": [f"math=2:{tmp_path / 'texts'}", "hf:org/set", "0.5:/whole/path"],
        "text": str(tmp_path / "held.txt"),
        "output": str(tmp_path / "out"),
    }


def test_secrets_are_never_written(tmp_path: Path) -> None:
    known = settable(parameters("judge"))
    address = "https://me:hunter2@host/v1?api_key=abc#m"
    text = written("judge", [(known["judge"], address), (known["judge-seed"], 3)], tmp_path)
    assert "hunter2" not in text and "abc" not in text
    assert "# judge holds a password or a key and is not written; type it" in text
    assert tomllib.loads(text) == {"command": "judge", "judge-seed": 3}
    assert masked(address) == "https://host/v1?api_key=...#m"
    assert masked("http://localhost:8000/v1#name") == "http://localhost:8000/v1#name"
    assert masked("org/model") == "org/model"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**62), 2**62) | st.booleans())
def test_a_scalar_is_what_toml_reads(value: str | int | bool) -> None:
    assert tomllib.loads(f"key = {_toml_of(value)}") == {"key": value}
