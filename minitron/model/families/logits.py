"""What stands between the output layer's products and the logits: nothing for most models, a factor, a soft cap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from minitron.model.families.factors import positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LogitMap:
    """z = cap * tanh(factor * x / cap), number by number, of the output layer's products x; z = factor * x without a
    cap."""

    factor: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the products are the logits."""
        return self == PLAIN

    def __call__(self, products: Tensor) -> Tensor:
        """The logits, in the type of the products; a tensor of its own unless the map is plain."""
        if self.cap is not None:
            return (products * (self.factor / self.cap)).tanh() * self.cap
        return products if self.factor == 1.0 else products * self.factor

    def pull_back(self, slope: Tensor, products: Tensor) -> Tensor:
        """dL/dx from the slope dL/dz: dz/dx = factor * (1 - tanh(factor * x / cap)^2); may overwrite `slope`."""
        if self.cap is not None:
            tangent = (products.to(slope.dtype) * (self.factor / self.cap)).tanh()
            slope = slope.mul_(1 - tangent.square_())
        return slope if self.factor == 1.0 else slope.mul_(self.factor)


PLAIN: Final = LogitMap()
"""The products are the logits."""


_NEED: Final = "logits need"


@dataclass(frozen=True)
class Logits:
    """The config keys of a family's LogitMap; empty for what its models do not have."""

    factor: str = ""
    """The key of a number that the products are multiplied by."""

    divisor: str = ""
    """The key of a number that they are divided by."""

    cap: str = ""
    """The key of the soft cap; null for none."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(key for key in (self.factor, self.divisor, self.cap) if key)

    def read(self, value: Callable[[str], Any]) -> LogitMap:
        """The map of a config, of which `value` says what stands under a key; raises MinitronError for what is no
        positive number."""
        factor = positive(self.factor, value(self.factor), _NEED) if self.factor else 1.0
        if self.divisor:
            factor /= positive(self.divisor, value(self.divisor), _NEED)
        capped = bool(self.cap) and value(self.cap) is not None
        return LogitMap(factor, positive(self.cap, value(self.cap), _NEED) if capped else None)


PRODUCTS: Final = Logits()
"""Those of most families: no key, so that products are logits."""
