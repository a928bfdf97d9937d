"""Routed experts, each scored on its own tokens.

transformers keeps the experts of a layer in two stacked tensors and multiplies them in one go, so that no hook sees an
expert.  While a model is observed the module's forward is replaced by one that returns the same output and looks at
what it makes on the way: nothing is computed twice.

Shape letters: N tokens, B sequences, k experts a token, R = N*k routed tokens, E experts, F channels of an expert, D
the width that experts read and write (hidden or latent), P what the first linear makes: F, or gate and up, 2F.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from importance.score.clock import CHANNELS, MOMENTS
from importance.score.estimators import Estimator
from importance.score.moments import Moments
from importance.score.observed_modules import ExpertSite
from importance.score.totals import Array, Batch, Routing, Totals, sums_by, wide


@contextmanager
def observed_experts(
    site: ExpertSite, experts: Any, totals: Totals, batch: Batch, estimator: Estimator, moments: Moments | None = None
) -> Iterator[None]:
    """Until the block ends the module `experts` adds to `totals` what its tokens do.

    `estimator` scores the experts' channels, the input of their down projections; experts as a whole are scored by
    `expert_scores` whatever it is.  The routing is the model's own, with the router's correction bias on."""
    with _Watch(site, experts, totals, batch, estimator, moments).in_place():
        yield


def expert_scores(site: ExpertSite, totals: Totals) -> Array:
    """[E]: S = mean over the tokens routed to the expert of g * ||f||_2; 0 for an expert that got none.

    REAP (Lasby et al. 2025, arXiv 2510.13999): f is the expert's output and g its weight as the router gives it, that
    is renormalised over the chosen k and multiplied by routed_scaling_factor (a constant, which changes no ranking)."""
    return totals[site, "output"] / np.maximum(totals[site, "tokens"], 1)


@dataclass(frozen=True)
class RoutedForward:
    """The forward of one layer's experts, step by step, so that what they read and make can be looked at."""

    site: ExpertSite
    experts: Any

    def look(self, rows: Tensor, inner: Tensor, outer: Tensor, expert: Tensor, token: Tensor, tokens: int) -> None:
        """Called with what the experts read [R, D], what their last linears read [R, F] and what they made [R, D], in
        the order of the `expert`s [R]; `token` [R] is whose rows they are, of `tokens`."""
        raise NotImplementedError

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Until the block ends the module runs this forward."""
        # Another library may have put a forward of its own on the module.
        replaced = self.experts.__dict__.get("forward")
        self.experts.forward = self.forward
        try:
            yield
        finally:
            del self.experts.forward
            if replaced is not None:
                self.experts.forward = replaced

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """[N, D] states, [N, k] experts, [N, k] weights -> [N, D], and the sums go to `totals`.

        Without experts and weights the states are [E*N, D], those of all tokens for each expert, times the weight that
        it has for them: zero where it is not chosen.  So are the outputs then."""
        if top_k_index is None or top_k_weights is None:
            return self._of_all(hidden_states)
        tokens, chosen = top_k_index.shape
        # Stable: within an expert tokens keep their order.
        expert, order = top_k_index.flatten().sort(stable=True)
        token = order // chosen
        outer = self._seen(hidden_states[token], expert, token, tokens, top_k_weights.flatten()[order, None])
        output = torch.empty_like(outer)
        output[order] = outer
        return output.view(tokens, chosen, -1).sum(1).to(hidden_states.dtype)

    def _of_all(self, rows: Tensor) -> Tensor:
        tokens = len(rows) // self.experts.num_experts
        sent = rows.ne(0).any(-1).nonzero().squeeze(-1)
        outer = self._seen(rows[sent], sent // tokens, sent % tokens, tokens, None)
        return torch.zeros_like(rows).index_copy(0, sent, outer.to(rows.dtype))

    def _seen(self, rows: Tensor, expert: Tensor, token: Tensor, tokens: int, weights: Tensor | None) -> Tensor:
        """[R, D] rows in the order of their experts -> [R, D] what these make of them, times `weights`."""
        parts = torch.bincount(expert, minlength=self.experts.num_experts).tolist()
        inner = self._inner(rows, parts, expert)
        outer = self._linear(inner, self.site.down, parts, expert)
        if weights is not None:
            outer = outer * weights
        with torch.no_grad():
            self.look(rows, inner, outer, expert, token, tokens)
        return outer

    def _inner(self, rows: Tensor, parts: list[int], expert: Tensor) -> Tensor:
        """[R, D] -> [R, F]: what the down projections read."""
        if hasattr(self.experts, "up_proj"):
            made: Tensor = self.experts.act_fn(self._linear(rows, "up_proj", parts, expert))
            return made
        both = self._linear(rows, "gate_up_proj", parts, expert)
        if hasattr(self.experts, "_apply_gate"):
            # A gate beside it, joined as the model's own way of applying it expects.
            gated: Tensor = self.experts._apply_gate(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            gated = self.experts.act_fn(gate) * up
        return gated

    def _linear(self, rows: Tensor, name: str, parts: list[int], expert: Tensor) -> Tensor:
        """[R, in] rows in runs of `parts` -> [R, out]: each run times the weights of its expert."""
        weights = self.experts.get_parameter(name)
        if self.site.transposed:
            weights = weights.mT
        runs = zip(torch.split(rows, parts), weights, strict=True)
        made = torch.cat([run @ weight.T for run, weight in runs])
        bias = getattr(self.experts, f"{name}_bias", None)
        return made if bias is None else made + bias[expert]


@dataclass(frozen=True)
class _Watch(RoutedForward):
    """The experts of one layer and what becomes of what is seen of them."""

    totals: Totals
    batch: Batch
    estimator: Estimator
    moments: Moments | None

    def look(self, rows: Tensor, inner: Tensor, outer: Tensor, expert: Tensor, token: Tensor, tokens: int) -> None:
        """Add to the totals."""
        with self.totals.clock.part(CHANNELS):
            self._add(inner, outer, expert, token, tokens)

    def _add(self, inner: Tensor, outer: Tensor, expert: Tensor, token: Tensor, tokens: int) -> None:
        site, totals = self.site, self.totals
        routing = Routing(
            expert, token // (tokens // self.batch.sequences), self.experts.num_experts, self.batch.sequences
        )
        norms = outer.to(wide(outer)).square().sum(-1).sqrt()
        totals.add((site, "tokens"), torch.bincount(expert, minlength=routing.experts))
        totals.add((site, "output"), sums_by(expert, norms, routing.experts))
        self.estimator.see_routed(totals, site.channels, inner, routing)
        if self.moments is not None:
            with totals.clock.part(MOMENTS):
                self.moments.see_routed(site.layer, totals, inner, routing)
        # One column a channel and expert.
        down = self.experts.get_parameter(site.down)
        self.estimator.see_weights(totals, site.channels, down, (2,) if site.transposed else (1,))
