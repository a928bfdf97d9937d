"""Recipe files: training stages in TOML.

learning_rate = 1e-4                 # for every stage that says nothing else
data = ["0.7:chat.jsonl", "0.3:web"] # paths as seen from the recipe's folder

[[stages]]
tokens = 2_500_000_000
sequence_length = "8k"

[[stages]]
tokens = 500_000_000
sequence_length = "48k"
data = ["long.jsonl"]

Those that come with Minitron (distill/recipes) are called by their names and name no text.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from distill.recipe import Recipe
from minitron.errors import MinitronError
from minitron.files import require_file
from minitron.measure.records import HUB, Source, parse_source
from minitron.units import parse_count

BUNDLED: Final = Path(__file__).parents[1] / "recipes"
"""Recipes that come with Minitron."""

_COUNTS: Final = ("tokens", "sequence_length", "batch_tokens", "micro_batch", "steps", "vocab_chunk")
"""Fields that may be written as text: 128k."""


@dataclass(frozen=True)
class Stage:
    """One distillation of a recipe file."""

    recipe: Recipe

    data: tuple[Source, ...]
    """Empty for the text that is given beside the recipe."""


def bundled() -> tuple[str, ...]:
    """Names of the recipes that come with Minitron."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.toml")))


def read_recipe(path: Path) -> tuple[Stage, ...]:
    """The stages of a recipe file, or of a recipe that comes with Minitron where `path` is its name and no file; raises
    MinitronError where it is no TOML, has no stages or names no setting."""
    if not path.exists():
        if str(path) not in bundled():
            raise MinitronError(f"{path} does not exist; give --recipe a file, or one of {', '.join(bundled())}.")
        path = BUNDLED / f"{path}.toml"
    require_file(path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MinitronError(f"{path} is not valid TOML ({error}); correct it.") from None
    stages = found.pop("stages", None)
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise MinitronError(f"{path} has no [[stages]]; add at least one, with its tokens.")
    return tuple(_stage(path, number, found | stage) for number, stage in enumerate(stages, 1))


_TYPED: Final = {"dtype": "precision", "batch_size": "micro_batch"}
"""What an option is called -> the setting that it is, where the names differ."""


def _stage(path: Path, number: int, values: dict[str, Any]) -> Stage:
    values = {_TYPED.get(name, name): value for name, value in values.items()}
    known = {field.name for field in fields(Recipe)}
    strangers = sorted(values.keys() - known - {"data"})
    if strangers:
        raise MinitronError(
            f"{path}, stage {number}: there is no setting {strangers[0]!r}; a recipe has "
            f"{', '.join(sorted(known))} and data."
        )
    data = values.pop("data", [])
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise MinitronError(
            f"{path}, stage {number}: data is not a list of texts; write data = ['0.7:PATH', '0.3:PATH']."
        )
    for name in _COUNTS:
        if isinstance(values.get(name), str):
            values[name] = parse_count(values[name])
    if isinstance(values.get("tasks"), list):
        values["tasks"] = [
            str(path.parent / one) if isinstance(one, str) and one.endswith((".yaml", ".yml")) else one
            for one in values["tasks"]
        ]
    try:
        recipe = Recipe.of(values)
    except MinitronError as error:
        raise MinitronError(f"{path}, stage {number}: {error}") from None
    return Stage(recipe, tuple(_beside(path, parse_source(one)) for one in data))


def _beside(recipe: Path, source: Source) -> Source:
    """A source whose path is as seen from the recipe's folder."""
    if source.place.startswith(HUB):
        return source
    return replace(source, place=str(recipe.parent / source.place))
