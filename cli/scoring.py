"""The options by which a model is scored, by `score` itself and on the way of `prune` and `compress`."""

from pathlib import Path
from typing import Annotated, Final

import typer

from cli.option_groups import Option
from cli.options import (
    BatchSizeOption,
    DtypeOption,
    SamplesOption,
    SeedOption,
    SequenceLengthOption,
    option,
    tokens_option,
)
from importance.score.estimators import BEST, ESTIMATORS, find_estimator


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


SCORING: Final[dict[str, Option]] = {
    "samples": Option(typer.Option("--samples", min=1, help="Sequences of calibration text, at most.")),
    "sequence_length": Option(tokens_option("--sequence-length", "Tokens of one calibration sequence.")),
    "batch_size": Option.of(BatchSizeOption),
    "estimator": Option.of(EstimatorOption),
    "seed": Option(typer.Option("--scoring-seed", min=0, help="The seed of the estimator's random numbers.")),
    "layers": Option(
        typer.Option(
            "--layer-scores", help="Judge layers by removing one after the other, by block influence, or not at all."
        )
    ),
    "layer_samples": Option(typer.Option("--layer-samples", min=1, help="Sequences on which layers are removed.")),
    "refit": Option.of(RefitOption),
    "dtype": Option(typer.Option("--scoring-dtype", help="The numbers that the model computes in while it is scored.")),
    "offload": Option.of(OffloadOption),
    "offload_folder": Option.of(OffloadFolderOption),
}
"""Field of importance.score.options.ScoringOptions -> how it is typed where a command scores on the way."""

SCORE: Final[dict[str, Option]] = SCORING | {
    "samples": Option.of(SamplesOption),
    "sequence_length": Option.of(SequenceLengthOption),
    "seed": Option.of(SeedOption),
    "layers": Option(
        typer.Option(
            "--layers", help="Judge layers by removing one after the other, by block influence, or not at all."
        )
    ),
    "layer_samples": Option(
        typer.Option("--layer-samples", min=1, help="Sequences on which layers are removed one after the other.")
    ),
    "max_dropped": Option(
        option("--max-dropped", "Layers to remove one after the other; half of them unless given.", min=1)
    ),
    "dtype": Option.of(DtypeOption),
}
"""The same for `minitron score`, which does nothing else."""
