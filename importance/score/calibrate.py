"""Calibration: runs a checkpoint over a text and returns Scores."""

import hashlib
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from importance.score.blocks import split_blocks
from importance.score.calibration_pass import CalibrationPass
from importance.score.clock import LAYERS, PASS
from importance.score.depth import removal_scores
from importance.score.estimators import ByAxis, Estimator, find_estimator
from importance.score.fisher import InMemory, output_moments
from importance.score.gradients import run_and_return
from importance.score.layerwise_depth import layerwise_removal_scores
from importance.score.options import ScoringOptions
from minitron.arrays import spread
from minitron.cut.scores import Key, Scores
from minitron.cut.selection import require_cuttable
from minitron.errors import MinitronError
from minitron.files import scratch, shared_scratch
from minitron.measure.records import Source
from minitron.measure.text import token_blocks
from minitron.model.backbone import backbone
from minitron.model.identity import weights_of
from minitron.model.layer_by_layer import LayerByLayer, PartByPart, States
from minitron.model.layerwise import OUTPUT, LayerwiseModel
from minitron.model.loading import DTYPES, find_device, load_model, load_tokenizer
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.stored import require_plain
from minitron.progress import Progress, silent


def calibrate(
    model_folder: Path,
    data: Path,
    options: ScoringOptions | None = None,
    *,
    held_back: int = 0,
    device: str | None = None,
    output: Path | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score the model in `model_folder` on the text in `data`, in one forward pass over it and, for layers, a few more.

    Reads as many sequences as the text holds where those are fewer than asked for: the settings of the scores say how
    many it was.  Raises MinitronError where the text holds not one whole sequence or the model's rotary positions do
    not reach that far.  `held_back` sequences of the text are left for others to measure on (`calibration_blocks`).
    Scored layer by layer, second moments, which are large, are kept in a folder beside `output` while it lasts, or
    where the hidden states are.  For the rest see `score_model` and `score_layerwise`."""
    started, options = time.monotonic(), options or ScoringOptions()
    find_estimator(options.estimator)
    require_plain(model_folder)
    # Before they are read: other weights in their place during the run are found by whoever uses the scores.
    weights = weights_of(model_folder)
    spec = read_spec(model_folder)
    require_cuttable(spec)
    blocks, _ = calibration_blocks(model_folder, data, options, held_back=held_back)
    dtype, text = DTYPES[options.dtype], Source(str(data)).fingerprint()
    if options.offload:
        source = LayerwiseModel(model_folder, spec, dtype=dtype, device=find_device(device))
        with (
            _between(options.offload_folder) as folder,
            nullcontext(folder) if output is None else scratch(output) as large,
        ):
            scores = score_layerwise(
                source, blocks, options, data=text, folder=folder, moments_folder=large, progress=progress
            )
    else:
        model = load_model(model_folder, dtype=dtype, device=find_device(device))
        scores = score_model(model, spec, blocks, options, data=text, progress=progress)
    return replace(
        scores,
        weights=weights,
        settings={
            **scores.settings,
            **({"held_back": held_back} if held_back else {}),
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def _between(folder: Path | None) -> AbstractContextManager[Path | None]:
    """A folder in `folder` that is gone when the block ends: what is mapped from it stays readable."""
    return nullcontext() if folder is None else shared_scratch(folder)


def calibration_blocks(
    model_folder: Path, data: Path, options: ScoringOptions, *, held_back: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([S, T] to score on, [held_back, T] that no score sees) of the text in `data`.

    Raises MinitronError where the text is too short for both."""
    tokenizer = load_tokenizer(model_folder)
    samples = options.samples + held_back
    blocks = token_blocks(tokenizer, data, sequence_length=options.sequence_length, samples=samples)
    return split_blocks(blocks, held_back) if held_back else (blocks, blocks[:0])


def score_model(
    model: PreTrainedModel,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    options: ScoringOptions | None = None,
    *,
    data: str = "",
    progress: Progress = silent,
) -> Scores:
    """Score a loaded model, whose spec is `spec`, on all of the sequences `blocks` [S, T].

    Layers are scored iteratively on `options.layer_samples` of the sequences, spread evenly; the fast method reads all
    of them, in the same pass as everything else.  `data` is the text's SHA-256; the hash of the token ids stands in
    for it.  The model is put in eval mode for the while.  Raises MinitronError for an unknown estimator, token ids that
    the model has no embedding for and results that are not finite."""
    run = _Run(spec, blocks, options or ScoringOptions(), data)
    run.check(model)
    findings = run.findings(model)
    depth: dict[Key, Any] = {}
    training, asked = model.training, run.options
    model.eval()
    told: dict[str, Any] = {}
    try:
        told = run.weigh(InMemory(model, spec), findings, progress)
        _observe(model, findings, blocks, asked.batch_size, progress)
        with progress("Ranking", float(len(spec.layers)), "layers") as advance:
            for layer in range(len(spec.layers)):
                findings.finish(layer)
                advance(1.0)
        if asked.layers == "iterative":
            with findings.clock.part(LAYERS):
                depth["layer", None], dropped = removal_scores(
                    model, spec, run.some, batch_size=asked.batch_size, max_dropped=asked.max_dropped, progress=progress
                )
    finally:
        model.train(training)
    told |= {"layer_samples": len(run.some), "max_dropped": dropped} if depth else {}
    return findings.scores(depth, run.data_hash, run.settings(model) | told)


def score_layerwise(
    source: LayerwiseModel,
    blocks: NDArray[np.int64],
    options: ScoringOptions | None = None,
    *,
    data: str = "",
    folder: Path | None = None,
    moments_folder: Path | None = None,
    progress: Progress = silent,
) -> Scores:
    """As `score_model`, the same numbers, with no more than one layer's weights in memory at a time.

    All sequences go through a layer before the next one is read.  Hidden states, 1 [S, T, H] and for layers removed
    one by one as many of `options.layer_samples` sequences as there are layers, stay in memory or in `folder` on disk;
    second moments stay in memory or are mapped from files in `moments_folder`."""
    spec, model = source.spec, source.model
    run = _Run(spec, blocks, options or ScoringOptions(), data)
    asked = run.options
    run.check(model)
    if run.estimator.gradients:
        raise MinitronError(
            f"the estimator {asked.estimator} needs gradients, and so the whole model in memory; drop "
            "--offload or choose another estimator."
        )
    findings = run.findings(model, moments_folder)
    depth: dict[Key, Any] = {}
    told = run.weigh(source, findings, progress, folder)
    _observe_layerwise(source, findings, blocks, asked.batch_size, States(folder), progress)
    if asked.layers == "iterative":
        with findings.clock.part(LAYERS):
            depth["layer", None], dropped = layerwise_removal_scores(
                source,
                run.some,
                States(folder),
                batch_size=asked.batch_size,
                max_dropped=asked.max_dropped,
                progress=progress,
            )
    told |= {"layer_samples": len(run.some), "max_dropped": dropped} if depth else {}
    return findings.scores(depth, run.data_hash, run.settings(model) | told | {"offload": True})


@dataclass(frozen=True)
class _Run:
    """What was asked for, and what follows from it however the model is run."""

    spec: ModelSpec
    blocks: NDArray[np.int64]
    options: ScoringOptions
    data: str

    @cached_property
    def estimator(self) -> Estimator | ByAxis:
        """What scores channels."""
        return find_estimator(self.options.estimator)

    def check(self, model: PreTrainedModel) -> None:
        """Raise MinitronError for what cannot be scored."""
        # `best` makes do with activations.
        if isinstance(self.estimator, Estimator) and self.estimator.surgeon and not self.options.refit:
            raise MinitronError(f"the estimator {self.options.estimator} needs second moments; drop --no-refit.")
        _check(model, self.blocks)

    def findings(self, model: PreTrainedModel, folder: Path | None = None) -> CalibrationPass:
        """Empty yet."""
        return CalibrationPass(
            model,
            self.spec,
            self.estimator,
            tokens=self.blocks.size,
            seed=self.options.seed,
            refit=self.options.refit,
            influence=self.options.layers == "fast",
            folder=folder,
        )

    def weigh(
        self, source: PartByPart, findings: CalibrationPass, progress: Progress, folder: Path | None = None
    ) -> dict[str, Any]:
        """Find out what errors in the outputs of linears do, where the estimator asks for that; gives what the scores
        say of it.  Hidden states on the way are in `folder`."""
        sites, stream = findings.weighed_sites, findings.weighs_stream
        if not (sites or stream):
            return {}
        findings.outputs, samples = output_moments(
            source,
            sites,
            self.blocks,
            findings.totals,
            stream=stream,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            folder=folder,
            results=findings.folder,
            progress=progress,
        )
        return {"output_samples": samples}

    @property
    def some(self) -> NDArray[np.int64]:
        """The sequences on which layers are removed."""
        return self.blocks[spread(len(self.blocks), self.options.layer_samples)]

    @property
    def data_hash(self) -> str:
        """The text's, or that of the token ids."""
        return self.data or hashlib.sha256(self.blocks.tobytes()).hexdigest()

    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the scores say of how they were made."""
        asked = self.options
        return {
            "samples": self.blocks.shape[0],
            "sequence_length": self.blocks.shape[1],
            "batch_size": asked.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "estimator": asked.estimator,
            "seed": asked.seed,
            "refit": asked.refit,
            "layers": asked.layers,
        }


def _observe(
    model: PreTrainedModel, findings: CalibrationPass, blocks: NDArray[np.int64], batch_size: int, progress: Progress
) -> None:
    """One forward pass over all sequences; no logits are made, for nothing is read off them, unless an estimator asks
    for the backward pass."""
    backward = findings.estimator.gradients
    with (
        # Tensors made in inference mode take no part in a graph.
        nullcontext() if backward else torch.inference_mode(),
        findings.clock.part(PASS),
        findings.observing(),
        progress("Scoring", float(blocks.size), "tokens") as advance,
    ):
        for start in range(0, len(blocks), batch_size):
            ids = torch.from_numpy(blocks[start : start + batch_size])
            if backward:
                run_and_return(model, ids)
            else:
                backbone(model)(input_ids=ids.to(model.device), use_cache=False)
            advance(ids.numel())


@torch.inference_mode()
def _observe_layerwise(
    source: LayerwiseModel,
    findings: CalibrationPass,
    blocks: NDArray[np.int64],
    batch_size: int,
    states: States,
    progress: Progress,
) -> None:
    """All sequences through one layer after the other."""
    count = len(source.spec.layers)
    walk = LayerByLayer(source, blocks, batch_size, states)
    with (
        findings.clock.part(PASS),
        findings.observing(),
        progress("Scoring", float(blocks.size * (count + 1)), "tokens") as advance,
    ):
        for layer in range(count):
            with source.resident(layer):
                for _, tokens in walk.go(layer):
                    advance(tokens, f"layer {layer + 1} of {count}")
                findings.finish(layer)
        with source.resident(OUTPUT):
            for batch in walk.batches:
                walk.norm(walk.state(batch))
                advance(blocks.size / len(walk.batches), "last norm")


def _check(model: PreTrainedModel, blocks: NDArray[np.int64]) -> None:
    embeddings = model.get_input_embeddings().weight.shape[0]
    if blocks.max() >= embeddings:
        raise MinitronError(
            f"the tokenizer gives the token id {blocks.max()} and the model has {embeddings} "
            "embeddings; use the tokenizer that the model was trained with."
        )
    # Models without rotary embeddings (Nemotron-H) read sequences of any length, whatever their config says.
    reach = getattr(model.config, "max_position_embeddings", None)
    if getattr(model.config, "rope_parameters", None) and reach and blocks.shape[1] > reach:
        raise MinitronError(
            f"sequences of {blocks.shape[1]} tokens are longer than the {reach} positions of this "
            f"model; give --sequence-length {reach} or less."
        )
