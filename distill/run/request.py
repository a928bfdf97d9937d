"""The checked inputs of a run: student, teacher, text and recipe, and whether they fit each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.losses.divergences import parse_loss
from distill.losses.liger import BETAS, is_usable
from distill.recipe import MTP, STREAM_DIRECTIONS, STREAM_WEIGHT, Recipe
from distill.run.distillation import Distillation
from distill.run.domains import Domains, domains_of
from distill.run.learned_scales import require_learnable
from distill.run.mtp import require_block
from distill.run.tasks import asker
from distill.run.work import Work
from distill.teacher.loading import known_spec
from distill.teacher.streams import Streams
from distill.teacher.teacher_source import TeacherSource, weights_known
from distill.text.data import describe
from minitron.cut.stream_map import StreamMap, read_stream_maps
from minitron.errors import MinitronError
from minitron.files import file_hash, refuse_existing
from minitron.locks import resolved
from minitron.model.axes import HIDDEN
from minitron.model.checkpoint import Checkpoint
from minitron.model.configs import vocabulary_of
from minitron.model.identity import tokenizer_hash, weights_of
from minitron.model.loading import find_device, require_same_tokenizer
from minitron.model.stored import require_plain, require_readable
from minitron.quantise.assigned import assign
from minitron.run_folder import part


@dataclass(frozen=True)
class Request:
    """A distillation and how it is done."""

    asked: Distillation
    recipe: Recipe

    @cached_property
    def teaching(self) -> TeacherSource:
        """The teacher, and how it is kept; raises MinitronError where there is no such device."""
        asked = self.asked
        place = find_device(asked.teacher_device or asked.device)
        return TeacherSource(
            *(asked.teacher, place, asked.teacher_precision, asked.fp8_keep, asked.offload_teacher, asked.cache),
            None if self.stream is None else self.stream[1],
        )

    @cached_property
    def domains(self) -> Domains | None:
        """Which teacher teaches which text; None where one teaches all.  Raises MinitronError where they do not fit."""
        return domains_of(self.asked.sources, self.asked.teacher, self.asked.teachers)

    @property
    def others(self) -> tuple[TeacherSource, ...]:
        """The teachers of domains, kept as the first one is; their streams say nothing of the student's."""
        folders = () if self.domains is None else self.domains.folders
        return tuple(replace(self.teaching, folder=folder, streams=None) for folder in folders)

    def check(self) -> None:
        """Raise MinitronError where the inputs do not fit each other or the output exists; nothing is loaded."""
        asked, student, teacher = self.asked, self.asked.student, self.asked.teacher
        # The output comes last of what this very run writes: where it stands, what is beside it is the run's too.
        work = Work(asked.work_folder)
        for path in (asked.output, beside(asked.output, self.recipe)):
            ours = work.has_written(asked.output) or work.has_written(path)
            refuse_existing(path, overwrite=asked.overwrite or ours, inputs=self.inputs)
        # In fewer bits a model has something to learn of itself.
        if resolved(student) == resolved(teacher) and asked.student_format is None:
            raise MinitronError(
                f"{student} is both student and teacher; give the parent checkpoint as --teacher, or a --format."
            )
        require_plain(student)
        Checkpoint(student)
        if not self.teaching.is_elsewhere:
            require_readable(teacher)
            Checkpoint(teacher)
        require_same_tokenizer(student, teacher)
        self.teaching.check(self.recipe)
        for other in self.others:
            require_readable(other.folder)
            Checkpoint(other.folder)
            require_same_tokenizer(student, other.folder)
            other.check(self.recipe)
        require_possible(self.recipe, asked, has_domains=self.domains is not None)
        asker(self.recipe, student)
        if self.recipe.loss_kernel == "liger":
            folders = (student, teacher, *(other.folder for other in self.others))
            sizes = {vocabulary_of(folder) for folder in folders}
            require_liger(
                self.recipe,
                same_vocabulary=len(sizes) == 1,
                cached=asked.cache is not None,
                plain_logits=all(map(_has_plain_logits, folders)),
            )
        if self.recipe.mtp_weight:
            require_block(student)
        self._check_formats()

    @cached_property
    def stream(self) -> tuple[float, Streams] | None:
        """(weight, which streams are compared); None where none are.

        Raises MinitronError where they are to be compared and cannot be."""
        recipe, asked = self.recipe, self.asked
        weight, student, teacher = recipe.stream_weight, asked.student, asked.teacher
        # A cache would become many times as large: only for those who ask.
        if weight == 0 or recipe.train == MTP or (weight is None and asked.cache is not None):
            return None
        mine, theirs = known_spec(student), known_spec(teacher)
        maps = () if mine is None or theirs is None else read_stream_maps(student, mine)
        if weight is not None and theirs is not None and resolved(student) == resolved(teacher):
            # Of a student in fewer bits nothing was cut.
            maps = (StreamMap(theirs.fingerprint, None, theirs.sizes[HIDDEN], tuple(range(len(theirs.layers))), None),)
        same = [one for one in maps if theirs is not None and one.parent == theirs.fingerprint]
        found = next((one for one in same if one.weights in (None, self._teacher_weights)), None)
        if found is not None:
            few = STREAM_DIRECTIONS if asked.cache is not None or asked.offload_teacher else None
            few, by_channel = recipe.stream_directions or few, recipe.stream_norm == "channel"
            if few and by_channel:
                raise MinitronError(
                    "--stream-norm channel compares channels, and random directions are none; drop it, or drop "
                    "--stream-directions, --offload-teacher and --cache-teacher."
                )
            return STREAM_WEIGHT if weight is None else weight, Streams(found, few, by_channel)
        if weight is None:
            return None
        why = f"{student} holds no record of a cut that says where its stream lies in a teacher's"
        if maps:
            other = "other weights than those in" if same else "a model with another config.json than"
            why = f"{student} was pruned from {other} {teacher}"
        raise MinitronError(f"{why}, which --stream-weight needs; drop --stream-weight.")

    @property
    def _teacher_weights(self) -> str:
        """The SHA-256 of the teacher's weights, which are not read again where a run that goes on has read them."""
        work = Work(self.asked.work_folder)
        before = part(work.run, "teacher", "weights") if work.has_begun and not self.asked.overwrite else None
        return str(weights_known(self.asked.teacher, self.asked.cache, before)["sha256"])

    def _check_formats(self) -> None:
        """Raise MinitronError where the student cannot be trained in the formats that are asked for."""
        wanted, student = self.asked.wanted, self.asked.student
        if wanted is None:
            return
        spec = known_spec(student)
        if spec is None:
            raise MinitronError(
                f"{student} is of a model type without a table, so that its linears are not known; drop --format."
            )
        if self.recipe.compile:
            raise MinitronError("a student in a format of fewer bits is not compiled; drop --compile or --format.")
        assigned = assign(spec, Checkpoint(student), wanted)
        if self.asked.student_scales == "learned":
            require_learnable(assigned)

    def _fingerprint_of_others(self, known: Mapping[str, Any]) -> dict[str, Any]:
        assert self.domains is not None
        return {
            name: other.fingerprint(part(known, "teachers", name, "teacher", "weights"))
            for name, other in zip(self.domains.names, self.others, strict=True)
        }

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read, and must not be destroyed."""
        texts = [source.path for source in self.asked.sources]
        found = (self.asked.student, self.asked.teacher, *self.asked.teachers.values(), *texts, self.asked.validation)
        return tuple(path for path in found if path is not None)

    def fingerprint(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All that the run's result depends on; `before` is what this gave earlier, which saves reading weights that
        have not changed.  Raises MinitronError where a text is missing."""
        asked, student, known = self.asked, self.asked.student, before or {}
        return {
            "student": {
                "config": file_hash(student / "config.json"),
                "tokenizer": tokenizer_hash(student),
                "weights": weights_of(student, part(known, "student", "weights")),
            },
            "recipe": self.recipe.to_json(),
            **self.teaching.fingerprint(part(known, "teacher", "weights")),
            "text": describe(asked.sources, asked.validation),
            # The same teacher, but for the rounding of batches of another shape: a cache of it serves both.
            **({"teacher_offloaded": True} if asked.offload_teacher else {}),
            **({} if asked.cache is None else {"cached": True}),
            **({} if self.domains is None else {"teachers": self._fingerprint_of_others(known)}),
            **({} if asked.on_policy_endpoint is None else {"on_policy_endpoint": True}),
            **(
                {}
                if asked.wanted is None
                else {
                    "student_format": asked.student_format,
                    "keep": dict(asked.student_keep),
                    "round": asked.student_round,
                    **({} if asked.student_kv == "bf16" else {"kv": asked.student_kv}),
                    **({} if asked.student_scales == "frozen" else {"scales": asked.student_scales}),
                }
            ),
        }


