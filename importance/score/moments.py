"""Second moments of the inputs of linear layers, for the surgeon's scores and for refits.

Shape letters: N tokens, C inputs of a linear, R tokens routed to E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.clock import MOMENTS
from importance.score.totals import Array, Routing, Totals, wide
from minitron.cut.refit import InputSite, input_sites
from minitron.cut.scores import Key
from minitron.model.axes import EXPERT
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name

TOKENS_AN_INPUT: Final = 64
"""So many tokens for each input are looked at, or all where there are fewer: a matrix of C x C numbers needs several
times C of them, and each costs C^2 operations."""

PERIOD: Final = 8
"""Of a long text one batch in so many is looked at: to add a matrix costs the same for a few tokens as for many."""

JUDGED: Final = 8
"""Every so many-th batch of those is held back to choose ridges by, and added afterwards."""

LARGEST: Final = 2**24
"""Numbers of the largest matrices that are looked at, all experts of a layer together: 64 MiB in fp32, and most of
1 GiB while ridges and the surgeon work on them in fp64."""

RIDGES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHARE_KEPT: Final = 0.75
"""Ridges are chosen for a cut to this share of the inputs."""


class Moments:
    """The second moments of a model's sites, summed batch by batch."""

    def __init__(self, spec: ModelSpec, tokens: int) -> None:
        """`tokens` is how many the whole run will see; from it follows which of them are looked at."""
        self.spec = spec
        sites = {site.key: site for site in input_sites(spec) if _numbers(spec, site) <= LARGEST}
        # What all experts read alike passes no module of its own.
        self.sites = {key: site for key, site in sites.items() if site.by_expert or not site.rule.per_expert}
        self._tokens = tokens
        self._passes: dict[Key, int] = {}
        self._batches: dict[Key, int] = {}

    def stride(self, site: InputSite) -> int:
        """One of so many tokens would be enough."""
        seen = self._tokens
        if site.by_expert:
            seen = int(seen * self.spec.share_routed(site.layer))
        return max(1, seen // (TOKENS_AN_INPUT * site.size))

    @contextmanager
    def observing(self, model: PreTrainedModel, totals: Totals) -> Iterator[None]:
        """Until the block ends every forward pass of `model` adds to `totals`; experts apart, see `see_routed`."""
        with ExitStack() as undo:
            for site in self.sites.values():
                if not site.by_expert:
                    module = model.get_submodule(module_name(site.rule, site.layer))
                    undo.callback(module.register_forward_pre_hook(self._hook(site, totals)).remove)
            yield

    def _turn(self, site: InputSite) -> int:
        """One of so many tokens of the batch that passes is looked at; 0 for none of them."""
        number, stride = self._passes.get(site.key, 0), self.stride(site)
        self._passes[site.key] = number + 1
        period = PERIOD if stride >= 2 * PERIOD else 1
        return 0 if number % period else stride // period

    def _hook(self, site: InputSite, totals: Totals) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            stride = self._turn(site)
            if not stride:
                return
            with torch.no_grad(), totals.clock.part(MOMENTS):
                inputs = args[0].flatten(0, -2)[::stride]
                inputs = inputs.to(wide(inputs))
                self._add(site, totals, lower_products(inputs), torch.tensor(float(len(inputs))))

        return hook

    def see_routed(self, layer: int, totals: Totals, inputs: Tensor, routing: Routing) -> None:
        """Add what the down projections of a layer's experts read: [R, C], sorted by expert."""
        site = next((site for site in self.sites.values() if site.by_expert and site.layer == layer), None)
        stride = 0 if site is None else self._turn(site)
        if site is None or not stride:
            return
        expert, inputs = routing.expert[::stride], inputs[::stride]
        inputs = inputs.to(wide(inputs))
        counts = torch.bincount(expert, minlength=routing.experts)
        parts = torch.split(inputs, counts.tolist())
        self._add(site, totals, torch.stack([part.T @ part for part in parts]), counts.double())

    def _add(self, site: InputSite, totals: Totals, moments: Tensor, tokens: Tensor) -> None:
        batch = self._batches[site.key] = self._batches.get(site.key, -1) + 1
        part = "judged" if batch % JUDGED == JUDGED - 1 else "fitted"
        totals.add((part, site.key), moments)
        totals.add((part, "tokens", site.key), tokens)

    def has_judged(self, totals: Totals, site: InputSite) -> bool:
        """Whether batches were held back."""
        return ("judged", site.key) in totals.sums

    def forget(self, totals: Totals, site: InputSite) -> None:
        """Let go of a site's sums."""
        for part in ("fitted", "judged"):
            totals.forget((part, site.key))
            totals.forget((part, "tokens", site.key))

    @torch.inference_mode()
    def merge(self, totals: Totals, site: InputSite) -> None:
        """Add the batches held back to the others, and let go of them: their part is done once ridges are chosen."""
        for name in (site.key,), ("tokens", site.key):
            totals.sums["fitted", *name] += totals.sums.pop(("judged", *name), 0.0)

    def matrix(self, totals: Totals, site: InputSite, expert: int | None, part: str = "fitted") -> Array:
        """[C, C], which the caller may overwrite: E[a a^T] over the tokens of one part, of one expert where each has
        inputs of its own; zeros where it got no tokens."""
        moments, tokens = totals.sums[part, site.key], totals.sums[part, "tokens", site.key]
        if expert is not None:
            moments, tokens = moments[expert], tokens[expert]
        found: Array = mirrored((moments / tokens.clamp_min(1.0)).cpu()).numpy()
        return found

    def stacked(self, totals: Totals, site: InputSite) -> NDArray[np.float32]:
        """[C, C] or [E, C, C]: `matrix` as it is kept."""
        if not site.by_expert:
            return self.matrix(totals, site, None).astype(np.float32)
        found = np.empty(totals.sums["fitted", site.key].shape, np.float32)
        for expert, row in enumerate(found):
            row[:] = self.matrix(totals, site, expert)
        return found


def lower_products(rows: Tensor) -> Tensor:
    """[N, C] -> [C, C]: rows^T rows where `mirrored` reads it, and beyond that zeros.

    In strips as long as they must be: what stands above the diagonal is the same once more, near half of the work."""
    size = rows.shape[-1]
    found, strip = rows.new_zeros(size, size), _strip(size)
    for start in range(0, size, strip):
        end = min(start + strip, size)
        torch.mm(rows[:, start:end].T, rows[:, :end], out=found[start:end, :end])
    return found


def mirrored(products: Tensor) -> Tensor:
    """[C, C]: the same, and above the diagonal what stands below it."""
    size = products.shape[-1]
    strip = _strip(size)
    for start in range(strip, size, strip):
        end = min(start + strip, size)
        products[:start, start:end] = products[start:end, :start].T
    return products


def _strip(size: int) -> int:
    """How wide a strip is: narrower ones would be too thin for a processor to be quick with."""
    return max(128, -(-size // 8))


def _numbers(spec: ModelSpec, site: InputSite) -> int:
    return site.size**2 * (spec.sizes_in(site.layer)[EXPERT] if site.by_expert else 1)
