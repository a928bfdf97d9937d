"""Cutter: what a plan makes of each tensor of a model, in a file or in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut, cut
from minitron.cut.plan import Plan
from minitron.cut.rotation import norms_read, reads_stream
from minitron.cut.selection import layer_of, norm_groups, pick
from minitron.errors import MinitronError
from minitron.model.axes import EXPERT, HIDDEN
from minitron.model.dims import Word, axes_of, numel
from minitron.model.families import PROJECTOR, Rule
from minitron.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Callable[[str], Tensor]
    """A tensor of the model by its name in the family's first dialect."""


class Cutter:
    """Cuts the tensors of one model, in a file or in memory, one at a time."""

    def __init__(self, spec: ModelSpec, plan: Plan, weights: Weights | None = None) -> None:
        """`weights` gives any tensor of the model by its name in the family's first dialect: a rotated model's norms
        have their gains folded into other tensors.  Raises MinitronError where the plan is another model's or does not
        say which indices stay."""
        plan.require(spec)
        if not plan.has_indices:
            raise MinitronError("the plan names sizes but no indices; give --scores or --data to choose them.")
        self.spec, self.plan, self.target = spec, plan, plan.target(spec)
        self.weights = weights
        self._new_layer = {old: new for new, old in enumerate(plan.layers)}
        self._read = {rule: norms for rules in spec.rules.values() for rule, norms in norms_read(rules).items()}

    def place(self, name: str) -> tuple[str, Rule, dict[str, int]] | None:
        """(new name, rule, indices) of a tensor that stays; None for one that goes."""
        rule, index = self.spec.find(name)
        new = dict(index)
        if "layer" in index:
            if index["layer"] not in self._new_layer:
                return None
            new["layer"] = self._new_layer[index["layer"]]
        if EXPERT in index:
            kept = pick(self.plan.keep, EXPERT, layer_of(self.spec, index), None)
            if isinstance(kept, np.ndarray):
                rank = int(np.searchsorted(kept, index[EXPERT]))
                if rank == len(kept) or kept[rank] != index[EXPERT]:
                    return None
                new[EXPERT] = rank
        return rule.pattern.rename(name, new), rule, index

    def shape(self, rule: Rule) -> tuple[int, ...]:
        """The shape that a tensor of this rule has after the cut."""
        return tuple(int(numel(dim, self.target.sizes)) for dim in rule.dims)

    def cut(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """(new name, smaller tensor), or None where the tensor goes.  What is not cut comes back bit for bit."""
        placed = self.place(name)
        if placed is None:
            return None
        new_name, rule, index = placed
        return new_name, self._cut(tensor, rule, index, self._read.get(rule, ()))

    def untied(self, name: str) -> tuple[str, Rule] | None:
        """(name, rule) of the output layer that the cut model has of its own, where `name` is the embedding that it
        shared in the model; None for other tensors and where nothing changes."""
        rule, index = self.spec.find(name)
        for output in self.target.rules["model"]:
            if output.tied_to == rule.name and output not in self.spec.rules["model"]:
                return output.pattern.format(index), output
        return None

    def untie(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """(name, tensor) of that output layer, made from the embedding `tensor` of that name."""
        found = self.untied(name)
        if found is None:
            return None
        return found[0], self._cut(tensor, found[1], {}, norms_read(self.target.rules["model"])[found[1]])

    def _cut(self, tensor: Tensor, rule: Rule, index: Mapping[str, int], norms: tuple[Rule, ...]) -> Tensor:
        name = rule.pattern.format(index)
        if self.plan.rotates and reads_stream(rule):
            (gain,) = self.plan.gains[name]
            assert rule.norm is not None
            return tensor.new_full((self.target.sizes[HIDDEN],), gain - rule.norm.offset)
        whole = tensor
        if self.plan.rotates and norms:
            gains = _cat([self._gain(norm, index) for norm in norms]).to(tensor.device)
            whole = _widened(tensor) * (gains[:, None] if rule.transposed else gains)
        fold = self.plan.folds.get(name)
        if not rule.is_stacked:
            small = self._cut_matrix(whole, rule, index, fold)
        else:
            small = _stack(
                self._cut_matrix(whole[expert], rule, {**index, EXPERT: expert}, None if fold is None else fold[expert])
                for expert in self._experts(layer_of(self.spec, index))
            )
        return self._rescale(small, rule, name).to(tensor.dtype)

    def _cut_matrix(
        self, tensor: Tensor, rule: Rule, index: Mapping[str, int], fold: NDArray[np.float32] | None
    ) -> Tensor:
        """One expert's tensor, or one that no experts share, cut along all its dimensions."""
        layer, expert = layer_of(self.spec, index), index.get(EXPERT)

        def choose(axis: str) -> Cut | None:
            chosen = pick(self.plan.keep, axis, layer, expert)
            # Of queries and keys, which meet in a product, one side is projected and the other on the dual.
            reads = axis == rule.scaled_by or (rule.reads is not None and axis in axes_of(rule.reads))
            return chosen.flipped if isinstance(chosen, Basis) and reads else chosen

        dims = rule.matrix
        if fold is None:
            return cut(tensor, dims, self.spec.sizes, choose)
        # The inputs that stay take over what those that go can be foretold from: that cuts the inputs.
        if not rule.transposed:
            return cut(_fold(tensor, fold), dims[:-1], self.spec.sizes, choose)
        return cut(_fold(tensor.mT, fold), (dims[1],), self.spec.sizes, choose).mT.contiguous()

    def _experts(self, layer: int | None) -> Iterable[int]:
        """The experts of a layer that stay."""
        kept = pick(self.plan.keep, EXPERT, layer, None)
        return kept.tolist() if isinstance(kept, np.ndarray) else range(self.spec.num_experts)

    def _gain(self, norm: Rule, index: Mapping[str, int]) -> Tensor:
        if self.weights is None:
            raise ValueError("a rotated cut needs the weights of the model's norms")
        assert norm.norm is not None
        gain = _widened(self.weights(norm.pattern.format(index)))
        return gain + norm.norm.offset if norm.norm.offset else gain

    def _rescale(self, tensor: Tensor, rule: Rule, name: str) -> Tensor:
        wide = _widened(tensor)
        if factors := self.plan.gains.get(name):
            assert rule.norm is not None
            groups, offset = wide.reshape(norm_groups(self.spec, rule), -1), rule.norm.offset
            scale = wide.new_tensor(factors)[:, None]
            # Where the tensor holds the gain less one, it is the gain that is scaled.
            scaled = (groups + offset) * scale - offset if offset else groups * scale
            return scaled.reshape(tensor.shape).to(tensor.dtype)
        factor = self._factor(rule)
        return tensor if factor == 1 else (wide * factor).to(tensor.dtype)

    def _factor(self, rule: Rule) -> float:
        """By what a cut of an axis scales a linear that is no norm: queries by what the model divides their products
        with keys by, and writers of a scaled stream that no norm follows by what the embedding is scaled by."""
        axis = rule.scaled_by
        if self.spec.family.scales_stream(self.spec.told) and rule in self._stream_writers:
            axis = HIDDEN
        old, new = (sizes.get(axis) for sizes in (self.spec.sizes, self.target.sizes))
        return 1.0 if old is None or new is None or old == new else math.sqrt(new / old)

    @cached_property
    def _stream_writers(self) -> frozenset[Rule]:
        """The linears, biases among them, that write to the stream with no norm in between; a projector's too."""
        found: set[Rule] = set()
        for kind in dict.fromkeys((*self.spec.layers, PROJECTOR)):
            rules = self.spec.rules.get(kind, ())
            if not any(rule.norm is not None and rule.norm.role == "after" for rule in rules):
                found |= {
                    rule for rule in rules if rule.norm is None and (rule.writes or rule.matrix[0]) == Word(HIDDEN)
                }
        return frozenset(found)


def _widened(tensor: Tensor) -> Tensor:
    """In the type to reckon in: fp32, or float64 for a tensor of eight bytes a number."""
    return tensor.double() if tensor.dtype.itemsize == 8 else tensor.float()


def _fold(tensor: Tensor, fold: NDArray[np.float32]) -> Tensor:
    import torch

    wide = _widened(tensor)
    return wide @ torch.from_numpy(fold).to(wide)


def _stack(parts: Iterable[Tensor]) -> Tensor:
    import torch

    return torch.stack(list(parts))


def _cat(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)
