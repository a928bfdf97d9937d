"""A dry run: what a command would read, write and need, and what it would refuse, with nothing written.

Memory and disk are lower bounds, from config.json and the headers of weights: weights, second moments, what training
keeps beside them.  Time is that of the matmuls at the rate measured here and of the bytes at the rate of the disk; what
is no matmul comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron.errors import MinitronError
from minitron.units import format_bytes
from pipeline.machine import flops, free_disk, free_memory, reading

if TYPE_CHECKING:
    from importance.score.options import ScoringOptions
    from minitron.model.checkpoint import Checkpoint
    from minitron.model.spec import ModelSpec

PASSES: Final = {True: 1.74, False: 1.22}
"""Whether second moments are collected -> what scoring without layers took, in plain passes (docs/importance.md)."""

TRAINING_BYTES: Final = 16
"""Of a parameter that is trained: weight, gradient and AdamW's two moments in fp32."""

KEPT_BYTES: Final = 12
"""Of a parameter in a checkpoint of training: weight and moments."""

TOKEN_BYTES: Final = 3
"""Of text, in which a token stands, about, and rather too few."""

_BYTES: Final = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Work:
    """What one step does."""

    flops: float = 0.0
    """Operations of its matmuls."""

    read: int = 0
    """Bytes that it reads or writes on the disk."""


