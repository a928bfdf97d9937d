"""The options by which a model is scored, for the commands that score on the way: `prune` and `compress`."""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import spread_options
from cli.options import ComputeDtype, count_option
from importance.score.estimators import BEST, ESTIMATORS, find_estimator
from minitron.progress import Progress

if TYPE_CHECKING:
    from minitron.cut.scores import Scores


class LayerScores(StrEnum):
    """How layers are judged."""

    ITERATIVE = "iterative"
    FAST = "fast"
    NONE = "none"


def _estimator(name: str) -> str:
    """`name`, if there is such an estimator; raises MinitronError for any other."""
    find_estimator(name)
    return name


EstimatorOption = Annotated[
    str,
    typer.Option(
        "--estimator",
        parser=_estimator,
        help=f"What a channel counts by; {BEST}: what measured best for each axis; "
        f"{'; '.join(f'{name}: {estimator.summary}' for name, estimator in ESTIMATORS.items())}.",
        metavar="NAME",
    ),
]


RefitOption = Annotated[
    bool,
    typer.Option(
        "--refit/--no-refit",
        help="Take the second moments of what linears read, so that a cut fits them to the inputs that stay.",
    ),
]


OffloadOption = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Score layer by layer, one layer's weights in memory at a time: for models larger than memory.",
    ),
]
OffloadFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--offload-folder",
        help="Folder on disk for hidden states while scoring layer by layer; in memory unless given.",
        metavar="FOLDER",
        show_default=False,
    ),
]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What was typed."""

    samples: Annotated[int, typer.Option("--samples", min=1, help="Sequences of calibration text, at most.")] = 1024
    sequence_length: Annotated[
        int,
        typer.Option(
            "--sequence-length", parser=count_option, help="Tokens of one calibration sequence.", metavar="TOKENS"
        ),
    ] = 4096
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")] = 1
    estimator: EstimatorOption = BEST
    scoring_seed: Annotated[
        int, typer.Option("--scoring-seed", min=0, help="The seed of the estimator's random numbers.")
    ] = 0
    layer_scores: Annotated[
        LayerScores,
        typer.Option(
            "--layer-scores", help="Judge layers by removing one after the other, by block influence, or not at all."
        ),
    ] = LayerScores.ITERATIVE
    layer_samples: Annotated[
        int, typer.Option("--layer-samples", min=1, help="Sequences on which layers are removed.")
    ] = 16
    refit: RefitOption = True
    scoring_dtype: Annotated[
        ComputeDtype, typer.Option("--scoring-dtype", help="The numbers that the model computes in while it is scored.")
    ] = ComputeDtype.BF16
    offload: OffloadOption = False
    offload_folder: OffloadFolderOption = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was typed, as JSON."""
        return {name: str(value) if isinstance(value, StrEnum | Path) else value for name, value in vars(self).items()}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of importance.score.calibrate.calibrate."""
        return {
            "samples": self.samples,
            "sequence_length": self.sequence_length,
            "batch_size": self.batch_size,
            "estimator": self.estimator,
            "seed": self.scoring_seed,
            "refit": self.refit,
            "layers": self.layer_scores.value,
            "layer_samples": self.layer_samples,
            "dtype": self.scoring_dtype.value,
            "offload": self.offload,
            "offload_folder": self.offload_folder,
        }

    def run(self, model: Path, data: Path, *, place: Path, device: str | None, progress: Progress) -> "Scores":
        """The scores of `model` on the text `data`; `place` is a folder for what is too large for memory."""
        from importance.score.calibrate import calibrate

        return calibrate(model, data, moments_folder=place, device=device, progress=progress, **self.arguments)


def takes_scoring(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `scoring` spread out into the options of Scoring, as typer reads them."""
    return spread_options(function, "scoring", Scoring)
