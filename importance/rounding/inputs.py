"""What the linears of a layer read: second moments and the largest number, looked at while the layer runs.

Shape letters: N tokens, C inputs of a linear, E experts, R tokens routed to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from importance.score.experts import RoutedForward
from importance.score.observed_modules import expert_sites
from minitron.model.axes import EXPERT
from minitron.model.dims import Word
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name
from minitron.quantise.assigned import Matrix, Unit

LARGEST: Final = 2**27
"""Numbers of the largest matrices of second moments that are kept, all experts of a layer together: 512 MiB in fp32.
Of larger ones the diagonal alone is, and what the experts read from the stream counts for all of them alike."""


@dataclass
class Seen:
    """What one linear, or those of a layer's experts, read so far."""

    size: int
    """C."""

    experts: int = 0
    """E of routed experts; 0 for one linear."""

    whole: bool = True
    """Whether second moments of pairs of inputs are kept, not only each one's own."""

    apart: bool = True
    """Of experts: whether each one's are kept apart."""

    moments: Tensor | None = None
    """[C, C] or, unless `whole`, [C]; of experts kept apart with E in front: sums over tokens of x x^T in fp32."""

    tokens: Tensor | None = None
    """[] or [E]."""

    largest: float = 0.0

    def add(self, rows: Tensor, expert: Tensor | None = None) -> None:
        """Add tokens [N, C], of experts in their order."""
        rows = rows.float()
        if not rows.numel():
            return
        self.largest = max(self.largest, float(rows.abs().amax()))
        if expert is None or not self.apart:
            found, count = _moments(rows, whole=self.whole), torch.tensor(float(len(rows)))
        else:
            counts = torch.bincount(expert, minlength=self.experts)
            parts = torch.split(rows, counts.tolist())
            found, count = torch.stack([_moments(part, whole=self.whole) for part in parts]), counts.float()
        if self.moments is None or self.tokens is None:
            self.moments, self.tokens = found, count
        else:
            self.moments += found
            self.tokens = self.tokens + count.to(self.tokens.device)

    def of(self, expert: int | None) -> Tensor | None:
        """[C, C] or [C]: the mean over the tokens of one expert, or all; None where there were none."""
        if self.moments is None or self.tokens is None:
            return None
        apart = expert is not None and self.tokens.ndim > 0
        moments, tokens = (self.moments[expert], self.tokens[expert]) if apart else (self.moments, self.tokens)
        return moments / tokens if float(tokens) else None


def _moments(rows: Tensor, *, whole: bool) -> Tensor:
    return rows.T @ rows if whole else rows.square().sum(0)


@dataclass(frozen=True)
class _Experts(RoutedForward):
    """Experts whose inputs are looked at."""

    read: Seen | None
    """What they read from the stream."""

    inside: Seen | None
    """What their last linears read."""

    def look(self, rows: Tensor, inner: Tensor, outer: Tensor, expert: Tensor, token: Tensor, tokens: int) -> None:
        """Add both."""
        for seen, found in ((self.read, rows), (self.inside, inner)):
            if seen is not None:
                seen.add(found, expert)


@dataclass
class LayerInputs:
    """What the quantised linears of one layer read."""

    model: nn.Module
    spec: ModelSpec
    units: tuple[Unit, ...]
    """The layer's."""

    pairs: bool = True
    """Whether second moments of pairs of inputs are taken, where they are not too large."""

    seen: dict[Any, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for unit in self.units:
            self.seen.setdefault(_key(unit[0]), self._empty(unit[0]))

    def _empty(self, first: Matrix) -> Seen:
        size = first.shape[1]
        if first.expert is None:
            return Seen(size, whole=self.pairs and size**2 <= LARGEST)
        experts = int(self.spec.at(first.kind, self.spec.sizes)[EXPERT])
        fits = experts * size**2 <= LARGEST
        if fits or self._is_inside(first):
            return Seen(size, experts, whole=self.pairs and fits)
        # What all experts read from the stream is much alike; what each makes of it is not.
        return Seen(size, experts, whole=self.pairs and size**2 <= LARGEST, apart=False)

    def _is_inside(self, first: Matrix) -> bool:
        """Whether an expert's linear reads what the expert made."""
        return isinstance(first.rule.reads, Word) and bool(self.spec.axis(first.rule.reads.name).nested_in)

    def of(self, unit: Unit) -> Seen:
        """What a unit reads, with that of all its layer's experts."""
        return self.seen[_key(unit[0])]

    def look_at_head(self, states: Tensor) -> None:
        """Add the states [.., C] that the output layer reads, where that is among the units."""
        for unit in self.units:
            if unit[0].layer is None:
                self.of(unit).add(states.flatten(0, -2))

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Until the block ends everything that the layer runs on is looked at, the output layer apart."""
        with ExitStack() as undo:
            routed: dict[int, dict[bool, Seen]] = {}
            for unit in self.units:
                first, seen = unit[0], self.of(unit)
                if first.layer is None:
                    continue
                if first.expert is not None:
                    routed.setdefault(first.layer, {})[self._is_inside(first)] = seen
                    continue
                module = self.model.get_submodule(module_name(first.rule, first.layer))
                undo.callback(module.register_forward_pre_hook(_hook(seen)).remove)
            sites = {site.layer: site for site in expert_sites(self.spec) if site.layer in routed}
            for layer, both in routed.items():
                site = sites[layer]
                module = self.model.get_submodule(site.module)
                undo.enter_context(_Experts(site, module, both.get(False), both.get(True)).in_place())
            yield


def _key(first: Matrix) -> Any:
    """What units read alike: those of a layer's experts together."""
    return (first.rule.component, first.rule.reads, first.rule.inputs, first.expert is not None, first.form)


def _hook(seen: Seen) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        with torch.no_grad():
            seen.add(args[0].flatten(0, -2))

    return hook


@contextmanager
def largest_kv(found: dict[str, float]) -> Iterator[None]:
    """Until the block ends the largest sizes of `keys` and `values` that attention is given are noted in `found`."""
    own = nn.functional.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, value: Tensor, *places: Any, **names: Any) -> Tensor:
        for name, tensor in (("keys", key), ("values", value)):
            found[name] = max(found.get(name, 0.0), float(tensor.abs().amax()))
        return own(query, key, value, *places, **names)

    nn.functional.scaled_dot_product_attention = noting
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own
