"""The request of scoring: its settings, as plain data without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from importance.score.estimators import BEST
from minitron.errors import MinitronError, require_known, require_least
from minitron.measure.options import Dtype

LayerMethod = Literal["iterative", "fast", "none"]
"""How layers are scored: by removing one after the other, by block influence in the same pass, or not at all."""

SAMPLES: Final = 1024
SEQUENCE_LENGTH: Final = 4096
LAYER_SAMPLES: Final = 16


@dataclass(frozen=True)
class ScoringOptions:
    """How a model is scored on a text."""

    samples: int = SAMPLES
    """Sequences of the text, at most."""

    sequence_length: int = SEQUENCE_LENGTH
    """Tokens of one of them: sequences are never shortened on the quiet."""

    batch_size: int = 1
    """Sequences in one forward pass."""

    estimator: str = BEST
    """What scores channels, a name in importance.score.estimators.ESTIMATORS."""

    seed: int = 0
    """Of the estimator's random numbers."""

    refit: bool = True
    """Whether the second moments of what linears read are taken too, by which a cut fits them to the inputs that stay
    (minitron.cut.refit)."""

    layers: LayerMethod = "iterative"
    """How layers are scored (importance.score.depth)."""

    layer_samples: int = LAYER_SAMPLES
    """Of the sequences so many, spread evenly, on which layers are removed one after the other."""

    max_dropped: int | None = None
    """Layers to remove so; None is half of them."""

    dtype: Dtype = "bf16"
    """The numbers that the model computes in, a name in minitron.model.loading.DTYPES."""

    offload: bool = False
    """Whether one layer's weights are in memory at a time, for models larger than memory."""

    offload_folder: Path | None = None
    """Where hidden states are kept while layers come and go; None is in memory."""

    def __post_init__(self) -> None:
        require_least(
            self, dict.fromkeys(("samples", "sequence_length", "batch_size", "layer_samples", "max_dropped"), 1)
        )
        require_known(self, {"layers": get_args(LayerMethod), "dtype": get_args(Dtype)})
        if self.offload_folder is not None and not self.offload:
            raise MinitronError("--offload-folder needs --offload; give both, or drop it.")

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self) | {"offload_folder": None if self.offload_folder is None else str(self.offload_folder)}
