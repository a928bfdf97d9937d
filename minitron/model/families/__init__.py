"""The families of models: one table each."""

from typing import Final

from minitron.model.families.family import Cache, Config, Family, Rule, Size
from minitron.model.families.llama import LLAMA
from minitron.model.families.nemotron_h import NEMOTRON_H

FAMILIES: Final[dict[str, Family]] = {
    model_type: family for family in (NEMOTRON_H, LLAMA) for model_type in family.model_types
}
"""model_type -> family."""

__all__ = ["FAMILIES", "Cache", "Config", "Family", "Rule", "Size"]
