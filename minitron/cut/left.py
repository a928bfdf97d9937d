"""What is left of a model: the layers that stay, and how large each of them is afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from minitron.model.spec import ModelSpec


class Left:
    """Of one cut.  Layers have the numbers of the model that is cut, those of the multi-token-prediction block count on
    from its last one, and None is what stands outside layers."""

    def __init__(self, spec: ModelSpec, target: ModelSpec, layers: tuple[int, ...]) -> None:
        """`target` is what is left of `spec` when `layers` stay."""
        self._target, self._count = target, len(spec.layers)
        self._number = {layer: new for new, layer in enumerate(layers)}

    def stays(self, layer: int | None) -> bool:
        """Whether a layer is one of those that stay, as the prediction block's do."""
        return layer is None or layer >= self._count or layer in self._number

    def sizes(self, layer: int | None) -> Mapping[str, int]:
        """axis -> its size in a layer that stays."""
        if layer is None:
            return self._target.sizes
        new = self._number[layer] if layer < self._count else layer - self._count + len(self._number)
        return self._target.sizes_in(new)
