"""Tables of the documents that are written by hand: what they name is there, and their figures are the source's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from cli.app import COMMANDS, build, run
from minitron.model.quantised.methods import METHODS
from minitron.model.quantised.quantisation import CAST, UNDONE

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "tests/reference/quantized_checkpoints.json").read_text(encoding="utf-8"))


def rows(document: str, head: str) -> list[list[str]]:
    """The rows below a table's head, which is written as in the document; there is at least one."""

    def found() -> Iterator[list[str]]:
        inside = False
        for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
            if line == head:
                inside = True
            elif inside and not line.startswith("|"):
                return
            elif inside and not line.startswith(("|--", "|:-", "|---")):
                yield [cell.strip() for cell in line[1:-1].split("|")]

    table = list(found())
    assert table, f"{document} has no table {head}"
    return table


def in_code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_the_readme_has_every_command() -> None:
    named = [name for row in rows("README.md", "| command | reads | writes |") for name in in_code(row[0])]
    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize("name", ["--objective", "--evaluate", "--combinations", "--trial-samples", "--finalists"])
def test_the_defaults_of_the_search_are_those_of_compress(name: str) -> None:
    group = typer.main.get_command(build("compress"))
    options = {option.opts[0]: option for option in group.commands["compress"].params}  # type: ignore[attr-defined]
    told = {
        flag: row for row in rows("docs/search.md", "| option | what it does | default |") for flag in in_code(row[0])
    }
    default = str(options[name].default)
    assert default in re.findall(r"[\w]+", told[name][2]), (name, default, told[name][2])


def test_the_words_of_the_search_begin_with_the_default() -> None:
    group = typer.main.get_command(build("compress"))
    options = {option.opts[0]: option for option in group.commands["compress"].params}  # type: ignore[attr-defined]
    told = {
        flag: row for row in rows("docs/search.md", "| option | what it does | default |") for flag in in_code(row[0])
    }
    for name in ("--sizes", "--stages"):
        assert in_code(told[name][2]) == [str(options[name].default)]


def test_quantised_methods_are_those_that_are_read_and_undone() -> None:
    table = rows("docs/planning.md", "| `quant_method` | bytes of its config alone | `prune --dequantise` |")
    named = {name.replace("_", "-"): row[2] for row in table for name in in_code(row[0])}
    # No config says that; docs/planning.md tells of it below the table.
    methods = set(METHODS) - {CAST}
    assert set(named) == methods
    undone = {name for name, said in named.items() if said.startswith("yes")}
    assert undone == {name.replace("_", "-") for name in UNDONE} & methods


def test_bytes_of_quantised_checkpoints_are_the_published_ones() -> None:
    text = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| ([\w.-]+)(?: \(\w+\))? \| ([\d,]{9,}) \| ([\d,]{9,}) \|$", text, re.MULTILINE)
    assert len(told) == 5
    for name, published, ours in told:
        (known,) = (row for key, row in PUBLISHED.items() if key.lower() == name.lower())
        assert int(published.replace(",", "")) == known["bytes"] == int(ours.replace(",", "")), name


def test_the_costs_of_scoring_are_those_that_were_measured() -> None:
    text = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    section = text.partition("## What each part of scoring costs")[2].partition("\n## ")[0]
    measured = [
        float(cells[3]) for cells in (line.strip("|").split("|") for line in section.splitlines()) if _is_number(cells)
    ]
    for part, cost, cheaper in rows("docs/importance.md", "| part | plain passes | cheaper with |"):
        figures = [float(one) for one in re.findall(r"(?<![\w.])\d+\.\d+", f"{cost} {cheaper}")]
        for figure in figures:
            # With the pass, what is told is what comes beside it.
            near = [
                one
                for one in measured
                if min(abs(one - figure), abs(one - 1 - figure), abs(one - 1.74 - figure)) < 0.06
            ]
            assert near, f"{part}: {figure}"


def _is_number(cells: list[str]) -> bool:
    return len(cells) > 3 and re.fullmatch(r" *[\d.]+ *", cells[3]) is not None


@pytest.mark.slow
def test_the_worked_example_of_formats_is_what_the_planner_says(capsys: pytest.CaptureFixture[str]) -> None:
    model = ROOT / "tests/reference/models/Nemotron-3-Super-120B-A12B.json"
    how = ["--gpu", "RTX 4090", "--context", "128k", "--engine", "llama.cpp", "--formats", "native", "--kv", "q8_0"]
    assert run(["plan", str(model), *how]) == 0
    said = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    found = {words[0]: words for words in said if words[-1].endswith("%")}
    parts = {"routed experts": "moe_routed", "Mamba": "ssm", "shared experts": "moe_shared", "output layer": "lm_head"}
    parts |= {"latent projections": "moe_latent_proj"}
    for part, form, *_, share in rows(
        "docs/search.md", "| | format | bits | numbers | a token uses | of the loss, by the prior |"
    ):
        words = found[parts.get(part, part)]
        assert words[-1] == share.replace(" ", "") and (not form or words[1] == form), (part, words)
