"""Balanced bases: for spaces that are linear on both sides, the directions to keep for the least loss.

What is written to such a space, x, meets what reads it in a product: values and the output projection, queries and keys
where nothing turns them by position, latent channels and the linears on either side.  With C = E[x x^T] and a metric M,
which says what an error in x does, the projector P of rank k that makes E|M^(1/2) (x - P x)|^2 least follows from the
singular value decomposition M^(1/2) C^(1/2) = U S V^T (Eckart and Young 1936): P = B A^T with
A = M^(1/2) U_k S_k^(-1/2) and B = C^(1/2) V_k S_k^(-1/2).  Writers take up A, readers B, as in balanced truncation
(Moore 1981), and k is free: the columns are ordered.

Shape letters: N tokens, G groups (KV heads), A head width, L latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.clock import BASES
from importance.score.moments import TOKENS_AN_INPUT
from importance.score.totals import Array, Totals, wide
from minitron.cut.scores import Key
from minitron.model.dims import Dim, Product, Word
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name, weight_of

FLOOR: Final = 1e-6
"""Singular values below this share of the largest are noise: their directions keep it, so that a basis has as many
columns as its space."""


@dataclass(frozen=True)
class Look:
    """Second moments to take in one layer: of what a linear reads or writes, head by head."""

    name: str
    layer: int
    rule: Rule
    side: str
    """`input` or `output` of the rule's linear."""

    groups: int
    width: int
    """The last dimension is [groups, heads of a group, width]; heads of a group are added up."""

    @property
    def module(self) -> str:
        """The module in memory."""
        return module_name(self.rule, self.layer)


@dataclass(frozen=True)
class Space:
    """One space: where its numbers and its metric come from."""

    key: Key
    covariance: Look
    metric: Look | None
    """What meets it in a product; None where the weights of `readers` do."""

    readers: tuple[Rule, ...] = ()


def spaces(spec: ModelSpec) -> Iterator[Space]:
    """Every such space of the model's layers whose size a plan may change."""
    for layer, kind in enumerate(spec.layers):
        rules = spec.rules[kind]
        for axis in sorted(frozenset().union(*(rule.axes for rule in rules)) - spec.family.fixed):
            space = _space(spec, rules, axis, layer)
            if space is not None:
                yield space


def _space(spec: ModelSpec, rules: tuple[Rule, ...], axis: str, layer: int) -> Space | None:
    if not spec.axis(axis).linear:
        return None
    linears = [rule for rule in rules if rule.is_linear]
    writers = [rule for rule in linears if _ends(rule.writes, axis) and rule.scaled_by != axis]
    readers = [rule for rule in linears if _ends(rule.reads, axis)]
    queries = [rule for rule in linears if rule.scaled_by == axis]
    biased = any(not rule.is_linear and axis in rule.axes for rule in rules)
    if biased or len(writers) != 1 or not (readers or queries):
        return None
    (writer,) = writers
    groups = _groups(spec, writer.writes)

    def look(rule: Rule, side: str) -> Look:
        return Look(f"{axis}/{side}/{rule.name}", layer, rule, side, groups, spec.sizes[axis])

    if queries:
        return Space((axis, layer), look(writer, "output"), look(queries[0], "output"))
    # Values are mixed over tokens and experts are added up before they are read.
    mixed = groups > 1 or writer.per_expert
    return Space((axis, layer), look(readers[0], "input") if mixed else look(writer, "output"), None, tuple(readers))


def _groups(spec: ModelSpec, dim: Dim | None) -> int:
    """How many heads have a space of their own: those that write to it."""
    match dim:
        case Product((Word(heads), Word())):
            return spec.sizes[heads]
    return 1


def _ends(dim: Dim | None, axis: str) -> bool:
    return dim == Word(axis) or (isinstance(dim, Product) and len(dim.factors) == 2 and dim.factors[1] == Word(axis))


