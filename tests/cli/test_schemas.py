"""JSON Schemas: every command has one, and what commands print is what it says; others are checked where they run."""

import json
from pathlib import Path

import jsonschema
import pytest

from cli.app import COMMANDS, run
from cli.schemas import names, schema
from minitron.memory.gpus import GPUS

CONFIG = Path(__file__).parents[1] / "reference" / "models" / "Nemotron-Nano-9B-v2.json"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("inspect", ["inspect", str(CONFIG)]),
        ("inspect", ["inspect", "--list"]),
        ("plan", ["plan", str(CONFIG), "--gpu", "A10G", "--context", "128k"]),
        ("solve", ["plan", str(CONFIG), "--gpu", "A10G", "--solve", "context"]),
        ("compare", ["compare", str(CONFIG), "--gpu", "A10G", "--context", "128k"]),
        ("gpus", ["gpus"]),
    ],
)
def test_what_is_printed_is_what_the_schema_says(
    name: str, line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert run(["schema", name]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(told)
    jsonschema.validate(document, told)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, told)


def test_every_command_with_json_has_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(names()) == set(COMMANDS) - {"schema"} | {"solve"}
    for name in names():
        jsonschema.Draft202012Validator.check_schema(schema(name))
    assert run(["schema", "prun"]) == 2
    assert "did you mean prune?" in capsys.readouterr().err


def test_gpus_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gpus"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in GPUS)
