"""What help shows: every name whole at 80 columns, the common options alone and all of them with --help-all."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from cli import app
from cli.option_table import GROUPS, OPTIONS

COMMANDS = list(app.COMMANDS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def parameters(command: str) -> Iterator[Any]:
    application: Any = typer.main.get_command(app.build(command))
    yield from application.commands[command].params


def shown(text: str) -> set[str]:
    """The names that begin a line."""
    return set(re.findall(r"^  (?:-o, )?(--[\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_name_is_whole_at_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([command, "--help-all"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    for option in parameters(command):
        if option.param_type_name == "option":
            assert all(name in told.replace("/", " ").replace(",", " ").split() for name in option.opts)
            assert all(name in told.split() for name in option.secondary_opts)
        else:
            assert str(option.metavar) in told


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_common_options_and_says_where_the_others_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert app.run([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    options = [option for option in parameters(command) if option.param_type_name == "option"]
    expected = {o.opts[0] for o in options if o.required or OPTIONS[o.opts[0]].is_common(command)}
    assert shown(short) == expected | {"--help"}
    assert shown(whole) == {option.opts[0] for option in options} | {"--help"}
    rare = len(shown(whole)) - len(shown(short))
    assert f"{rare} more option" in short and "--help-all\n" not in whole[-40:]
    assert len(shown(short)) <= 30
    headings = [line[:-1] for line in whole.splitlines() if line[:-1] in GROUPS]
    assert headings == [group for group in GROUPS if group in headings] and "General" in headings


def test_subjects_hold_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert [name for names in app.SUBJECTS.values() for name in names] != []
    assert {name for names in app.SUBJECTS.values() for name in names} == set(app.COMMANDS)
    assert app.run(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"{subject}:" in told for subject in app.SUBJECTS)