@contextmanager
def observing_spaces(model: PreTrainedModel, spec: ModelSpec, totals: Totals, tokens: int) -> Iterator[None]:
    """Until the block ends every forward pass of `model` adds to `totals` what `bases` needs; `tokens` is how many the
    whole run will see."""
    with ExitStack() as undo:
        for space in spaces(spec):
            for look in (space.covariance, space.metric):
                if look is not None:
                    stride = max(1, tokens // (TOKENS_AN_INPUT * look.width))
                    module, hook = model.get_submodule(look.module), _hook(look, totals, stride)
                    if look.side == "input":
                        undo.callback(module.register_forward_pre_hook(hook).remove)
                    else:
                        undo.callback(module.register_forward_hook(hook).remove)
        yield


def _hook(look: Look, totals: Totals, stride: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor | None = None) -> None:
        with torch.no_grad(), totals.clock.part(BASES):
            seen = args[0] if output is None else output
            rows = seen.flatten(0, -2)[::stride]
            heads = rows.to(wide(rows)).unflatten(-1, (look.groups, -1, look.width)).permute(1, 0, 2, 3).flatten(1, 2)
            totals.add(("space", look.name, look.layer), heads.mT @ heads)
            totals.add(("space tokens", look.name, look.layer), torch.tensor(float(len(rows))))

    return hook


def bases(model: PreTrainedModel, spec: ModelSpec, totals: Totals, layer: int) -> dict[Key, tuple[Array, Array, Array]]:
    """(axis, layer) -> (matrix, dual, strengths): [G, A, A], [G, A, A] and [A] of every space of a layer, the strongest
    direction first; without the dimension G where there are no groups.  A strength is the root of what leaving the
    direction out costs, over all groups."""
    found: dict[Key, tuple[Array, Array, Array]] = {}
    for space in spaces(spec):
        if space.key[1] != layer:
            continue
        covariance = _moments(totals, space.covariance)
        metric = _moments(totals, space.metric) if space.metric is not None else _weights(model, spec, space)
        parts = [balanced(*pair) for pair in zip(metric, covariance, strict=True)]
        matrix, dual = (np.stack([part[place] for part in parts]) for place in (0, 1))
        strengths = np.sqrt(np.square([part[2] for part in parts]).sum(0))
        grouped = space.covariance.groups > 1
        found[space.key] = (matrix if grouped else matrix[0]), (dual if grouped else dual[0]), strengths
    return found


def forget_spaces(spec: ModelSpec, totals: Totals, layer: int) -> None:
    """Let go of what `bases` needs of a layer."""
    for space in spaces(spec):
        for look in (space.covariance, space.metric):
            if look is not None and look.layer == layer:
                totals.forget(("space", look.name, layer))
                totals.forget(("space tokens", look.name, layer))


def balanced(metric: Array, covariance: Array) -> tuple[Array, Array, Array]:
    """(A, B, S) of two [A, A] symmetric matrices without negative eigenvalues, see the module."""
    left, right = roots(metric)[0], roots(covariance)[0]
    outer, values, inner = np.linalg.svd(left @ right)
    # Directions that carry nothing still need a place: with a hair of everything the two sides stay dual.
    values = np.maximum(values, FLOOR * max(float(values.max()), np.finfo(np.float64).tiny))
    return left @ outer / np.sqrt(values), right @ inner.T / np.sqrt(values), values


def roots(matrix: Array) -> tuple[Array, Array]:
    """The symmetric square root, with a floor under the eigenvalues that keeps it invertible, and its inverse."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.sqrt(np.maximum(values, FLOOR * max(float(values.max()), np.finfo(np.float64).tiny)))
    return np.asarray((vectors * values) @ vectors.T), np.asarray((vectors / values) @ vectors.T)


def _moments(totals: Totals, look: Look) -> Array:
    return np.asarray(totals["space", look.name, look.layer] / totals["space tokens", look.name, look.layer])


def _weights(model: PreTrainedModel, spec: ModelSpec, space: Space) -> Array:
    """[G, A, A]: the sum over readers of W^T W, W's columns head by head."""
    look, total = space.covariance, np.zeros((space.covariance.groups, space.covariance.width, space.covariance.width))
    for rule in space.readers:
        weight = weight_of(model, spec, rule, look.layer).detach().flatten(0, -2).double().cpu()
        heads = weight.reshape(len(weight), look.groups, -1, look.width).permute(1, 0, 2, 3).flatten(1, 2)
        total += (heads.mT @ heads).numpy()
    return total
