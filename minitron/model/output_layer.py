"""The output layer of a loaded model, as all use it who make logits of hidden states.

Shape letters: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minitron.model.families import FAMILIES
from minitron.model.families.family import value_of
from minitron.model.families.logits import PLAIN, LogitMap


@dataclass(frozen=True)
class OutputLayer:
    """Makes logits of hidden states."""

    module: nn.Module
    """The linear."""

    map: LogitMap = PLAIN
    """What is done to its products."""

    def __call__(self, states: Tensor) -> Tensor:
        """[N, V] in fp32 of the states [N, H]; the products are made in the type of the model."""
        return self.map(self.module(as_read(states, self.weight)).float())

    @property
    def weight(self) -> Tensor:
        """[V, H]."""
        return self.module.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """[V]; None for most models."""
        return bias_of(self.module)

    @property
    def is_rounded(self) -> bool:
        """Whether the layer runs with other numbers than its parameter holds (`let_run_with`)."""
        return hasattr(self.module, _ROUNDED)

    @property
    def matrix(self) -> Tensor:
        """[V, H], or [V, H + 1] of a layer with a bias: the products are this times `widened` states."""
        weight: Tensor = getattr(self.module, _ROUNDED)() if self.is_rounded else self.weight
        return weight if self.bias is None else torch.cat([weight, self.bias[:, None]], 1)


_ROUNDED: Final = "minitron_rounded"


def let_run_with(module: nn.Module, rounded: Callable[[], Tensor]) -> None:
    """Let who makes logits with the matrix of an output layer, without running the layer, use what `rounded` gives."""
    setattr(module, _ROUNDED, rounded)


def bias_of(module: nn.Module) -> Tensor | None:
    """[V]: the bias of a linear; None where it has none."""
    found: Tensor | None = getattr(module, "bias", None)
    return found


def widened(states: Tensor, matrix: Tensor) -> Tensor:
    """The states [.., H] as the `matrix` of an output layer reads them: one wider where it holds a bias."""
    if states.shape[-1] == matrix.shape[-1]:
        return states
    return torch.cat([states, states.new_ones(*states.shape[:-1], 1)], -1)


def as_read(states: Tensor, weight: Tensor) -> Tensor:
    """The states [.., H] as an output layer of that weight reads them.  The stream of some models (Mamba) is in fp32
    whatever their weights are in, and transformers brings it to the layer's own type."""
    return states.to(weight.dtype) if states.dtype.itemsize > weight.dtype.itemsize else states


def output_layer(model: PreTrainedModel) -> OutputLayer:
    """That of a model; one of a family that Minitron has no table for is taken to have plain logits."""
    return OutputLayer(model.get_output_embeddings(), logit_map(model))


def logit_map(model: PreTrainedModel) -> LogitMap:
    """What a model does to the products of its output layer, by its own config."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return PLAIN
    config = model.config.get_text_config().to_dict()
    return family.logits.read(partial(value_of, config, family.defaults))
