"""The folders that a run leaves: the selected student with its own files, trained weights and a model card, and beside
it the last or the best one where that is another."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from distill.recipe import Recipe
from distill.run.card import model_card
from distill.run.checkpoints import read_weights
from distill.run.fake_quantised import FakeQuantised, Frozen
from distill.run.mtp import PREFIX, Predictor
from distill.run.request import beside
from distill.run.result import DistillResult
from distill.run.trainer import Trainer
from distill.text.data import Text
from minitron.cut.companions import DISTILLATION, RECORD, copy_companions, copy_own
from minitron.cut.in_memory import tensors
from minitron.cut.stream_map import copy_stream_maps
from minitron.files import new_folder, read_json, scratch, write_json, write_text
from minitron.model.checkpoint import Checkpoint
from minitron.model.loading import load_model
from minitron.model.shards import Entry, ShardWriter
from minitron.model.slabs import dtypes
from minitron.model.spec import ModelSpec, read_spec
from minitron.model.weight_files import written
from minitron.quantise.writing import quantise
from minitron.report.training import training_document


def write_student(
    model: PreTrainedModel,
    student: Path,
    output: Path,
    *,
    card: str,
    mtp: Predictor | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    done: Callable[[Path], None] = lambda partial: None,
) -> None:
    """Write the trained `model` of the folder `student` to `output` under the names and in the types `student` has.

    transformers would lose parts of the config, drop multi-token-prediction blocks (`mtp` is the trained one) and what
    stands beside a language model, and write the type it trained in.  So only tensors are taken from the model;
    everything else, and every tensor that it does not build, comes from `student`.  `card` becomes README.md,
    `training` distillation.json.  `done` is told the folder when it is whole, before it gets its name."""
    source, spec = Checkpoint(student), read_spec(student)
    trained = dict(tensors(model, spec))
    drafts = {} if mtp is None else dict(mtp.stored(student))
    with new_folder(output, overwrite=overwrite) as folder:
        promised = [Entry.of(name, header) for name, header in source.headers.items()]
        with ShardWriter(folder, promised) as writer:
            for name, header in source.headers.items():
                own = _plain(spec, name)
                tensor = drafts[own] if own in drafts else trained.get(own)
                if tensor is None:
                    tensor = _untrained(model, spec, name, source)
                if tuple(tensor.shape) != header.shape:
                    raise RuntimeError(f"{name} has the shape {tuple(tensor.shape)}, in {student} {header.shape}")
                writer.add(name, tensor.detach().to("cpu", dtypes()[header.dtype]))
        copy_companions(student, folder)
        if (student / RECORD).is_file():
            copy_own(student / RECORD, folder)
            copy_stream_maps(student, folder)
        config = written(spec.config)
        if config == read_json(student / "config.json"):
            copy_own(student / "config.json", folder)
        else:
            # What the weights say beside it: an output layer that is not tied after all.
            write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        write_text(folder / "README.md", card)
        if training is not None:
            write_json(folder / DISTILLATION, dict(training))
        done(folder)


_SEQUENCES: Final = 128
_TOKENS: Final = 2**16


def calibration(text: Text, recipe: Recipe) -> NDArray[np.int64]:
    """[S, T]: the first sequences of the text, that show what linears read: as many as a rounding needs, and no more
    than that many tokens."""
    count = min(_SEQUENCES, max(1, _TOKENS // recipe.sequence_length))
    return text.batch(0, count, seed=recipe.seed).ids


def write_quantised(
    model: PreTrainedModel,
    student: Path,
    output: Path,
    *,
    fake: FakeQuantised,
    blocks: NDArray[np.int64],
    card: str,
    mtp: Predictor | None,
    training: Mapping[str, Any],
    overwrite: bool,
    done: Callable[[Path], None],
) -> None:
    """The same in the formats in which the student was trained, by way of a folder in 16 bits that does not stay;
    `blocks` [S, T] are sequences for what formats keep of inputs."""

    def finish(partial: Path) -> None:
        write_text(partial / "README.md", card)
        write_json(partial / DISTILLATION, dict(training))
        done(partial)

    spec = read_spec(student)
    names = Checkpoint(student).stored_names(spec)
    weights = {names[name]: tensor.detach() for name, tensor in tensors(model, spec) if name in names}
    with scratch(output) as between:
        plain = between / student.name
        write_student(model, student, plain, mtp=mtp, card=card)
        calibrated = None if fake.calibrate is None else fake.calibrate(plain, blocks, feedback=False)
        frozen = Frozen(fake.scales_of(model, spec, student), weights, calibrated)
        quantise(plain, output, fake.assigned.wanted, frozen, overwrite=overwrite, done=finish)


def _plain(spec: ModelSpec, name: str) -> str:
    """The name of a tensor in the family's first dialect, its own where no rule names it: a student may be spelled in
    another dialect than that of its model in memory."""
    matches = ((rule, rule.pattern.match(name)) for rules in spec.rules.values() for rule in rules)
    return next((rule.pattern.format(index) for rule, index in matches if index is not None), name)


def _untrained(model: PreTrainedModel, spec: ModelSpec, name: str, source: Checkpoint) -> Tensor:
    """A tensor that is not one of its own in memory."""
    if spec.is_tied and any(
        rule.tied_to and rule.pattern.match(name) is not None for rule in spec.family.rules["model"]
    ):
        # A tied output layer that the student's folder spells out; safetensors writes no memory twice.
        tied: Tensor = model.get_output_embeddings().weight.detach().clone()
        return tied
    if not spec.builds(name):
        return source.tensor(name)
    raise RuntimeError(f"{name} is not in the trained model")


def write_outputs(
    trainer: Trainer,
    result: DistillResult,
    student: Path,
    *,
    teacher: Path,
    source: Mapping[str, Any],
    origin: Path,
    earlier: Sequence[DistillResult],
    overwrite: bool,
    done: Callable[[Path], None],
    note: Callable[[str], None],
    fake: FakeQuantised | None = None,
) -> None:
    """Write `result.output`, and first the folder beside it: where the output is there, all is.  A folder that the run
    has written before it was stopped is not written again; `done` is told the output when it is whole.

    `student` is the folder that was trained, `origin` the one that the first of several stages began with, `source` the
    text as distill.text.data.Text tells it."""
    for point, folder in reversed(_written(trainer, result.output)):
        if trainer.work.has_written(folder):
            continue
        step = int(point["step"])

        def whole(partial: Path, folder: Path = folder) -> None:
            if folder == result.output:
                done(partial)
            trainer.work.write_written(partial, folder)

        written = replace(result, selected_step=step)
        model, mtp = _weights_of(trainer, step, student, fake)
        write = write_student
        if fake is not None:
            write = partial(write_quantised, fake=fake, blocks=calibration(trainer.text, trainer.recipe))
        write(
            model,
            student,
            folder,
            mtp=mtp,
            card=model_card(origin, teacher, source, written, earlier, None if fake is None else fake.assigned.wanted),
            training=training_document(written.to_json(), written.losses),
            overwrite=overwrite,
            done=whole,
        )
        if folder != result.output:
            note(f"Also written: {folder}, the student after step {step:,}, KL {point['kl']:.4f}.")


def _written(trainer: Trainer, output: Path) -> list[tuple[dict[str, Any], Path]]:
    """(validation, folder) of the weights to write: those selected, and the others where they differ."""
    last, best, chosen = trainer.curve[-1], trainer.best, trainer.selected
    other = last if chosen is best else best
    found = [(chosen, output)]
    return found if chosen["step"] == other["step"] else [*found, (other, beside(output, trainer.recipe))]


def _weights_of(
    trainer: Trainer, step: int, folder: Path, fake: FakeQuantised | None
) -> tuple[PreTrainedModel, Predictor | None]:
    """The student of `folder` and its multi-token-prediction block, where that was trained, as they were after a step,
    the last one's or the best one's, in one piece, with the scales that were learned."""
    if step != trainer.step:
        weights = trainer.checkpoints.best_weights(step)
    elif trainer.processes.world_size == 1:
        return trainer.student, trainer.objective.mtp
    else:
        newest = trainer.checkpoints.newest()
        assert newest is not None  # the last step is always saved
        weights = read_weights(newest)
    whole = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    if fake is not None:
        fake.put_on(whole, read_spec(folder), folder)
    mtp = None if trainer.objective.mtp is None else Predictor(folder, whole)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(weights[name])
        for name, parameter in () if mtp is None else mtp.named_parameters():
            parameter.copy_(weights[f"{PREFIX}{name}"])
    return whole, mtp
