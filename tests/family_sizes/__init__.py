"""Sizes of tiny models of every type: what a family's conformance test runs on."""

from typing import Any

from family_sizes.dense import DENSE
from family_sizes.hybrids import HYBRIDS
from family_sizes.mixtures import MIXTURES
from family_sizes.state_space import STATE_SPACE
from family_sizes.wrappers import WRAPPERS

FAMILY_SIZES: dict[str, list[dict[str, Any]]] = DENSE | MIXTURES | HYBRIDS | STATE_SPACE | WRAPPERS
"""model_type -> tiny configs.  A family is not in before it has some here."""

__all__ = ["FAMILY_SIZES"]
