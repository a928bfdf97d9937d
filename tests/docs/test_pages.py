"""The pages of the site: all stand in its list, and those made from the code hold all of it."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import pipeline
from cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def commands_page() -> str:
    found = importlib.util.spec_from_file_location("docs_commands", DOCS / "commands.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    page: str = module.commands_page()
    return page


def test_the_page_of_commands_has_every_command_and_every_option(commands_page: str) -> None:
    group: Any = typer.main.get_command(app.build())
    for name, command in group.commands.items():
        if command.hidden:
            continue
        (section,) = re.findall(rf"^## minitron {name}\n(.*?)(?=^## |\Z)", commands_page, re.DOTALL | re.MULTILINE)
        rows = [line for line in section.splitlines() if line.startswith("| <code>")]
        shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", " ".join(row.split("</code>")[0] for row in rows)))
        options = [option for option in command.params if option.param_type_name == "option" and not option.hidden]
        assert {flag for option in options for flag in (*option.opts, *option.secondary_opts)} - {"--help"} <= shown
        assert all(row.count("|") == 3 for row in rows)


def test_the_page_of_the_python_interface_has_every_name_once() -> None:
    told = re.findall(
        r"^::: pipeline\.(\w+)$", (DOCS / "reference/python.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(told) == sorted(pipeline.__all__)


def test_every_document_stands_in_the_list_of_the_site() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    made = {"index.md", "reference/commands.md", *(page for page in listed if page.startswith("project/"))}
    assert sorted(listed) == sorted({str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | made)


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
