"""Every published config of a known family, counted from the config alone, against counts made by transformers."""

import json
from pathlib import Path

import pytest

from cli import app
from minitron.model.families import FAMILIES
from minitron.model.spec import read_spec

REFERENCE = Path(__file__).parents[1] / "reference"
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())["models"]
READ = [name for name, counted in COUNTS.items() if counted["model_type"] in FAMILIES]


def config(name: str) -> Path:
    return REFERENCE / "models" / f"{name}.json"


def test_all_configs_of_known_families_are_here() -> None:
    """A family that falls out of the table must not fall out of these tests without a word."""
    read = {COUNTS[name]["model_type"] for name in READ}
    dense, hybrid = {"llama", "qwen3"}, {"bamba", "granitemoehybrid", "jamba", "nemotron_h", "qwen3_next", "zamba2"}
    assert read == dense | hybrid | {"mixtral", "qwen3_moe"}
    assert {"Nemotron-Nano-12B-v2", "Nemotron-3-Super-120B-A12B", "Llama-3.1-8B"} <= set(READ)


@pytest.mark.parametrize("name", READ)
def test_parameters(name: str) -> None:
    counted, found = COUNTS[name], read_spec(config(name)).parameters()
    assert found.total == counted["total"]
    assert found.active == counted["active_with_embeddings"]
    assert found.total + found.mtp == counted["total_with_mtp"]
    assert found.by_component == counted["by_component"]


# The table of the project's facts: published totals, written out so that no file has to be believed.
@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [
        ("Nemotron-H-4B-Base-8K", (24, 4, 24, 0), 4_489_223_040),
        ("Nemotron-H-8B-Base-8K", (24, 4, 24, 0), 8_100_852_736),
        ("Nemotron-H-56B-Base-8K", (54, 10, 54, 0), 56_324_350_464),
        ("Nemotron-Nano-12B-v2", (28, 6, 28, 0), 12_310_001_152),
        ("Nemotron-Nano-9B-v2", (27, 4, 25, 0), 8_888_227_328),
        ("Nemotron-3-Nano-4B", (21, 4, 17, 0), 3_973_556_832),
        ("Nemotron-3-Nano-30B-A3B", (23, 6, 0, 23), 31_577_940_288),
        ("Nemotron-3-Super-120B-A12B", (40, 8, 0, 40), 120_668_707_840),
        ("Llama-3.1-8B", (0, 32, 0, 0), 8_030_261_248),
        ("Qwen3-8B", (0, 36, 0, 0), 8_190_735_360),
        ("Qwen3-30B-A3B", (0, 0, 0, 48), 30_532_122_624),
    ],
)
def test_published_totals_and_layers(name: str, layers: tuple[int, int, int, int], total: int) -> None:
    spec = read_spec(config(name))
    assert tuple(spec.letters.count(letter) for letter in "M*-E") == layers
    assert spec.parameters().total == total


def test_super_with_its_prediction_block() -> None:
    found = read_spec(config("Nemotron-3-Super-120B-A12B")).parameters()
    assert found.total + found.mtp == 123_611_033_088


def test_nano_30b_is_3_b_active() -> None:
    found = read_spec(config("Nemotron-3-Nano-30B-A3B")).parameters()
    assert round(found.active / 1e9, 3) == 3.580
    assert round((found.active - found.by_component["embedding"]) / 1e9, 3) == 3.228


@pytest.mark.parametrize("name", READ)
def test_inspect_says_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["inspect", str(config(name)), "--json"]) == 0
    told, counted = json.loads(capsys.readouterr().out), COUNTS[name]
    assert told["model_type"] == counted["model_type"]
    assert told["parameters"] == {
        "total": counted["total"],
        "active": counted["active_with_embeddings"],
        "mtp": counted["total_with_mtp"] - counted["total"],
        "by_component": counted["by_component"],
    }
    assert told["weight_bytes"] == 2 * counted["total"]
    assert told["sizes"]["hidden"] == json.loads(config(name).read_text())["config"]["hidden_size"]
