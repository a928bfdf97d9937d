"""Running a model layer by layer: all sequences through one layer, then all of them through the next.

    walk = LayerByLayer(source, blocks, batch_size, States())
    for layer in range(len(spec.layers)):
        with source.resident(layer):
            for batch, tokens in walk.go(layer):
                ...

Each layer's weights are in memory while its turn lasts; between layers only hidden states are kept.

Shape letters: B sequences of a batch, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from minitron.model.backbone import backbone
from minitron.model.layerwise import EMBEDDING, Part, final_norm_module, layers_module
from minitron.model.spec import ModelSpec


class PartByPart(Protocol):
    """A model whose parts are in memory when they are asked for (minitron.model.layerwise.LayerwiseModel)."""

    @property
    def spec(self) -> ModelSpec:
        """What it is made of."""

    @property
    def model(self) -> PreTrainedModel:
        """It, of which what is not in memory is on meta."""

    @property
    def device(self) -> torch.device:
        """Where its parts are when they are in memory."""

    def resident(self, *parts: Part) -> AbstractContextManager[None]:
        """Until the block ends these parts are in memory."""


def states_of(made: Any) -> Tensor:
    """The hidden states in what a layer returns: some models' layers return them first of several things."""
    found: Tensor = made[0] if isinstance(made, tuple) else made
    return found


@dataclass(frozen=True)
class Passed:
    """What a model gives a layer beside the hidden states."""

    places: tuple[Any, ...]
    """By their place behind the states."""

    names: Mapping[str, Any]
    """By their name."""

    def run(self, layer: nn.Module, states: Tensor) -> Tensor:
        """[B, T, H]: what the layer makes of the states [B, T, H]."""
        return states_of(layer(states, *self.places, **self.names))


class States:
    """Hidden states by name, in memory or in a folder on disk."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, Path] = {}

    def put(self, name: Hashable, states: Tensor) -> None:
        """Keep `states` in place of what had the name."""
        states = states.to("cpu")
        if self.folder is None:
            self._held[name] = states
            return
        path = self._files.setdefault(name, self.folder / f"states-{len(self._files)}.safetensors")
        save_file({"states": states.contiguous()}, path)

    def get(self, name: Hashable) -> Tensor:
        """The states of that name."""
        if self.folder is None:
            return self._held[name]
        states: Tensor = load_file(self._files[name])["states"]
        return states

    def drop(self, name: Hashable) -> None:
        """Let go of the states of that name."""
        self._held.pop(name, None)
        if name in self._files:
            self._files[name].unlink()


class LayerByLayer:
    """Sequences on their way through a model, a layer at a time."""

    def __init__(
        self, source: PartByPart, blocks: NDArray[np.int64], batch_size: int, states: States, name: str = "states"
    ) -> None:
        """Embeds the sequences `blocks` [S, T] and notes what the model passes to its layers."""
        self.source, self.model, self.states, self.name = source, source.model, states, name
        module = self.model.get_submodule(layers_module(source.spec))
        assert isinstance(module, nn.ModuleList)
        self.modules = list(module)
        self.norm = self.model.get_submodule(final_norm_module(source.spec))
        self.shapes: list[tuple[int, int]] = []
        self._passed: dict[tuple[int, int], list[Passed]] = {}
        parts = [blocks[start : start + batch_size] for start in range(0, len(blocks), batch_size)]
        with source.resident(EMBEDDING):
            for number, part in enumerate(parts):
                self._enter(number, torch.from_numpy(part))

    @property
    def batches(self) -> range:
        """The batches by number."""
        return range(len(self.shapes))

    def step(self, layer: int, batch: int, states: Tensor) -> Tensor:
        """What `layer`, which is in memory, makes of `states` [B, T, H], those of a batch."""
        return self._passed[self.shapes[batch]][layer].run(self.modules[layer], states.to(self.source.device))

    def go(self, layer: int) -> Iterator[tuple[int, int]]:
        """All batches through `layer`, which is in memory: (batch, tokens) of each that is through."""
        for batch in self.batches:
            self.states.put((self.name, batch), self.step(layer, batch, self.states.get((self.name, batch))))
            yield batch, self.shapes[batch][0] * self.shapes[batch][1]

    def state(self, batch: int) -> Tensor:
        """[B, T, H]: where a batch is, on the device."""
        return self.placed(self.states.get((self.name, batch)))

    def placed(self, states: Tensor) -> Tensor:
        """Kept states, on the device."""
        return states.to(self.source.device)

    def _enter(self, number: int, ids: Tensor) -> None:
        """Run the model with layers that do nothing but note what they are given."""
        seen: list[Passed] = []
        entries: list[Tensor] = []
        beside = self.source.spec.family.beside_states

        def note(states: Tensor, *places: Any, **names: Any) -> Any:
            entries.append(states)
            seen.append(Passed(places, names))
            return (states, *[None] * beside) if beside else states

        with ExitStack() as undo:
            for module in self.modules:
                undo.enter_context(_replaced(module, note))
            undo.enter_context(_replaced(self.norm, lambda states: states))
            backbone(self.model)(input_ids=ids.to(self.source.device), use_cache=False)
        shape = (ids.shape[0], ids.shape[1])
        self.shapes.append(shape)
        # Positions and masks of whole sequences follow from their shape alone.
        self._passed.setdefault(shape, seen)
        self.states.put((self.name, number), entries[0])


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Until the block ends the module runs another forward."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
