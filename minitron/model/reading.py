"""What a family reads in a config.json document: the words of its rules, the layers, whether there is a head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.axes import AXES, LAYER, Axis, Config
from minitron.model.blocks import Blocks, read_blocks, tell_apart
from minitron.model.families import Cache, Family
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

    def value(self, key: str, kind: str = "") -> Any:
        """What the config says under a key, of layers of `kind` where one is given, or transformers' class default
        where it says nothing."""
        return value_of(self.told_of(kind), self.family.defaults, key)

    def told_of(self, kind: str) -> Config:
        """What rules ask of layers of a kind."""
        return {**self.told, **self.blocks.told[kind]} if kind in self.blocks.told else self.told

    def text_of(self, kind: str) -> Mapping[str, Any]:
        """What config.json says of layers of a kind."""
        return {**self.text, **self.blocks.told[kind]} if kind in self.blocks.told else self.text

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
        """The row of an axis, or of one of a kind of layers, `kind.axis`."""
        return self.family.axes[name.rpartition(".")[2]]

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
        return self.blocks.layers[: len(self.letters)]

    @cached_property
    def mtp_layers(self) -> tuple[str, ...]:
        """The kind of every layer of the multi-token-prediction block; empty where there is none."""
        return self.blocks.layers[len(self.letters) :]

    @cached_property
    def blocks(self) -> Blocks:
        """The layers, those of the multi-token-prediction block behind the others."""
        for letters in (self.letters, mtp := self.family.mtp_layout(self.text)):
            if len(letters) > AXES[LAYER].largest:
                raise MinitronError(
                    f"config.json describes {len(letters):,} layers; Minitron reads at most {AXES[LAYER].largest:,}."
                )
        own = tuple(self.family.letters[letter] for letter in self.letters)
        ahead = tuple(MTP + self.family.letters[letter] for letter in mtp)
        if not self.family.blocks:
            return Blocks(own + ahead)
        # A block that is not named layer by layer has the sizes that the config gives for all.
        beyond = read_blocks(self.text, self.family.mtp_blocks) or [{}] * len(ahead)
        return tell_apart(own + ahead, [*read_blocks(self.text, self.family.blocks), *beyond[: len(ahead)]])

    def base(self, kind: str) -> str:
        """The kind in the family's table whose tensors layers of a kind have."""
        return self.blocks.base.get(kind, kind)

    def cache(self, kind: str) -> Cache | None:
        """What a layer of a kind keeps between tokens; None where it keeps nothing, or is one of the
        multi-token-prediction block."""
        return self.family.cache.get(self.base(kind))

    @cached_property
    def has_head(self) -> bool:
        """Whether the model has an output layer: a base model (MistralModel) or one that classifies has none."""
        return not self.architectures or not all(HEADLESS.search(name) for name in self.architectures)

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that config.json names; raises MinitronError where it gives no list of them."""
        names = self.config.get("architectures") or []
        if not isinstance(names, str | list):
            raise MinitronError(
                f"config.json: architectures is {names!r:.40}; give a list with the name of the model's class."
            )
        return (names,) if isinstance(names, str) else tuple(map(str, names))
