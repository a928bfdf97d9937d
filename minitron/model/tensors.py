"""The tensors that a model holds: one by one as a checkpoint has them, and how many numbers they are together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from minitron.model.families import Rule

MTP: Final = "mtp_"
"""Prefix of the kinds of the layers in the multi-token-prediction block."""


def is_mtp(kind: str) -> bool:
    """Whether a kind belongs to the multi-token-prediction block: to one of its layers, or to what is around them."""
    return kind.startswith(MTP) or kind == "mtp"


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model holds.  Without the multi-token-prediction block, save for `mtp`."""

    total: Any
    """Every weight and persistent buffer, embeddings included."""

    active: Any
    """What one token uses: of the routed experts only as many as a token is sent to; embeddings included."""

    mtp: Any
    """The multi-token-prediction block."""

    by_component: dict[str, Any]
    """total, by heading."""


@dataclass(frozen=True)
class Expected:
    """One tensor that a checkpoint of this model must hold."""

    name: str
    """In the family's first dialect."""

    shape: tuple[int, ...]
    kind: str
    """The kind of layer that it is in, or `model`."""

    rule: Rule
    index: Mapping[str, int]
    """The indices in the name: layer, expert."""

    @property
    def is_mtp(self) -> bool:
        """Whether it is a tensor of the multi-token-prediction block, which transformers does not build."""
        return is_mtp(self.kind)
