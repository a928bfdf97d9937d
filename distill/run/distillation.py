"""The request of a distillation, besides its recipe, as plain data without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from distill.teacher.kept import DEFAULT, Kept
from minitron.errors import MinitronError, require_known
from minitron.measure.records import Source
from minitron.quantise.wanted import Wanted, Way

Precision = Literal["bf16", "fp8", "fp8-te"]
"""How a teacher's linear weights are kept (distill.teacher.loading.PRECISIONS)."""

Scaling = Literal["frozen", "learned"]


@dataclass(frozen=True)
class Distillation:
    """A student, its teacher, a text, and what is written."""

    student: Path
    """The smaller checkpoint, which is trained."""

    teacher: Path
    """The checkpoint whose logits it learns."""

    data: Path | Sequence[Source]
    """The text, a file or a blend of sources; empty where the stages of a recipe file name their own."""

    output: Path
    """The folder that is written."""

    validation: Path | None = None
    """Held-out text; None holds out the end of the text."""

    teacher_precision: Precision = "bf16"
    """How the teacher's linear weights are kept."""

    fp8_keep: Kept = DEFAULT
    """What of a teacher in FP8 stays in bf16."""

    student_format: str | None = None
    """A format of weights in which the student runs while it is trained, and is written; None is 16 bits."""

    student_keep: Mapping[str, str] = field(default_factory=dict)
    """Component of the student -> another format, bf16 among them."""

    student_kv: str = "bf16"
    """In which keys and values of a student in a format are to be kept: fp8 has scales of theirs written too."""

    student_round: Way = "best"
    """Where a student in a format begins: rounded with feedback, so that columns make up for each other; or each weight
    at the nearest number."""

    student_scales: Scaling = "frozen"
    """Whether the scales of a student in a format stay as they begin, or are learned."""

    cache: Path | None = None
    """A folder in which what a sparse loss reads of the teacher is kept, and found by later runs."""

    offload_teacher: bool = False
    """Whether the teacher's layers are read from the disk for many sequences at once, instead of being kept."""

    device: str | None = None
    """Where the student is, as torch spells it; None is the first GPU, or else the CPU."""

    teacher_device: str | None = None
    """Where the teacher is; None is with the student."""

    on_policy_endpoint: str | None = None
    """An OpenAI-compatible server of the student, which writes its own answers; None has them written here."""

    on_policy_model: str | None = None
    """What that server calls the student; None asks it."""

    teachers: Mapping[str, Path] = field(default_factory=dict)
    """Domain -> the teacher of text of that domain; `teacher` is that of other text."""

    work: Path | None = None
    """Where checkpoints are kept while it runs; None is beside the output and named after it."""

    track: str = "none"
    """Who is sent figures while it runs, a name of distill.run.trackers.TRACKERS."""

    overwrite: bool = False
    """Whether an output that exists is replaced, and a run with other settings started again."""

    def __post_init__(self) -> None:
        known = {"teacher_precision": Precision, "student_round": Way, "student_scales": Scaling}
        require_known(self, {name: get_args(each) for name, each in known.items()})
        if self.student_format is None:
            plain = {"student_keep": {}, "student_kv": "bf16", "student_round": "best", "student_scales": "frozen"}
            for name, value in plain.items():
                if getattr(self, name) != value:
                    flag = f"--{name.removeprefix('student_')}"
                    raise MinitronError(f"{flag} is of a student in fewer bits; give --format too.")
        _ = self.wanted

    @property
    def wanted(self) -> Wanted | None:
        """The formats of the student; raises MinitronError for one that is not written."""
        return None if self.student_format is None else Wanted(self.student_format, self.student_keep, self.student_kv)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The text as a blend."""
        return (Source(str(self.data)),) if isinstance(self.data, Path) else tuple(self.data)

    @property
    def work_folder(self) -> Path:
        """Where checkpoints are kept."""
        return self.work or self.output.with_name(f"{self.output.name}.work")
