"""What other formats of caches cost the models that were measured: the KL divergence from the same model with its cache
as it is, states and keys and values rounded to nearest.

The numbers stand in benchmarks/RESULTS.md, "Caches in fewer bits", which benchmarks/caches.py writes; a test compares
them.  `minitron eval --kv ... --ssm-state ...` measures any model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BUILTIN: Final = "built-in model"
SMOLLM2: Final = "SmolLM2-135M-Instruct"

PRICES: Final[Mapping[tuple[str, str], Mapping[str, float]]] = {
    ("ssm_state", "bf16"): {BUILTIN: 2.54e-06},
    ("ssm_state", "fp16"): {BUILTIN: 7.66e-09},
    ("ssm_state", "int8"): {BUILTIN: 2.51e-05},
    ("ssm_state", "fp8"): {BUILTIN: 0.000101},
    ("kv", "fp8"): {BUILTIN: 2.62e-05, SMOLLM2: 0.00652},
    ("kv", "int8"): {BUILTIN: 6.96e-06, SMOLLM2: 0.000663},
    ("kv", "nvfp4"): {BUILTIN: 0.000185, SMOLLM2: 0.075},
}
"""(field of Workload, format) -> model -> KL in nats."""


def price(field: str, form: str) -> str:
    """What is known of it, for a person; empty where nothing was measured."""
    found = PRICES.get((field, form), {})
    return ", ".join(f"{kl:.2g} on {model}" for model, kl in found.items())
