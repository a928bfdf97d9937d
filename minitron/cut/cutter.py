"""Cutter: what a plan makes of each tensor of a model, in a file or in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut, cut
from minitron.cut.left import Left
from minitron.cut.plan import Plan
from minitron.cut.rotation import norms_read, reads_stream
from minitron.cut.selection import layer_of, norm_groups, pick
from minitron.errors import MinitronError
from minitron.model.axes import EXPERT, HIDDEN
from minitron.model.dims import Word, axes_of, numel
from minitron.model.families import PROJECTOR, Rule
from minitron.model.slabs import row_runs
from minitron.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Callable[[str], Tensor]
    """A tensor of the model by its name in the family's first dialect."""


@dataclass(frozen=True)
class Made:
    """A tensor of the cut model, and what it is made of."""

    name: str
    """The new one."""

    rule: Rule
    index: Mapping[str, int]
    """The indices in the name of the tensor that it is made of."""


class Cutter:
    """Cuts the tensors of one model, in a file or in memory, one at a time."""

    def __init__(self, spec: ModelSpec, plan: Plan, weights: Weights | None = None) -> None:
        """`weights` gives any tensor of the model by its name in the family's first dialect: a rotated model's norms
        have their gains folded into other tensors.  Raises MinitronError where the plan is another model's or does not
        say which indices stay."""
        plan.require(spec)
        if not plan.has_indices(spec):
            raise MinitronError("the plan names sizes but no indices; give --scores or --data to choose them.")
        self.spec, self.plan, self.target = spec, plan, plan.target(spec)
        self.weights = weights
        self._new_layer = {old: new for new, old in enumerate(plan.layers)}
        self._left = Left(spec, self.target, plan.layers)
        # An output layer that was tied is a rule of the cut model alone.
        of_all = (self.target.rules["model"], *spec.rules.values())
        self._read = {rule: norms for rules in of_all for rule, norms in norms_read(rules).items()}

    def makes(self, name: str) -> tuple[Made, ...]:
        """What comes of a tensor of the model: what the cut leaves of it, unless it goes, and of the embedding the
        output layer that shared it and is one of its own in the cut model."""
        rule, index = self.spec.find(name)
        new = self._renumbered(index)
        found = () if new is None else (Made(rule.pattern.rename(name, new), rule, index),)
        for output in self.target.rules["model"]:
            if output.tied_to == rule.name and output not in self.spec.rules["model"]:
                return *found, Made(output.pattern.format(index), output, {})
        return found

    def _renumbered(self, index: Mapping[str, int]) -> dict[str, int] | None:
        """The indices in a tensor's name after the cut; None for one that goes."""
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
        return new

    def shape(self, made: Made) -> tuple[int, ...]:
        """The shape that a tensor has after the cut."""
        sizes = self._left.sizes(layer_of(self.spec, made.index))
        return tuple(int(numel(dim, sizes)) for dim in made.rule.dims)

    def cut(self, made: Made, tensor: Tensor) -> Tensor:
        """What stays of a tensor; where that is all, the tensor itself."""
        # The same runs as of a file, so that the products of a projection are rounded alike.
        runs = row_runs(tuple(tensor.shape), tensor.numel() * tensor.element_size())
        if len(runs) == 1 or not self.in_runs(made):
            return self.cut_rows(made, tensor)
        parts = [(tensor[start:stop], start) for start, stop in runs]
        small = [self.cut_rows(made, rows, start) for rows, start in parts]
        if all(left is rows for left, (rows, _) in zip(small, parts, strict=True)):
            return tensor
        return _cat(small)

    def in_runs(self, made: Made) -> bool:
        """Whether a tensor may be cut a run of rows at a time: no row depends on another one."""
        rule = made.rule
        if len(rule.dims) < 2 or rule.norm is not None:
            return False
        if rule.is_stacked:
            return True
        if rule.transposed and (self.plan.rotates or rule.pattern.format(made.index) in self.plan.folds):
            return False
        layer, expert = layer_of(self.spec, made.index), made.index.get(EXPERT)
        cuts = {axis: pick(self.plan.keep, axis, layer, expert) for axis in axes_of(rule.dims[0])}
        return all(chosen is None or (isinstance(chosen, np.ndarray) and _ascends(chosen)) for chosen in cuts.values())

    def cut_rows(self, made: Made, rows: Tensor, start: int = 0) -> Tensor:
        """What stays of the `rows` of a tensor from `start` on: all of them, or a run where `in_runs` allows it.  What
        is not cut comes back bit for bit."""
        rule, index = made.rule, made.index
        name = rule.pattern.format(index)
        if self.plan.rotates and reads_stream(rule):
            (gain,) = self.plan.gains[name]
            assert rule.norm is not None
            return rows.new_full((self.target.sizes[HIDDEN],), gain - rule.norm.offset)
        whole = rows
        if self.plan.rotates and (norms := self._read.get(rule, ())):
            gains = _cat([self._gain(norm, index) for norm in norms]).to(rows.device)
            whole = _widened(rows) * (gains[:, None] if rule.transposed else gains)
        fold = self.plan.folds.get(name)
        if not rule.is_stacked:
            small = self._cut_matrix(whole, rule, index, fold, start)
        else:
            experts = [one for one in self._experts(layer_of(self.spec, index)) if start <= one < start + len(rows)]
            parts = [
                self._cut_matrix(whole[one - start], rule, {**index, EXPERT: one}, None if fold is None else fold[one])
                for one in experts
            ]
            small = _stack(parts) if parts else rows.new_empty((0, *self.shape(made)[1:]))
        return self._rescale(small, made, name).to(rows.dtype)

    def _cut_matrix(
        self, rows: Tensor, rule: Rule, index: Mapping[str, int], fold: NDArray[np.float32] | None, start: int = 0
    ) -> Tensor:
        """One expert's tensor, or of one that no experts share the rows from `start` on, cut along all dimensions."""
        layer, expert = layer_of(self.spec, index), index.get(EXPERT)

        def choose(axis: str) -> Cut | None:
            chosen = pick(self.plan.keep, axis, layer, expert)
            # Of queries and keys, which meet in a product, one side is projected and the other on the dual.
            reads = axis == rule.scaled_by or (rule.reads is not None and axis in axes_of(rule.reads))
            return chosen.flipped if isinstance(chosen, Basis) and reads else chosen

        dims, sizes = rule.matrix, self.spec.sizes_in(layer)
        if fold is None:
            return cut(rows, dims, sizes, choose, start)
        # The inputs that stay take over what those that go can be foretold from: that cuts the inputs.
        if not rule.transposed:
            return cut(_fold(rows, fold), dims[:-1], sizes, choose, start)
        return cut(_fold(rows.mT, fold), (dims[1],), sizes, choose).mT.contiguous()

    def _experts(self, layer: int | None) -> Iterable[int]:
        """The experts of a layer that stay."""
        kept = pick(self.plan.keep, EXPERT, layer, None)
        return kept.tolist() if isinstance(kept, np.ndarray) else range(self.spec.sizes_in(layer)[EXPERT])

    def _gain(self, norm: Rule, index: Mapping[str, int]) -> Tensor:
        if self.weights is None:
            raise ValueError("a rotated cut needs the weights of the model's norms")
        assert norm.norm is not None
        gain = _widened(self.weights(norm.pattern.format(index)))
        return gain + norm.norm.offset if norm.norm.offset else gain

    def _rescale(self, tensor: Tensor, made: Made, name: str) -> Tensor:
        rule, layer = made.rule, layer_of(self.spec, made.index)
        if factors := self.plan.gains.get(name):
            assert rule.norm is not None
            wide = _widened(tensor)
            groups, offset = wide.reshape(norm_groups(self.spec, rule, layer), -1), rule.norm.offset
            scale = wide.new_tensor(factors)[:, None]
            # Where the tensor holds the gain less one, it is the gain that is scaled.
            scaled = (groups + offset) * scale - offset if offset else groups * scale
            return scaled.reshape(tensor.shape).to(tensor.dtype)
        factor = self._factor(rule, layer)
        return tensor if factor == 1 else (_widened(tensor) * factor).to(tensor.dtype)

    def _factor(self, rule: Rule, layer: int | None) -> float:
        """By what a cut of an axis scales a linear that is no norm: queries by what the model divides their products
        with keys by, and writers of a scaled stream that no norm follows by what the embedding is scaled by."""
        axis = rule.scaled_by
        if self.spec.family.scales_stream(self.spec.told) and rule in self._stream_writers:
            axis = HIDDEN
        old, new = (sizes.get(axis) for sizes in (self.spec.sizes_in(layer), self._left.sizes(layer)))
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


def _ascends(indices: NDArray[np.int64]) -> bool:
    return bool(np.all(np.diff(indices) > 0))


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
