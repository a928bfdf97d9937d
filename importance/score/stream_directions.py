"""Directions of the residual stream by what they carry and by what an error in them does.

An error e in the normalised stream at norm n costs e^T F_n e / 2 (importance.score.fisher), and leaving a direction out
makes an error of what it carries, the second moment C_n.  One basis serves all norms: C = sum over n of tr(F_n) C_n and
F = sum over n of F_n.  Where both have the same eigenvectors, leaving out direction i costs c_i f_i, the square of its
eigenvalue in the geometric mean C # F = C^(1/2) (C^(-1/2) F C^(-1/2))^(1/2) C^(1/2) (Bhatia 2007, Positive Definite
Matrices, equation 4.10), whose eigenvectors are taken where they do not.

What a cut of the stream is worth beside other cuts is told by the energies of the covariance alone, as without
gradients: the eigenvalues of C # F promise more than a cut keeps (benchmarks/RESULTS.md).

Shape letters: N tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.balanced_bases import roots
from importance.score.covariance import StreamNorm, gain_of, normalised, stream_norms
from importance.score.totals import Array, Totals
from minitron.cut.scores import Key
from minitron.cut.selection import STREAM
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import norm_module

CARRIED: Final = ("stream", "carried")
HARM: Final = ("stream", "harm")


@contextmanager
def observing_stream(model: PreTrainedModel, spec: ModelSpec, totals: Totals, layer: int | None) -> Iterator[None]:
    """Until the block ends, gradients that come back to the norms of `layer` (of the model where that is None) add to
    `totals` what `directions` makes a matrix of."""
    with ExitStack() as undo:
        for norm in stream_norms(spec):
            if norm.layer == layer:
                module = model.get_submodule(norm_module(norm.rule, norm.layer))
                undo.callback(module.register_forward_hook(_see(model, totals, norm)).remove)
        yield


def _see(model: PreTrainedModel, totals: Totals, norm: StreamNorm) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        states = normalised(args[0].detach().flatten(0, -2))

        def back(gradient: Tensor) -> None:
            rows = gradient.flatten(0, -2).to(states.dtype) * gain_of(model, norm).to(states)
            totals.add(HARM, rows.T @ rows)
            # A batch's own weight in the place of the whole text's: no norm's matrix need be kept.
            weight = rows.square().sum() / len(rows)
            totals.add(CARRIED, (states.T @ states) * weight)

        output.register_hook(back)  # type: ignore[no-untyped-call]

    return hook


def directions(totals: Totals, covariance: Array) -> Array:
    """[H, H]: the eigenvectors of C # F, the costliest first, with the energies of `covariance` [H, H], the largest
    first."""
    carried, harm = totals[CARRIED], totals[HARM]
    root, inverse = roots(carried)
    inner, _ = roots(inverse @ harm @ inverse)
    mean = root @ inner @ root
    vectors = np.linalg.eigh((mean + mean.T) / 2)[1]
    found = (vectors * np.linalg.eigvalsh(covariance)) @ vectors.T
    return np.asarray((found + found.T) / 2)


def turned(totals: Totals, found: dict[Key, Array]) -> dict[Key, Array]:
    """`found`, the covariances by key, with that of the stream in its costliest directions where they were observed;
    the sums are let go."""
    if CARRIED in totals.sums:
        found = found | {STREAM: directions(totals, found[STREAM])}
    for name in (CARRIED, HARM):
        totals.forget(name)
    return found
