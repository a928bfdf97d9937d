"""Where the tensors of a checkpoint are in memory: one map for all who read, cut, observe or write a loaded model.

transformers keeps the experts of a layer as rows of one tensor, joins gate and up, and renames modules.  The rules say
so (Rule.memory); from them follows, for every parameter in memory, of which tensors on disk it is made.

Shape letters: E experts, R rows (outputs) and C columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitron.model.axes import EXPERT
from minitron.model.dims import Name, numel
from minitron.model.families import Rule
from minitron.model.spec import ModelSpec
from minitron.model.tensors import Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Held:
    """A parameter or buffer in memory."""

    name: str
    """In the model's state_dict."""

    parts: tuple[tuple[Expected, ...], ...]
    """The tensors on disk of which it is made: one part a rule, joined along their first dimension; a part is one
    tensor, or one an expert."""

    @property
    def is_stacked(self) -> bool:
        """Whether the experts' tensors become rows along a new first dimension."""
        return EXPERT in self.parts[0][0].index

    @property
    def expected(self) -> tuple[Expected, ...]:
        """All tensors on disk, part by part."""
        return tuple(one for part in self.parts for one in part)

    @property
    def shape(self) -> tuple[int, ...]:
        """[E, R, C] of experts, else that of the tensors on disk but for the joined first dimension; [] of a number."""
        first = self.parts[0][0].shape
        if not first:
            return first
        joined = (sum(part[0].shape[0] for part in self.parts), *first[1:])
        return (len(self.parts[0]), *joined) if self.is_stacked else joined

    def split(self, tensor: Tensor) -> Iterator[tuple[Expected, Tensor]]:
        """The tensors on disk as views of the one in memory."""
        start = 0
        for part in self.parts:
            length = part[0].shape[0] if part[0].shape else 1
            for row, one in enumerate(part):
                whole = tensor[row] if self.is_stacked else tensor
                yield one, whole if len(self.parts) == 1 else whole.narrow(0, start, length)
            start += length

    def assemble(self, get: Callable[[Expected], Tensor], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor in memory from those on disk, which are read one at a time: a list of all experts beside their
        stack would take the layer twice."""
        import torch

        whole = torch.empty(self.shape, dtype=dtype, device=device)
        for one, place in self.split(whole):
            place.copy_(get(one))
        return whole


def held(spec: ModelSpec, *, mtp: bool = False) -> Iterator[Held]:
    """Every tensor in memory of the language model, layer by layer; with `mtp` of its multi-token-prediction block
    instead."""
    parts: dict[str, dict[Rule, list[Expected]]] = {}
    for one in spec.expected():
        if one.is_mtp == mtp and not one.is_aside:
            parts.setdefault(memory_name(one.rule, one.index), {}).setdefault(one.rule, []).append(one)
    for name, rules in parts.items():
        yield Held(name, tuple(tuple(part) for part in rules.values()))


def tied_names(spec: ModelSpec) -> dict[str, str]:
    """Name in memory of an output layer -> that of the embedding whose numbers it shares; empty where it has its
    own."""
    if not spec.is_tied:
        return {}
    rules = {rule.name: rule for rule in spec.family.rules["model"]}
    return {memory_name(rule, {}): memory_name(rules[rule.tied_to], {}) for rule in rules.values() if rule.tied_to}


def memory_name(rule: Rule, index: Mapping[str, int]) -> str:
    """The name in memory of a tensor; of an expert's that of the tensor of all experts."""
    return Name(rule.memory).format(index) if rule.memory else rule.pattern.format(index)


def module_name(rule: Rule, layer: int | None) -> str:
    """The module in memory that holds a rule's tensor; of experts the module of all of them."""
    return _split(rule, layer)[0]


def norm_module(rule: Rule, layer: int | None) -> str:
    """The module that does what a norm's gain belongs to."""
    assert rule.norm is not None
    return Name(rule.norm.module).format({"layer": layer or 0}) if rule.norm.module else module_name(rule, layer)


def parameter_name(rule: Rule, layer: int | None) -> str:
    """The name of a rule's parameter within its module: `weight`, or `down_proj` of experts."""
    return _split(rule, layer)[1]


def _split(rule: Rule, layer: int | None) -> tuple[str, str]:
    module, _, attribute = memory_name(rule, {"layer": layer or 0}).rpartition(".")
    return module, attribute


def weight_of(model: nn.Module, spec: ModelSpec, rule: Rule, layer: int | None) -> Tensor:
    """[R, C], or [E, R, C] of experts: a rule's weights in a loaded model as a view, outputs before inputs."""
    module, attribute = _split(rule, layer)
    whole: Tensor = model.get_submodule(module).get_parameter(attribute)
    kind = "model" if layer is None else spec.layers[layer]
    sharing = [other for other in spec.rules[kind] if other.memory and other.memory == rule.memory]
    if len(sharing) > 1:
        rows = [int(numel(other.matrix[0], spec.at(kind, spec.sizes))) for other in sharing]
        place = sharing.index(rule)
        whole = whole.narrow(1 if rule.per_expert else 0, sum(rows[:place]), rows[place])
    return whole.mT if rule.transposed else whole
