"""What a family reads in a config.json document: the words of its rules, the layers, whether there is a head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from minitron.model.axes import Axis, Config
from minitron.model.families import Family
from minitron.model.families.family import value_of
from minitron.model.families.logits import LogitMap
from minitron.model.tensors import MTP

HEADLESS: Final = re.compile(r"(?<!LMHead)Model$|For(Sequence|Token)Classification$|ForQuestionAnswering$|Reward")
"""Names of classes without an output layer over the vocabulary."""


@dataclass(frozen=True)
class Reading:
    """A config and the family that reads it."""

    family: Family
    config: Mapping[str, Any]
    """config.json as the source spells it."""

    stored: frozenset[str] = frozenset()
    """The words of Family.storage that hold of the checkpoint."""

    def value(self, key: str) -> Any:
        """What the config says under a key, or transformers' class default where it says nothing."""
        return value_of(self.told, self.family.defaults, key)

    @cached_property
    def told(self) -> Config:
        """What rules ask: the config in the keys of the rules, and how the checkpoint stores its tensors."""
        spelled = {key: self.text[other] for other, key in self.family.spellings.items() if other in self.text}
        return {**self.text, **spelled, **dict.fromkeys(self.stored, True)}

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """What config.json says of the language model: all of it, or a part where it stands inside a larger model."""
        return self.family.text(self.config)

    @cached_property
    def stated(self) -> Mapping[str, Any]:
        """What config.json says of the whole model, and where it says nothing, of the language model."""
        return {**self.text, **self.config}

    @property
    def is_inside(self) -> bool:
        """Whether the language model stands inside a larger model, of which it alone is loaded."""
        return self.family.nesting is not None

    def axis(self, name: str) -> Axis:
        """The row of an axis."""
        return self.family.axes[name]

    @cached_property
    def logit_map(self) -> LogitMap:
        """What the model does to the output layer's products."""
        return self.family.logits.read(self.value)

    @cached_property
    def letters(self) -> str:
        """One letter a layer."""
        return self.family.layout(self.text)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The kind of every layer."""
        return tuple(self.family.letters[letter] for letter in self.letters)

    @cached_property
    def mtp_layers(self) -> tuple[str, ...]:
        """The kind of every layer of the multi-token-prediction block; empty where there is none."""
        return tuple(MTP + self.family.letters[letter] for letter in self.family.mtp_layout(self.text))

    @cached_property
    def has_head(self) -> bool:
        """Whether the model has an output layer: a base model (MistralModel) or one that classifies has none."""
        names = self.config.get("architectures") or ()
        return not names or not all(HEADLESS.search(str(name)) for name in names)
