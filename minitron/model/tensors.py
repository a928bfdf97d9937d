"""The tensors that a model holds: one by one as a checkpoint has them, and how many numbers they are together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from minitron.model.axes import EXPERT
from minitron.model.dims import Dim, numel
from minitron.model.families import Rule
from minitron.model.families.nesting import ASIDE

MTP: Final = "mtp_"
"""Prefix of the kinds of the layers in the multi-token-prediction block."""


def is_mtp(kind: str) -> bool:
    """Whether a kind belongs to the multi-token-prediction block: to one of its layers, or to what is around them."""
    return kind.startswith(MTP) or kind == "mtp"


def is_read(kind: str) -> bool:
    """Whether what is of a kind is read for every token: neither the multi-token-prediction block nor what stands
    beside a language model."""
    return not is_mtp(kind) and kind not in ASIDE


@dataclass(frozen=True)
class Parameters:
    """How many numbers a model holds.  Without the multi-token-prediction block, save for `mtp`."""

    total: Any
    """Every weight and persistent buffer, embeddings included."""

    active: Any
    """What one token of text uses: of the routed experts only as many as a token is sent to, embeddings included, and
    nothing that sees or hears."""

    mtp: Any
    """The multi-token-prediction block."""

    by_component: dict[str, Any]
    """total, by heading."""

    active_by_component: dict[str, Any]
    """active, by heading."""


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

    @property
    def is_aside(self) -> bool:
        """Whether it stands beside the language model of a larger model, and is not loaded with it."""
        return self.kind in ASIDE


def count_parameters(
    rules: Mapping[str, tuple[Rule, ...]],
    sizes_of: Callable[[str], Mapping[str, Any]],
    counts: Mapping[str, Any],
    unused_experts: Callable[[str], Any],
) -> Parameters:
    """The parameters of `counts` layers of each kind, whose tensors `rules` name: `sizes_of` gives the sizes of a kind
    and `unused_experts` the experts of one of its layers that a token is not sent to.  Numbers, or arrays with one
    number a candidate."""
    by_component: dict[str, Any] = {}
    active: dict[str, Any] = {}
    mtp: Any = 0
    for kind, own in rules.items():
        sizes = sizes_of(kind)
        for rule in own:
            count = used = counts[kind] * _product(rule.matrix, sizes)
            if rule.per_expert:
                used = 0 if is_mtp(kind) else count * (sizes[EXPERT] - unused_experts(kind))
                count = count * sizes[EXPERT]
            if is_mtp(kind):
                mtp = mtp + count
                continue
            by_component[rule.component] = by_component.get(rule.component, 0) + count
            active[rule.component] = active.get(rule.component, 0) + (0 if kind in ASIDE else used)
    return Parameters(sum(by_component.values()), sum(active.values()), mtp, by_component, active)


def _product(dims: tuple[Dim, ...], sizes: Mapping[str, Any]) -> Any:
    total: Any = 1
    for dim in dims:
        total = total * numel(dim, sizes)
    return total
