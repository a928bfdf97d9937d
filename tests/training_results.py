"""The results of a distillation, made up."""

import math
from typing import Any

DRIFT = {
    "kl": 0.00125, "top1_agreement": 0.975, "perplexity": 20.0, "tokens": 512, "weights": 9, "stored_bytes": 2**20,
    "bf16_bytes": 2**21,
}  # fmt: skip


def results(**changed: Any) -> dict[str, Any]:
    curve = [
        {"step": step, "tokens": 64 * step, "kl": kl, "perplexity": 30.0, "top1_agreement": 0.5}
        for step, kl in ((0, 2.0), (400, 0.5), (1000, 0.75))
    ]
    return {
        "teacher_precision": "fp8", "perplexity_teacher": 19.0, "drift": DRIFT, "tokens": 64_000, "steps": 1000,
        "skipped_steps": 2, "seconds": 32.0, "tokens_per_s": 2000.0, "selected_step": 400, "curve": curve,
    } | changed  # fmt: skip


def losses() -> list[float]:
    return [math.nan if step in (0, 1) else 1 / (step + 1) for step in range(1000)]
