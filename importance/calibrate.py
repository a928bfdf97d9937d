"""A checkpoint and a text in, Scores out."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from importance.covariance import covariance, observing_covariance
from importance.depth import removal_scores
from importance.estimators import Estimator, Totals, find_estimator
from importance.moments import Moments
from importance.observe import block_influence, energy, importance, observing
from importance.spaces import bases, observing_spaces
from importance.surgeon import surgeon_scores
from minitron.errors import MinitronError
from minitron.loading import DTYPES, find_device, load_model, load_tokenizer
from minitron.progress import Progress, silent
from minitron.scores import Key, Scores
from minitron.spec import ModelSpec, read_spec
from minitron.text import text_hash, token_blocks

LayerMethod = Literal["iterative", "fast", "none"]
"""How layers are judged: by removing one after the other, by block influence in the same pass, or not at all."""

SAMPLES: Final = 1024
SEQUENCE_LENGTH: Final = 4096
LAYER_SAMPLES: Final = 16
ESTIMATOR: Final = "activation"


def calibrate(
    model_folder: Path,
    data: Path,
    *,
    samples: int = SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    batch_size: int = 1,
    estimator: str = ESTIMATOR,
    seed: int = 0,
    refit: bool = True,
    layers: LayerMethod = "iterative",
    layer_samples: int = LAYER_SAMPLES,
    max_dropped: int | None = None,
    dtype: str = "bf16",
    device: str | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score the model in `model_folder` on the text in `data`, in one forward pass over it and, for layers, a few more.

    Reads `samples` sequences of `sequence_length` tokens, or as many as the text holds: the settings of the scores say
    how many it was.  Raises MinitronError where the text holds not one whole sequence or the model's rotary positions
    do not reach `sequence_length`: sequences are never shortened on the quiet.  `dtype` is a name in loading.DTYPES.
    For the rest see `score_model`."""
    started = time.monotonic()
    find_estimator(estimator)
    spec = read_spec(model_folder)
    blocks = token_blocks(load_tokenizer(model_folder), data, sequence_length=sequence_length, samples=samples)
    model = load_model(model_folder, dtype=DTYPES[dtype], device=find_device(device))
    scores = score_model(
        model,
        spec,
        blocks,
        data=text_hash(data),
        batch_size=batch_size,
        estimator=estimator,
        seed=seed,
        refit=refit,
        layers=layers,
        layer_samples=layer_samples,
        max_dropped=max_dropped,
        progress=progress,
    )
    return replace(scores, settings={**scores.settings, "seconds": round(time.monotonic() - started, 3)})


def score_model(
    model: PreTrainedModel,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    *,
    data: str = "",
    batch_size: int = 1,
    estimator: str = ESTIMATOR,
    seed: int = 0,
    refit: bool = True,
    layers: LayerMethod = "iterative",
    layer_samples: int = LAYER_SAMPLES,
    max_dropped: int | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score a loaded model, whose spec is `spec`, on the sequences `blocks` [S, T].

    `estimator`, a name in importance.estimators.ESTIMATORS, judges channels; `seed` is that of its random numbers.
    `refit` also takes the second moments of what linears read, by which a cut fits them to the inputs that stay
    (minitron.refit).  `layers` is "iterative" (see importance.depth: `layer_samples` of the sequences, spread evenly,
    and `max_dropped` removals, half of the layers unless given), "fast" (block influence over all sequences, in the
    same pass) or "none".
    `data` is the text's SHA-256; the hash of the token ids stands in for it.  The model is put in eval mode for the
    while.  Raises MinitronError for an unknown estimator, token ids that the model has no embedding for and results
    that are not finite."""
    judge = find_estimator(estimator)
    if judge.surgeon and not refit:
        raise MinitronError(f"the estimator {estimator} needs second moments; leave --no-refit out.")
    _check(model, blocks)
    settings: dict[str, Any] = {
        "samples": blocks.shape[0],
        "sequence_length": blocks.shape[1],
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "estimator": estimator,
        "seed": seed,
        "refit": refit,
        "layers": layers,
    }
    training = model.training
    model.eval()
    try:
        moments = Moments(spec, blocks.size) if refit else None
        totals = _observe(model, spec, blocks, batch_size, judge, layers == "fast", moments, progress)
        found = importance(spec, totals, estimator=judge, seed=seed)
        seen = covariance(totals)
        projected = bases(model, spec, totals)
        ridges: dict[Key, float] = {}
        if moments is not None:
            surgeon, ridges = surgeon_scores(model, spec, totals, moments, judge=judge.surgeon)
            found |= surgeon
            seen |= {key: moments.matrix(totals, site).astype(np.float32) for key, site in moments.sites.items()}
        if layers == "fast":
            found["layer", None] = block_influence(spec, totals)
        elif layers == "iterative":
            some = blocks[spread(len(blocks), layer_samples)]
            found["layer", None], dropped = removal_scores(
                model, spec, some, batch_size=batch_size, max_dropped=max_dropped, progress=progress
            )
            settings |= {"layer_samples": len(some), "max_dropped": dropped}
    finally:
        model.train(training)
    data = data or hashlib.sha256(blocks.tobytes()).hexdigest()
    return Scores(found, energy(spec, totals), spec.fingerprint, data, settings, seen, ridges, projected)


@torch.inference_mode()
def _observe(
    model: PreTrainedModel,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    batch_size: int,
    estimator: Estimator,
    influence: bool,
    moments: Moments | None,
    progress: Progress,
) -> Totals:
    """One forward pass over all sequences; no logits are made, for nothing is read off them."""
    totals = Totals()
    with (
        observing(model, spec, totals, estimator=estimator, influence=influence, moments=moments),
        observing_covariance(model, spec, totals),
        observing_spaces(model, spec, totals, blocks.size),
        progress("Scoring", float(blocks.size), "tokens") as advance,
    ):
        for start in range(0, len(blocks), batch_size):
            ids = torch.from_numpy(blocks[start : start + batch_size])
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
            advance(ids.numel())
    return totals


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` of `count` indices, spread evenly from the first to the last."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


def _check(model: PreTrainedModel, blocks: NDArray[np.int64]) -> None:
    embeddings = model.get_input_embeddings().weight.shape[0]
    if blocks.max() >= embeddings:
        raise MinitronError(
            f"the tokenizer gives the token id {blocks.max()} and the model has {embeddings} embeddings; "
            "use the tokenizer that the model was trained with."
        )
    # Models without rotary embeddings (Nemotron-H) read sequences of any length, whatever their config says.
    reach = getattr(model.config, "max_position_embeddings", None)
    if getattr(model.config, "rope_parameters", None) and reach and blocks.shape[1] > reach:
        raise MinitronError(
            f"sequences of {blocks.shape[1]} tokens are longer than the {reach} positions of this model; "
            f"give --sequence-length {reach} or less."
        )