def require_possible(recipe: Recipe, asked: Distillation, *, has_domains: bool) -> None:
    """Raise MinitronError where the student's own answers, or teachers by domain, do not go with what else is asked."""
    if asked.on_policy_endpoint is not None and not recipe.on_policy:
        raise MinitronError("--on-policy-endpoint writes a share of the text; give --on-policy SHARE too, or drop it.")
    if asked.on_policy_model is not None and asked.on_policy_endpoint is None:
        raise MinitronError("--on-policy-model is a name at an endpoint; give --on-policy-endpoint too, or drop it.")
    if recipe.on_policy and (asked.cache is not None or asked.offload_teacher):
        flag = "--offload-teacher" if asked.cache is None else "--cache-teacher"
        raise MinitronError(
            f"what the student writes is new at every step, and the teacher must be in memory to judge it; drop {flag} "
            "or --on-policy."
        )
    if not has_domains:
        return
    reasons = {
        "--cache-teacher, which keeps what one teacher says": asked.cache is not None,
        "--mtp-weight, whose drafts have one teacher": bool(recipe.mtp_weight),
        "--cosine-weight, whose projection has one teacher": bool(recipe.cosine_weight),
    }
    for reason, holds in reasons.items():
        if holds:
            raise MinitronError(f"several teachers do not go with {reason}; drop one of the two.")


