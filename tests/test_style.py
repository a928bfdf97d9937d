"""Files, functions and signatures stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("minitron", "importance", "distill", "judge", "pipeline", "cli")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples", "docs")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 11


def functions(*folders: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(where it is, the function) of every one in some folders."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{file.relative_to(ROOT)}: {node.name}", node


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_long(folder: str) -> None:
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert lengths and {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_long(folder: str) -> None:
    lengths = {name: (node.end_lineno or node.lineno) - node.lineno + 1 for name, node in functions(folder)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_no_signature_is_long() -> None:
    counts = {}
    for name, node in functions(*PACKAGES):
        given = node.args
        counts[name] = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
    assert {name: count for name, count in counts.items() if count > MOST_PARAMETERS} == {}
