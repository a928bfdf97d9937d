"""What layers keep between tokens, as engines allocate it, and what is asked of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minitron.model.families import Cache


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two whole numbers, arrays or expressions; of plain numbers a plain number, which no bits limit."""
    return min(one, other) if isinstance(one, int) and isinstance(other, int) else np.minimum(one, other)


def larger(one: Any, other: Any) -> Any:
    """The larger of two, likewise."""
    return max(one, other) if isinstance(one, int) and isinstance(other, int) else np.maximum(one, other)


class Settings(Protocol):
    """The settings of an engine that take memory: minitron.memory.workload.Engine says what each is."""

    @property
    def prefix_caching(self) -> bool: ...

    @property
    def cuda_graphs(self) -> bool: ...

    @property
    def max_num_batched_tokens(self) -> int: ...

    @property
    def block_size(self) -> int: ...


class Demand(Protocol):
    """What is asked of an engine: minitron.memory.workload.Workload."""

    @property
    def context(self) -> int:
        """Tokens of one sequence."""

    @property
    def batch(self) -> int:
        """Sequences at the same time."""

    @property
    def max_num_seqs(self) -> int:
        """Sequences that it makes room for."""

    @property
    def speculative_tokens(self) -> int:
        """Tokens that are drafted at a step."""

    @property
    def engine(self) -> Settings:
        """Its settings."""


@dataclass(frozen=True)
class LayerCache:
    """What layers that keep the same keep.  Whole numbers, or arrays with one number a candidate."""

    cache: Cache
    """As the family's table says it."""

    layers: Any
    """Layers that keep it, those of the multi-token-prediction block not among them."""

    drafting: Any
    """Layers of that block that keep keys and values, where it drafts tokens."""

    token: Any
    """Keys and values that a token adds in one layer."""

    tokens: int
    """Tokens of a sequence whose keys and values are kept: all of the context, or those in the window."""

    window: int | None
    """The tokens of the sliding window; None where there is none."""

    conv: Any
    """The last inputs of the convolution in one layer."""

    columns: Any
    """How many of them a channel keeps."""

    state: Any
    """The recurrent state of one layer."""

    sizes: Mapping[str, Any]
    """axis -> its size in these layers, on one GPU."""

    @property
    def attention(self) -> Any:
        """Layers that keep keys and values."""
        return self.layers + self.drafting if self.cache.keys_values else 0

    @property
    def stateful(self) -> Any:
        """Layers that keep something that does not grow with the tokens."""
        return self.layers if self.cache.keeps_state else 0


@dataclass(frozen=True)
class Kept:
    """What all layers of a model keep."""

    caches: tuple[LayerCache, ...]

    @property
    def attention(self) -> Any:
        """Layers that keep keys and values."""
        return sum(one.attention for one in self.caches)

    @property
    def stateful(self) -> Any:
        """Layers that keep a state."""
        return sum(one.stateful for one in self.caches)

    @property
    def kv_bytes(self) -> Any:
        """Keys and values of one sequence."""
        return sum(one.attention * one.token * one.tokens for one in self.caches)

    @property
    def conv_bytes(self) -> Any:
        """Convolutions' inputs of one sequence."""
        return sum(one.layers * one.conv for one in self.caches)

    @property
    def state_bytes(self) -> Any:
        """Recurrent states of one sequence."""
        return sum(one.layers * one.state for one in self.caches)
