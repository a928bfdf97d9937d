"""The tables in the documents are those of the code."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from minitron.memory.formats import FORMATS
from minitron.memory.gpus import GPUS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_no_table_is_stale_and_each_stands_somewhere(tables: ModuleType) -> None:
    seen = []
    for path in tables.documents():
        text = path.read_text(encoding="utf-8")
        assert tables.filled(text, path.name) == text, f"{path.name} is stale; run make docs-tables"
        # Neither a marker that is misspelt nor an end too many.
        markers = re.findall(r"<!--\s*(.*?)\s*-->", text)
        names = [marker.removeprefix("table: ") for marker in markers[::2]]
        assert markers == [word for name in names for word in (f"table: {name}", "end")]
        seen += names
    assert sorted(seen) == sorted(tables.TABLES)


def test_a_table_holds_every_row_and_its_numbers(tables: ModuleType) -> None:
    for name, rows in (("gpus", GPUS), ("formats", [form for form in FORMATS.values() if not form.gguf])):
        head, rule, *lines = tables.table(name).splitlines()
        assert len(lines) == len(rows)
        assert {line.count("|") for line in (head, rule, *lines)} == {head.count("|")}
    assert "| A10G | 22.06 | 600 | 70 |  |  | 8.6 |" in tables.table("gpus")
    assert "| `nvfp4` | 4 | 4.5 | weights, keys and values |" in tables.table("formats")
    assert "`sampled:K` (12)" in tables.table("losses") and "`forward_kl` (default)" in tables.table("losses")


def test_a_stale_block_is_written_anew_and_the_rest_stays(tables: ModuleType) -> None:
    text = "before\n\n<!-- table: formats -->\n| old |\n<!-- end -->\n\nafter\n"
    assert tables.filled(text, "x.md") == text.replace("| old |\n", tables.table("formats"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table: gpu -->\n<!-- end -->\n", "x.md: no table is called 'gpu'; choose estimators, losses"),
        ("<!-- table: gpus -->\nand so on\n", "x.md: the table gpus has no <!-- end -->"),
        ("<!-- table: gpus -->\n<!-- table: formats -->\n<!-- end -->\n", "x.md: the table gpus has no <!-- end -->"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_told(tables: ModuleType, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        tables.filled(text, "x.md")
