"""The request of an evaluation: its settings, as plain data without torch."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from minitron.errors import require_known, require_least
from minitron.measure.cache_options import CacheOptions

Dtype = Literal["bf16", "fp32"]
"""The numbers that a model computes in."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured of checkpoints, and on how much."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval: names, or YAML files."""

    task_limit: int | None = None
    """Items of a task that are asked; None is all."""

    sequence_length: int = 1024
    """Tokens of one sequence."""

    samples: int | None = None
    """Sequences, at most, spread over the text; None is all."""

    batch_size: int = 1
    """Sequences in one forward pass."""

    dtype: Dtype = "bf16"
    """The numbers that the models compute in, a name in minitron.model.loading.DTYPES."""

    speed: bool = True
    """Whether tokens per second and peak memory are measured, each model in a process of its own."""

    caches: CacheOptions = field(default_factory=CacheOptions)
    """Formats of keys, values and states whose cost is measured."""

    def __post_init__(self) -> None:
        require_least(self, {"task_limit": 1, "sequence_length": 1, "samples": 1, "batch_size": 1})
        require_known(self, {"dtype": get_args(Dtype)})

    def to_json(self) -> dict[str, Any]:
        """All fields but the choice to measure speed."""
        return {name: value for name, value in asdict(self).items() if name != "speed"} | {"tasks": list(self.tasks)}
