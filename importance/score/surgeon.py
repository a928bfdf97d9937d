"""The surgeon (Optimal Brain Surgeon): the error of dropping inputs of a linear layer after refitting the others.

Optimal Brain Surgeon for whole columns (Hassibi and Stork 1992; Kurtic et al. 2023, ZipLM, arXiv 2302.04089, algorithm
1): with C = E[a a^T] + ridge the rise of E|W a - W' a_K|^2 on leaving out the inputs S, the rest refitted, is
tr(W_S ((C^-1)_SS)^-1 W_S^T).  The least goes, W and C^-1 are brought up to date, and so on to the last.

Shape letters: C inputs, G groups of them that go together, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from importance.score.fisher import root_of
from importance.score.moments import RIDGES, SHARE_KEPT, Moments
from importance.score.totals import Array, Totals, wide
from minitron.cut.refit import RIDGE, InputSite
from minitron.cut.scores import Key
from minitron.errors import MinitronError
from minitron.model.dims import Indices
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import weight_of

AT_ONCE: Final = 64
"""Single inputs go in rounds of this share of one in so many of those left, at least one: by then others have taken
over, yet C^3 operations stay C^3."""

NUMBERS: Final = 2**20
"""Of experts so many have their inputs removed side by side as have this many second moments, at least one."""

ROWS: Final = 256
"""Outputs that are scored at once: in float64 a large weight takes as much memory as the moments."""


def removal_scores(weight: Tensor, moments: Array, ridge: float, width: int = 1, parts: int = 1) -> Array:
    """[G]: the rise of the error at which each group of `width` neighbouring inputs goes, all that went before it
    included, so that scores ascend in the order of removal.

    `weight` is [O, C], `moments` E[a a^T] [C, C], `ridge` a share of the mean of its diagonal.  Groups stand in `parts`
    equal runs, of each of which the same number goes: the heads of a KV group.  Of several layers side by side, [E, O,
    C] and [E, C, C], the scores are [E, G]."""
    _require_finite(moments)
    if moments.ndim > 2:
        return _side_by_side(weight, moments, ridge, width, parts)
    (scores,) = _side_by_side(weight[None], moments[None], ridge, width, parts)
    return np.asarray(scores)


def _side_by_side(weight: Tensor, moments: Array, ridge: float, width: int, parts: int) -> Array:
    """[E, O, C], [E, C, C] -> [E, G]: each by itself, in steps that all take together."""
    inverse = torch.from_numpy(np.array(moments, dtype=np.float64))
    scale = inverse.diagonal(dim1=1, dim2=2).mean(1)
    scores = np.zeros((len(inverse), inverse.shape[1] // width))
    live = scale > 0
    if not live.all():
        if live.any():
            scores[live.numpy()] = _side_by_side(weight[live], moments[live.numpy()], ridge, width, parts)
        return scores
    inverse.div_(scale[:, None, None]).diagonal(dim1=1, dim2=2).add_(ridge)
    # In place, and LAPACK goes by columns: a copy of the largest matrices is 128 MiB.
    torch.cholesky_inverse(torch.linalg.cholesky(inverse.mT, out=inverse.mT), out=inverse.mT)
    left = weight.detach().to("cpu", torch.float64).mT.contiguous()
    size, each = scores.shape[1], np.arange(len(scores))[:, None]
    at = torch.from_numpy(each)
    groups = remaining = np.tile(np.arange(size), (len(scores), 1))
    total = np.zeros((len(scores), 1))
    while remaining.shape[1]:
        if 2 * remaining.shape[1] <= groups.shape[1]:
            # What is gone costs as much as what is left, until it is let go of.
            kept = _columns(remaining, width)
            inverse, left = _square(inverse, kept), left[at, kept]
            groups = groups[each, remaining]
            remaining = np.tile(np.arange(groups.shape[1]), (len(scores), 1))
        errors = _errors(left, inverse, remaining, width)
        gone = _next(errors, groups[each, remaining], size // parts, parts, width)
        gone = gone[each, errors[each, gone].argsort(1, kind="stable")]
        rises = np.maximum(errors[each, gone], 0.0) * scale.numpy()[:, None]
        sums = np.concatenate([total, rises], 1).cumsum(1)
        chosen, total = remaining[each, gone], sums[:, -1:]
        scores[each, groups[each, chosen]] = sums[:, 1:]
        columns = _columns(chosen, width)
        rows = inverse[at, columns]
        block = torch.linalg.solve(rows.gather(2, columns[:, None].expand(-1, columns.shape[1], -1)), rows)
        left.baddbmm_(block.mT, left[at, columns], alpha=-1.0)
        inverse.baddbmm_(inverse.mT[at, columns].mT, block, alpha=-1.0)
        stay = np.ones(remaining.shape, dtype=bool)
        stay[each, gone] = False
        remaining = remaining[stay].reshape(len(scores), -1)
    return np.sqrt(scores)


def _square(matrices: Tensor, kept: Tensor) -> Tensor:
    """[E, C, C], [E, K] -> [E, K, K]: the rows and columns of those that are kept."""
    return torch.stack([matrix[which][:, which] for matrix, which in zip(matrices, kept, strict=True)])


def _columns(groups: Indices, width: int) -> Tensor:
    """[E, G] -> [E, G * width]: the inputs of groups of `width` neighbouring ones."""
    return torch.from_numpy((groups[..., None] * width + np.arange(width)).reshape(len(groups), -1))


def _errors(left: Tensor, inverse: Tensor, remaining: Indices, width: int) -> Array:
    """[E, remaining groups]: tr(W_S ((C^-1)_SS)^-1 W_S^T), where `left` [E, C, O] is W^T."""
    at = torch.arange(len(left))[:, None]
    if width == 1:
        chosen = torch.from_numpy(remaining)
        squares = left[at, chosen].square_().sum(2)
        return np.asarray((squares / inverse.diagonal(dim1=1, dim2=2).gather(1, chosen)).numpy())
    columns = _columns(remaining, width).reshape(*remaining.shape, width)
    blocks = inverse[at[..., None, None], columns[..., :, None], columns[..., None, :]]
    own = left[at[..., None], columns]
    return np.asarray((own * torch.linalg.solve(blocks, own)).sum((2, 3)).numpy())


def _next(errors: Array, remaining: Indices, size: int, parts: int, width: int) -> Indices:
    """[E, n]: places in `remaining` of those that go next: from the runs of which the most are left."""
    allowed = errors
    if parts > 1:
        run = remaining // size
        counts = np.stack([np.bincount(one, minlength=parts) for one in run])
        here = counts[np.arange(len(run))[:, None], run]
        allowed = np.where(here == counts.max(1, keepdims=True), errors, np.inf)
    several = 1 if width > 1 or parts > 1 else max(1, remaining.shape[1] // AT_ONCE)
    return np.asarray(allowed.argsort(1, kind="stable")[:, :several])


def surgeon_scores(
    model: PreTrainedModel,
    spec: ModelSpec,
    totals: Totals,
    moments: Moments,
    *,
    judge: Callable[[str], bool],
    layer: int,
    outputs: Mapping[Key, NDArray[np.float32]] | None = None,
) -> tuple[dict[Key, Array], dict[Key, float]]:
    """(axis, layer) -> the surgeon's scores of one layer as minitron.cut.scores.Scores holds them, none of an axis that
    it is not to `judge`; and the ridge of every site whose second moments were seen, the one of
    importance.score.moments.RIDGES that is best on the batches held back.  Errors in the outputs of a site in `outputs`
    are weighted by what those say (importance.score.fisher).

    Mamba heads are not scored: their output passes a norm that they share, and there activations rank better."""
    scores: dict[Key, Array] = {}
    ridges: dict[Key, float] = {}
    for key, site in moments.sites.items():
        if key[1] != layer:
            continue
        weights = weight_of(model, spec, site.rule, site.layer)
        # What experts share they read with all their weights.
        stacks: dict[int | None, Tensor] = {None: weights.flatten(0, -2)}
        if site.by_expert:
            stacks = dict(enumerate(weights))
        root = root_of(outputs[key]) if outputs and key in outputs else None
        ridges[key] = _ridge(stacks, totals, moments, site, root)
        moments.merge(totals, site)
        if not judge(key[0]) or key[0] not in spec.sizes:
            continue
        width, parts = _grouping(spec, site)
        names, several, found = list(stacks), max(1, NUMBERS // site.size**2), []
        for some in (names[start : start + several] for start in range(0, len(names), several)):
            seen = [moments.matrix(totals, site, expert) for expert in some]
            weight = torch.stack([_weighted(root, stacks[expert]) for expert in some])
            # One alone may be the largest there is: not copied.
            side_by_side = np.stack(seen) if len(seen) > 1 else seen[0][None]
            found.append(removal_scores(weight, side_by_side, ridges[key], width, parts))
        scores[key] = np.concatenate(found) if site.by_expert else found[0][0]
    return scores, ridges


def _grouping(spec: ModelSpec, site: InputSite) -> tuple[int, int]:
    """(inputs that go together, equal runs that lose the same number of such groups): heads and their groups."""
    group = spec.family.grouped.get(site.key[0])
    sizes = spec.sizes_in(site.layer)
    return site.size // sizes[site.key[0]], sizes[group] if group else 1


def _weighted(root: Tensor | None, weight: Tensor) -> Tensor:
    """[O, C]: the weights whose plain squared errors are the weighted ones of `weight`."""
    if root is None:
        return weight
    weight = weight.detach().to("cpu", torch.float64)
    return root @ weight if root.ndim == 2 else root[:, None] * weight


def _ridge(
    stacks: Mapping[int | None, Tensor], totals: Totals, moments: Moments, site: InputSite, root: Tensor | None
) -> float:
    """The ridge that is best on the batches held back, the same for all experts; RIDGE where too few were seen."""
    if not moments.has_judged(totals, site):
        return RIDGE
    kept_count = round(SHARE_KEPT * site.size)
    errors = np.zeros(len(RIDGES))
    for expert, weight in stacks.items():
        weight = _weighted(root, weight.detach().cpu())
        fitted, judged = (moments.matrix(totals, site, expert, part) for part in ("fitted", "judged"))
        norms = torch.linalg.vector_norm(weight, dim=0, dtype=wide(weight)).double().numpy()
        carried = norms**2 * np.diagonal(fitted)
        kept = np.sort(np.argsort(-carried, kind="stable")[:kept_count])
        errors += refit_errors(weight, fitted, judged, kept, RIDGES)
    return RIDGES[int(errors.argmin())]


def refit_errors(
    weight: Tensor,
    fitted: Array,
    judged: Array,
    kept: Indices,
    ridges: Sequence[float],
) -> list[float]:
    """For every ridge E|W a - W' a_K|^2 on tokens that W' was not fitted on (minitron.cut.refit).

    `weight` [O, C] is W; `fitted` and `judged` are E[a a^T] [C, C] of the two sets of tokens; a ridge is a share of the
    mean of the diagonal of `fitted`.  With D = W - W', which is W where nothing is kept, and U = `judged`, r what goes,
    the error is tr(D_K U_KK D_K^T + 2 D_K U_Kr W_r^T + W_r U_rr W_r^T)."""
    _require_finite(fitted)
    gone = np.setdiff1d(np.arange(len(fitted)), kept)
    seen, (inside, across, outside) = fitted[:, kept], (judged[np.ix_(*pair)] for pair in _pairs(kept, gone))
    parts = torch.split(weight, ROWS)
    products = [part.to(torch.float64) @ torch.from_numpy(seen) for part in parts]
    beside = []
    for part in parts:
        lost = part[:, torch.from_numpy(gone)].to(torch.float64)
        beside.append((lost @ torch.from_numpy(across.T), float((lost @ torch.from_numpy(outside) * lost).sum())))
    errors = []
    for ridge in ridges:
        inner = torch.from_numpy(seen[kept])
        strength = ridge * float(np.diag(fitted).mean())
        inner.diagonal().add_(strength)
        if strength > 0:
            torch.linalg.cholesky(inner.mT, out=inner.mT)
        total = 0.0
        for part, product, (met, alone) in zip(parts, products, beside, strict=True):
            change = part[:, torch.from_numpy(kept)].to(torch.float64)
            # Without a ridge there is nothing to fit: all moments are zero.
            change -= torch.cholesky_solve(product.mT, inner.mT).mT if strength > 0 else change
            total += alone + float(((change @ torch.from_numpy(inside) + 2 * met) * change).sum())
        errors.append(total)
    return errors


def _pairs(kept: Indices, gone: Indices) -> tuple[tuple[Indices, Indices], ...]:
    return (kept, kept), (kept, gone), (gone, gone)


def _require_finite(moments: Array) -> None:
    if not np.isfinite(moments).all():
        raise MinitronError(
            "the model's activations are not finite on the calibration text; check its weights, or try --dtype fp32."
        )