def require_liger(recipe: Recipe, *, same_vocabulary: bool, cached: bool, plain_logits: bool = True) -> None:
    """Raise MinitronError unless liger-kernel can be used here and is exact for what is asked."""
    reasons = {
        f"the loss {recipe.loss}": parse_loss(recipe.loss).name not in BETAS,
        f"a temperature of {recipe.temperature:g}": recipe.temperature != 1.0,
        "an LM weight": bool(recipe.lm_weight or recipe.mtp_lm_weight),
        "a vocab chunk": recipe.vocab_chunk is not None,
        "vocabularies of different sizes": not same_vocabulary,
        "a teacher cache": cached,
        "logits that a model scales or caps": not plain_logits,
    }
    for reason, holds in reasons.items():
        if holds:
            raise MinitronError(f"liger-kernel's loss is not exact with {reason}; drop --loss-kernel.")
    if not is_usable():
        raise MinitronError(
            "--loss-kernel liger needs liger-kernel and a GPU, and one of them is missing; install it "
            "or drop --loss-kernel."
        )


def _has_plain_logits(folder: Path) -> bool:
    spec = known_spec(folder)
    return spec is None or spec.logit_map.is_plain


def beside(output: Path, recipe: Recipe) -> Path:
    """Where the weights that are not selected go: OUTPUT.best, or OUTPUT.last where the best are."""
    return output.with_name(f"{output.name}.{'last' if recipe.select == 'best' else 'best'}")