@dataclass(frozen=True)
class Foreseen:
    """What a command would do."""

    reads: Mapping[str, int]
    """What -> its bytes on the disk."""

    writes: Mapping[str, int]
    """What -> the bytes that it takes at least."""

    memory: Mapping[str, int]
    """What stands in memory at the same time, where it is most -> its bytes."""

    work: Mapping[str, Work]
    """Step -> what it does."""

    output: Path
    device: str = "cpu"
    available_memory: int = 0
    available_disk: int = 0
    flops: float = 1.0
    """Operations a second, measured."""

    bandwidth: float = 1.0
    """Bytes a second from the disk, measured."""

    notes: tuple[str, ...] = ()
    """What else is to be known."""

    @property
    def seconds(self) -> dict[str, float]:
        """Step -> how long it takes at least."""
        return {name: one.flops / self.flops + one.read / self.bandwidth for name, one in self.work.items()}

    @property
    def short(self) -> list[str]:
        """A sentence for each thing of which there is not enough."""
        found = []
        needed, disk = sum(self.memory.values()), sum(self.writes.values())
        if needed > self.available_memory:
            found.append(
                f"{self.device} has {format_bytes(self.available_memory)} of free memory and {format_bytes(needed)} "
                f"are "
                "needed; give another --device, or less at a time (--offload, --offload-teacher)."
            )
        if disk > self.available_disk:
            found.append(
                f"the disk of {self.output} has {format_bytes(self.available_disk)} free and {format_bytes(disk)} are "
                "needed; free some space or choose another output."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """The results of the command with --dry-run."""
        return {
            "reads": dict(self.reads),
            "writes": dict(self.writes),
            "memory": dict(self.memory),
            "device": self.device,
            "available_memory_bytes": self.available_memory,
            "available_disk_bytes": self.available_disk,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "measured": {"flops_per_s": self.flops, "read_bytes_per_s": self.bandwidth},
            "short": self.short,
            "notes": list(self.notes),
        }


@dataclass
class Sketch:
    """A dry run while it is put together."""

    output: Path
    device: str | None
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tokens: int | None = None
    """About as many as the first text holds."""

    def text(self, name: str, path: Path | None) -> None:
        """Note a text; raises MinitronError for one that cannot be read."""
        if path is not None:
            require_text(path)
            self.reads[f"{name} ({path})"] = size = size_of(path)
            self.tokens = size // TOKEN_BYTES if self.tokens is None else self.tokens

    def done(self, spec: ModelSpec, checkpoint: Checkpoint, dtype: str) -> Foreseen:
        """The dry run, with what this machine has and the rates that are measured now."""
        from minitron.model.axes import HIDDEN
        from minitron.model.loading import DTYPES, find_device

        device = find_device(self.device)
        return Foreseen(
            self.reads,
            self.writes,
            self.memory,
            self.work,
            self.output,
            str(device),
            free_memory(device),
            free_disk(self.output),
            flops(device, DTYPES[dtype], spec.sizes[HIDDEN]),
            reading(sorted(checkpoint.folder.glob("*.safetensors"))),
            tuple(self.notes),
        )


def open_model(model: Path, *, dequantise: bool = False) -> tuple[Path, ModelSpec, Checkpoint]:
    """(folder, spec, checkpoint) of a model whose weights are here.

    Raises MinitronError where they are not, or are not understood whole: nothing is downloaded."""
    from minitron.cut.companions import companions
    from minitron.model.dequantised import open_plain
    from minitron.model.sources import cached_weights, hub_name
    from minitron.model.stored import require_plain

    folder = cached_weights(model)
    if folder is None and hub_name(model) is not None:
        raise MinitronError(f"the weights of {model} are not on this machine, and a dry run fetches none; fetch them.")
    if folder is None:
        raise MinitronError(f"{model} holds no weights; give a checkpoint folder.")
    if not dequantise:
        require_plain(folder)
    companions(folder)
    spec, checkpoint, _ = open_plain(folder, dequantise=dequantise)
    checkpoint.check(spec)
    return folder, spec, checkpoint


def require_text(path: Path) -> None:
    """Raise MinitronError where a text cannot be read."""
    from minitron.measure.text import documents

    next(documents(path))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files: Sequence[Path] = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def add_scoring(sketch: Sketch, spec: ModelSpec, options: ScoringOptions, *, layers: bool = True) -> None:
    """Add what scoring needs, its memory where it is more than what is there."""
    from minitron.cut.refit import input_sites
    from minitron.model.axes import EXPERT, HIDDEN, VOCAB

    count, size = spec.parameters(), _BYTES[options.dtype]
    weights = count.total * size
    moments = sum(
        site.size**2 * (spec.sizes_in(site.layer)[EXPERT] if site.by_expert else 1) for site in input_sites(spec)
    )
    kept = 4 * (moments * options.refit + spec.sizes[HIDDEN] ** 2)
    offloaded = weights // max(len(spec.layers), 1) + 2 * spec.sizes[VOCAB] * spec.sizes[HIDDEN] * size
    sketch.memory = _larger(
        sketch.memory,
        {
            "weights of one layer, embedding and output layer" if options.offload else "weights": (
                min(offloaded, weights) if options.offload else weights
            ),
            "second moments": 0 if options.offload else kept,
            "hidden states": 4 * options.batch_size * options.sequence_length * spec.sizes[HIDDEN],
        },
    )
    sketch.writes["scores"] = kept
    tokens = min(options.samples * options.sequence_length, sketch.tokens or 0)
    passes = PASSES[options.refit] * tokens
    if layers and options.layers == "iterative":
        deep = len(spec.layers)
        rounds = options.max_dropped or deep // 2
        own = min(options.layer_samples, options.samples) * options.sequence_length
        # A round over n layers costs at most n (n + 1) / 2 layer passes a token.
        passes += own * sum(n * (n + 1) / 2 for n in range(deep, deep - rounds, -1)) / deep
    sketch.work["score"] = Work(2 * count.active * passes, weights)


def add_training(
    sketch: Sketch, student: int, teacher: Mapping[str, int], tokens: int, active: tuple[int, int]
) -> None:
    """Add what training needs: parameters of the student, bytes of the teacher in memory, (active parameters of the
    student, of the teacher)."""
    sketch.memory = _larger(
        sketch.memory, {"student: weights, gradients and AdamW's moments, fp32": TRAINING_BYTES * student, **teacher}
    )
    sketch.work["distill"] = Work((6 * active[0] + 2 * active[1]) * tokens)


def _larger(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """What needs more of two things that are not in memory at the same time."""
    return dict(one if sum(one.values()) > sum(other.values()) else other)
