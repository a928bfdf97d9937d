"""What a table says of an axis no module guesses: axes are named in the tables alone, and where an axis has mathematics
of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

from minitron.model.axes import AXES
from minitron.model.families import FAMILIES

ROOT = Path(__file__).parents[2]
PACKAGES = ("minitron", "importance", "distill", "judge", "pipeline", "cli")

TABLES = ("minitron/model/axes.py", "minitron/model/families/")

OWN_MATHEMATICS = {
    "importance/score/state_size.py": "the recurrence of a Mamba-2 mixer, term by term",
    "minitron/memory/gguf.py": "what llama.cpp's choice of types depends on",
    "minitron/memory/gguf_families.py": "what llama.cpp does not load of attention heads",
    "minitron/gguf/staging.py": "what llama.cpp's converter misreads of a Mamba head",
    "minitron/search/dead_zones.py": "published runs that went wrong at some Mamba head widths",
}
"""file -> why it names axes all the same."""

# Lines of a footprint and settings of a workload that are called like an axis.
OTHER_MEANINGS = {"ssm_state": "the line of a footprint, and how states are kept"}


def literals(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is no docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def test_no_module_names_an_axis_that_a_table_could_say() -> None:
    names = set(AXES) | {axis for family in FAMILIES.values() for axis in family.axes}
    names |= {axis.joint for axis in AXES.values()} - {""}
    names -= set(OTHER_MEANINGS)
    # "layer" is how an index in a tensor's name is called.
    names -= {"layer"}
    found = {
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if not str(file.relative_to(ROOT)).startswith(TABLES) and str(file.relative_to(ROOT)) not in OWN_MATHEMATICS
        for line, text in literals(file)
        if text in names
    }
    assert found == set()


def test_the_exceptions_are_there() -> None:
    for name in OWN_MATHEMATICS:
        assert any(text in AXES for _, text in literals(ROOT / name)), name
