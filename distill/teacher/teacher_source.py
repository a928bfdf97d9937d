"""The source of the teacher's outputs: a model in memory, a streamed one, or a cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from distill.losses.divergences import parse_loss
from distill.processes import Processes
from distill.recipe import Recipe
from distill.teacher.cache import ABOUT, TeacherCache
from distill.teacher.drift import Drift, drift_by_layer, is_large, warning
from distill.teacher.kept import DEFAULT, Kept
from distill.teacher.loading import Teacher, known_spec, load_teacher, require_precision
from distill.teacher.streamed import StreamedTeacher
from distill.teacher.streams import Streams, WatchedTeacher, mean_squares, variances
from distill.text.data import Text
from minitron.errors import MinitronError
from minitron.files import file_hash, read_json, sole, tidy
from minitron.measure import quality
from minitron.measure.quality import Answers, measure_quality
from minitron.model.configs import vocabulary_of
from minitron.model.identity import weights_of
from minitron.model.loading import DTYPES
from minitron.model.spec import read_spec
from minitron.model.weight_files import first_file, names_in
from minitron.progress import Progress, silent
from minitron.run_folder import part

Reference: TypeAlias = PreTrainedModel | TeacherCache | StreamedTeacher
"""What a student is compared with."""


@dataclass(frozen=True)
class TeacherSource:
    """A teacher, and how it is kept."""

    folder: Path
    device: torch.device

    precision: str = "bf16"
    """A name of distill.teacher.loading.PRECISIONS; one in bf16 computes as its student does, in bf16 or fp32."""

    keep: Kept = DEFAULT
    """What of a teacher in FP8 stays in bf16."""

    offload: bool = False
    """Whether its layers are read from the disk for many sequences at once, instead of being kept."""

    cache: Path | None = None
    """The folder in which a sparse loss's part of the teacher is kept."""

    streams: Streams | None = None
    """What of its residual stream is compared with the student's; None is nothing."""

    def check(self, recipe: Recipe) -> None:
        """Raise MinitronError where the teacher cannot be kept so, or a cache does not hold what the loss reads."""
        require_precision(self.precision, self.device)
        if self.offload:
            read_spec(self.folder)
            if self.precision != "bf16":
                raise MinitronError(
                    f"an offloaded teacher is read in its stored format, not in {self.precision}; drop "
                    "--teacher-precision or --offload-teacher."
                )
        if self.cache is None:
            return
        if parse_loss(recipe.loss).divergence.pick is None:
            raise MinitronError(
                f"a teacher cache holds a few tokens per position, but the loss {recipe.loss} needs "
                "all; add --loss sampled:12 or drop --cache-teacher."
            )
        if recipe.temperature != 1.0 or recipe.cosine_weight:
            raise MinitronError(
                "a teacher cache holds probabilities at temperature 1 and no hidden states; drop "
                "--temperature and --cosine-weight, or drop --cache-teacher."
            )

    def fingerprint(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a run depends on of its teacher.  It may be very large: `before`, what was found of its weights earlier,
        or what its cache says of them, saves reading them while they have not changed."""
        config, weights = file_hash(self.folder / "config.json"), weights_known(self.folder, self.cache, before)
        found: dict[str, Any] = {"teacher": {"config": config, "weights": weights}, "teacher_precision": self.precision}
        found |= {} if self.precision == "bf16" else {"fp8_keep": str(self.keep)}
        return found

    def prepare(
        self,
        student: Path,
        text: Text,
        recipe: Recipe,
        start: Mapping[str, Any] | None,
        identity: Mapping[str, Any],
        processes: Processes,
        progress: Progress = silent,
    ) -> tuple[Reference, dict[str, Any]]:
        """(what to learn from, what was measured of it on the held-out sequences: its perplexity, its drift, and the
        mean squares of its streams where they are compared); the second from `start` where a run that began before
        knows it.  `identity` is what `fingerprint` gave: a cache is used with no other teacher."""
        if self.cache is None:
            if self.offload:
                return self._streamed(text, recipe, progress)
            kept = self._load(text if start is None else None, recipe, progress)
            return kept.model, dict(start) if start is not None else self._measured(kept, text, recipe)
        vocab = min(size for folder in (student, self.folder) if (size := vocabulary_of(folder)) is not None)
        about = {
            **identity,
            "text": text.source,
            "loss": recipe.loss,
            "seed": recipe.seed,
            "vocab_size": vocab,
            "sequence_length": recipe.sequence_length,
            "validation_sequences": recipe.validation_sequences,
            **({} if self.streams is None else {"streams": self.streams.identity}),
        }
        if processes.is_first:
            tidy(self.cache)
            with nullcontext() if (self.cache / ABOUT).is_file() else sole(self.cache):
                TeacherCache(self.cache, text, about)
        processes.wait()
        cache = TeacherCache(self.cache, text, about)
        complete, missing = cache.is_complete, cache.missing
        # All have seen the same before any of them writes.
        processes.wait()
        if not complete and self.is_elsewhere:
            raise MinitronError(
                f"{self.cache} lacks a part of what the teacher says, and {self.folder} holds no weights to ask; copy "
                "the cache whole, with the same text and options, or the weights."
            )
        if not complete:
            # Runs may share it, but one alone fills it.
            with sole(self.cache, first=processes.is_first):
                teacher, measured = self._answering(text, recipe, progress)
                cache.write(
                    teacher,
                    parse_loss(recipe.loss),
                    measured,
                    missing=missing[processes.share(len(missing))],
                    held_out=processes.is_first,
                    vocab=vocab,
                    seed=recipe.seed,
                    batch_size=recipe.sequences_per_pass,
                    progress=progress,
                )
                processes.wait()
        return cache, cache.start

    @property
    def is_elsewhere(self) -> bool:
        """Whether the folder holds no weights, and a cache may answer for them: that of another machine."""
        return _holds_none(self.folder) and _cached_weights(self.cache) is not None

    def warn(self, start: Mapping[str, Any], text: Text, recipe: Recipe, progress: Progress = silent) -> str | None:
        """What to tell of a large drift, with the layers that make up most of it where the family is known."""
        if start["drift"] is None or not is_large(Drift(**start["drift"]), start["before"]["kl"]):
            return None
        found: dict[int, float] = {}
        if known_spec(self.folder) is not None:
            size = recipe.sequences_per_pass
            found = drift_by_layer(
                self.folder,
                keep=self.keep,
                device=self.device,
                blocks=text.validation,
                batch_size=size,
                progress=progress,
            )
        return warning(Drift(**start["drift"]), start["before"]["kl"], found, self.keep)

    def _streamed(self, text: Text, recipe: Recipe, progress: Progress) -> tuple[StreamedTeacher, dict[str, Any]]:
        """The teacher that is read layer by layer, asked about the held-out text, and what was measured of it."""
        teacher = StreamedTeacher(self.folder, self.device, self.streams, dtype=DTYPES[recipe.precision])
        with progress("running the teacher", float(text.validation.size), "tokens") as advance:
            perplexity = teacher.ask_held_out(text.validation, recipe.sequences_per_pass, advance)
        return teacher, {"perplexity_teacher": perplexity, "drift": None, "stream_squares": teacher.squares}

    def _answering(self, text: Text, recipe: Recipe, progress: Progress) -> tuple[Answers, dict[str, Any]]:
        if self.offload:
            return self._streamed(text, recipe, progress)
        kept = self._load(text, recipe, progress)
        answering: Answers = quality.Teacher(kept.model, memory=0)
        if self.streams is not None:
            answering = WatchedTeacher(answering, kept.model, read_spec(self.folder), self.streams)
        return answering, self._measured(kept, text, recipe)

    def _measured(self, teacher: Teacher, text: Text, recipe: Recipe) -> dict[str, Any]:
        told: dict[str, Any] = {"stream_squares": []}
        if self.streams is not None:
            seen = self.streams, teacher.model, read_spec(self.folder), text.validation
            told = {"stream_squares": mean_squares(*seen)}
            told |= {"stream_variances": variances(*seen)} if self.streams.by_channel else {}
        if teacher.drift is not None:
            found = {"perplexity_teacher": teacher.drift.perplexity, "drift": asdict(teacher.drift)}
        else:
            own = measure_quality(teacher.model, text.validation, batch_size=recipe.sequences_per_pass)
            found = {"perplexity_teacher": own.perplexity, "drift": None}
        return found | told

    def _load(self, text: Text | None, recipe: Recipe, progress: Progress) -> Teacher:
        return load_teacher(
            self.folder,
            precision=self.precision,
            keep=self.keep,
            device=self.device,
            blocks=None if text is None else text.validation,
            batch_size=recipe.sequences_per_pass,
            dtype=DTYPES[recipe.precision],
            progress=progress,
        )


def weights_known(folder: Path, cache: Path | None, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A teacher's weights (minitron.model.identity.weights_of): what its cache says of them where they are elsewhere,
    and with that, or what was found `before`, they are not read again while their files have not changed."""
    known = _cached_weights(cache)
    return dict(known) if known is not None and _holds_none(folder) else weights_of(folder, before or known)


def _holds_none(folder: Path) -> bool:
    return first_file(names_in(folder)) is None


def _cached_weights(cache: Path | None) -> Mapping[str, Any] | None:
    """What a cache says of its teacher's weights; None where there is none."""
    path = None if cache is None else cache / ABOUT
    return part(read_json(path), "teacher", "weights") if path is not None and path.is_file() else None


def answers(reference: Reference, device: torch.device) -> Answers:
    """What a reference says of the held-out text, kept: it is asked at every validation."""
    if isinstance(reference, TeacherCache):
        return reference.answers(device)
    return reference if isinstance(reference, StreamedTeacher) else quality.Teacher(reference)
