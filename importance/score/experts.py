"""Routed experts, each judged by its own tokens.

transformers keeps the experts of a layer in two stacked tensors and multiplies them in one go, so that no hook sees an
expert.  While a model is observed the module's forward is replaced by one that returns the same output and looks at
what it makes on the way: nothing is computed twice.

Shape letters: N tokens, B sequences, k experts a token, R = N*k routed tokens, E experts, F expert_ffn, D the width
that experts read and write (hidden or latent).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from importance.score.estimators import Estimator
from importance.score.moments import Moments
from importance.score.observed_modules import ExpertSite
from importance.score.totals import Array, Batch, Routing, Totals, sums_by, wide


@contextmanager
def observed_experts(
    site: ExpertSite, experts: Any, totals: Totals, batch: Batch, estimator: Estimator, moments: Moments | None = None
) -> Iterator[None]:
    """Until the block ends the module `experts` adds to `totals` what its tokens do.

    `estimator` judges the experts' channels, the input of their down projections; experts as a whole are judged by
    `expert_scores` whatever it is.  The routing is the model's own, with the router's correction bias on.  Raises
    NotImplementedError for experts of another form than down(act(up(x)))."""
    if any(getattr(experts, trait, False) for trait in ("has_gate", "has_bias", "is_transposed")):
        raise NotImplementedError(f"{type(experts).__name__}: experts with a gate, a bias or transposed weights")

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return _routed(site, experts, totals, batch, estimator, moments, hidden_states, top_k_index, top_k_weights)

    # Another library may have put a forward of its own on the module.
    replaced = experts.__dict__.get("forward")
    experts.forward = forward
    try:
        yield
    finally:
        del experts.forward
        if replaced is not None:
            experts.forward = replaced


def expert_scores(site: ExpertSite, totals: Totals) -> Array:
    """[E]: S = mean over the tokens routed to the expert of g * ||f||_2; 0 for an expert that got none.

    REAP (Lasby et al. 2025, arXiv 2510.13999): f is the expert's output and g its weight as the router gives it, that
    is renormalised over the chosen k and multiplied by routed_scaling_factor (a constant, which changes no ranking)."""
    return totals[site, "output"] / np.maximum(totals[site, "tokens"], 1)


def _routed(
    site: ExpertSite,
    experts: Any,
    totals: Totals,
    batch: Batch,
    estimator: Estimator,
    moments: Moments | None,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """[N, D] states, [N, k] experts, [N, k] weights -> [N, D], and the sums go to `totals`."""
    tokens, chosen = top_k_index.shape
    # Stable: within an expert tokens keep their order.
    expert, order = top_k_index.flatten().sort(stable=True)
    token = order // chosen
    counts = torch.bincount(expert, minlength=experts.num_experts)
    parts = counts.tolist()
    inner = experts.act_fn(_grouped(hidden_states[token], experts.up_proj, parts))
    outer = _grouped(inner, experts.down_proj, parts) * top_k_weights.flatten()[order, None]
    with torch.no_grad():
        routing = Routing(expert, token // (tokens // batch.sequences), experts.num_experts, batch.sequences)
        norms = outer.to(wide(outer)).square().sum(-1).sqrt()
        totals.add((site, "tokens"), counts)
        totals.add((site, "output"), sums_by(expert, norms, experts.num_experts))
        estimator.see_routed(totals, site.channels, inner, routing)
        if moments is not None:
            moments.see_routed(site.layer, totals, inner, routing)
        # [E, D, F]: one column a channel and expert.
        estimator.see_weights(totals, site.channels, experts.down_proj, (1,))
    output = torch.empty_like(outer)
    output[order] = outer
    return output.view(tokens, chosen, -1).sum(1).to(hidden_states.dtype)


def _grouped(rows: Tensor, weights: Tensor, parts: list[int]) -> Tensor:
    """[R, in] rows in runs of `parts`, [E, out, in] -> [R, out]: each run times the weights of its expert."""
    return torch.cat([run @ weight.T for run, weight in zip(torch.split(rows, parts), weights, strict=True)])
