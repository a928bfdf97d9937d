"""Where config.json says what a language model is that stands inside a model which also sees or hears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from minitron.errors import MinitronError

TIES: Final = "tie_word_embeddings"

PROJECTOR: Final = "projector"
"""The kind of the tensors by which images or sound enter the residual stream."""

TOWER: Final = "tower"
"""The kind of the rules that count what sees or hears: one for all tensors of a tower, whose numbers it gives."""

ASIDE: Final = (PROJECTOR, TOWER)
"""The kinds of what stands beside the language model of a larger model, and is not loaded with it."""


@dataclass(frozen=True)
class Nesting:
    """The place of the language model's config in config.json, and what is said of it elsewhere."""

    model_type: str
    """The type of the language model, as transformers calls its class's."""

    keys: tuple[str, ...] = ("text_config",)
    """The keys under which it may stand; the first present one counts."""

    flat: bool = False
    """Whether it may stand at the top of config.json instead."""

    ties: Literal["top", "either", "inside"] = "top"
    """Which tie_word_embeddings counts: that at the top of config.json where there is one; a true one of the two; or
    the language model's own."""

    copies: tuple[str, ...] = ()
    """Keys outside it that repeat the width of the residual stream, such as `vision_config.out_hidden_size`.  One at
    the top is written where it is present, one inside another config wherever that config is."""

    ignored: tuple[str, ...] = ()
    """Keys that transformers' class of the language model inside does not read, and that of its family does."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What absent sizes mean: such configs leave out what is the default of transformers' class."""

    def place(self, document: Mapping[str, Any]) -> Any:
        """The object in `document` that says what the language model is; raises MinitronError where there is none."""
        for key in self.keys:
            if isinstance(document.get(key), Mapping):
                return document[key]
        if self.flat:
            return document
        raise MinitronError(
            f"config.json: model_type is {document.get('model_type')!r} and {self.keys[0]} says nothing of the "
            "language model inside; copy config.json again."
        )

    def text(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the language model as its family reads it."""
        place = self.place(document)
        own = {key: value for key, value in place.items() if place is not document or not key.endswith("_config")}
        found = {**self.defaults, **own, "model_type": self.model_type}
        for key in self.ignored:
            found.pop(key, None)
        said = [bool(part[TIES]) for part in (document, place) if TIES in part]
        if self.ties != "inside" and said:
            found[TIES] = any(said) if self.ties == "either" else said[0]
        return found

    def copy_width(self, document: dict[str, Any], width: int) -> None:
        """Write the width of the residual stream wherever else it stands."""
        for copy in self.copies:
            outer, _, key = copy.rpartition(".")
            holder = document.get(outer) if outer else document
            if isinstance(holder, dict) and (outer or key in holder):
                holder[key] = width
