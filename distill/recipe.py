"""The recipe: every training setting besides the models and the text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from distill.batch import usual_batch
from distill.losses.divergences import DEFAULT_LOSS, parse_loss
from distill.rate import PUBLISHED
from minitron.errors import MinitronError
from minitron.measure.options import Dtype
from minitron.typed import misfit

if TYPE_CHECKING:
    import torch

LEAST_LEARNING_RATE_SHARE: Final = 0.1
"""Minitron decays from 1e-4 to 1e-5 (Muralidharan et al. 2024, arXiv 2407.14679, section 4)."""

MTP: Final = "mtp"

TRAINED: Final = ("all", "router", "all-but-router", MTP)
"""All parameters, those of the routers of mixtures of experts alone, all others, or the multi-token-prediction block
alone, behind a model that stays as it is."""

STREAM_WEIGHT: Final = 20.0
"""What helped most of the weights that were tried by hand (benchmarks/RESULTS.md)."""

STREAM_DIRECTIONS: Final = 64
"""Of a teacher that is not in memory: two bytes a layer, token and direction."""

STREAM_NORMS: Final = ("mean-square", "channel")
"""An error of the stream is told in units of the mean square of all its channels, or of each channel's own variance."""

AUTO: Final = "auto"
"""A learning rate that a range test finds."""

KERNELS: Final = ("own", "liger")
"""Who computes the loss: distill.losses.chunked, or liger-kernel where it is exact for the request."""

SELECTED: Final = ("last", "best")
"""The weights after the last step, or those of the validation with the lowest KL."""

_PASS_TOKENS: Final = 2048
"""Tokens in one forward pass: enough to keep the matmuls of a small model busy, few enough for the caches."""


@dataclass(frozen=True)
class Recipe:
    """The settings of one distillation; the defaults are those of the Minitron papers where they give one."""

    tokens: int | None = None
    """Tokens to train on, rounded down to whole steps; give this or `steps`."""

    steps: int | None = None
    """Optimiser steps."""

    sequence_length: int = 512
    """Tokens of one sequence."""

    batch_tokens: int = 0
    """Tokens of one optimiser step, over all processes; a multiple of `sequence_length`; 0: as distill.batch has it."""

    micro_batch: int | None = None
    """Sequences in one forward pass; None chooses about 2,048 tokens."""

    learning_rate: float | Literal["auto"] | None = None
    """The highest, reached after the warm-up; None is as distill.rate has it for the student's width, and AUTO has it
    found before the first step (distill.run.range_test)."""

    minimum_learning_rate: float | None = None
    """The last one, at the end of the cosine; None is a tenth of the highest."""

    warmup_steps: int | None = None
    """Steps of linear rise; None is 100 or a tenth of the run, whichever is less."""

    weight_decay: float = 0.1
    """AdamW's, for matrices; vectors (norms, biases, A_log, D) are not decayed."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the mean and of the mean square of gradients."""

    gradient_clip: float = 1.0
    """The largest norm of the whole gradient."""

    precision: Dtype = "bf16"
    """bf16: fp32 weights, matmuls under bf16 autocast; fp32: everything."""

    seed: int = 0
    """Of the order in which sequences are read."""

    validate_every: int | None = None
    """Steps between validations; None is a fifth of the run.  There is one before the first and one after the last."""

    validation_sequences: int = 16
    """Held-out sequences; without a validation file the end of the text, at most a tenth of it."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval that every validation asks too: names, or YAML files."""

    task_limit: int | None = None
    """Items of a task that are asked; None is all."""

    patience: int | None = None
    """Validations in a row without a lower KL after which the run ends; None is never."""

    select: str = "last"
    """A name of SELECTED: which weights become the output; the others, where they differ, are written beside it."""

    checkpoint_every: int | None = None
    """Steps between checkpoints; None is a tenth of the run, at most 500."""

    keep_checkpoints: int = 2
    """How many of the newest stay on the disk."""

    async_checkpoints: bool | None = None
    """Whether checkpoints are written behind the steps that follow, from a copy in the CPU's memory; None is where the
    student is on a GPU."""

    assistant_only: bool = False
    """Of conversations only what the assistant says is learnt."""

    most_broken: int = 10
    """Records of a source that may be broken and left out; one more stops the run before it begins."""

    loss: str = DEFAULT_LOSS
    """A name of distill.losses.divergences.DIVERGENCES, where it takes a number with it: `jsd:0.3`."""

    loss_kernel: str = "own"
    """A name of KERNELS."""

    temperature: float = 1.0
    """Divides the logits of both models."""

    lm_weight: float = 0.0
    """Times the cross entropy of the next token, added to the loss."""

    mtp_weight: float = 0.0
    """Weight of the loss of the student's multi-token-prediction block, which is trained only if this is above 0."""

    mtp_lm_weight: float = 0.0
    """Within that, times the cross entropy of the token after the next."""

    cosine_weight: float = 0.0
    """Times 1 - cosine of both models' last hidden states, added to the loss."""

    stream_weight: float | None = None
    """Times the error of the residual stream in every layer (distill.run.stream_match), added to the loss; None is
    STREAM_WEIGHT for a student that was pruned from its teacher, and 0 for another."""

    stream_directions: int | None = None
    """Random directions of the stream that are compared, others for every sequence; None is all, or STREAM_DIRECTIONS
    of a teacher that is cached or read from the disk."""

    stream_norm: str = "mean-square"
    """What errors of the stream are divided by, one of STREAM_NORMS."""

    on_policy: float = 0.0
    """The share of sequences that the student writes itself, after prompts from the text: from 0 to 1."""

    on_policy_loss: str = "reverse_kl"
    """The divergence on the student's own answers, which needs the whole vocabulary; as `loss` is written."""

    on_policy_temperature: float = 1.0
    """At which the student writes; 0 takes the likeliest token."""

    on_policy_answer: int | None = None
    """Tokens of the longest answer; None is half a sequence."""

    train: str = "all"
    """A name of TRAINED: which parameters are trained."""

    activation_checkpointing: bool = False
    """Whether a layer's activations are recomputed in the backward pass instead of stored."""

    compile: bool = False
    """Whether layers and loss run as torch.compile makes them."""

    vocab_chunk: int | None = None
    """Columns of the logits that are held at a time; None is all of them, of a chunk of tokens."""

    most_skipped: int = 3
    """Steps in a row whose loss or gradient is not finite: each is skipped, one more stops the run."""

    def __post_init__(self) -> None:
        """Raise MinitronError for a setting that is out of range or contradicts another."""
        if (self.tokens is None) == (self.steps is None):
            raise MinitronError("a recipe needs either tokens or steps, not both; give one of them.")
        if self.batch_tokens == 0 and self.sequence_length > 0:
            object.__setattr__(self, "batch_tokens", usual_batch(self.tokens, self.steps, self.sequence_length))
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value != AUTO and not (math.isfinite(value) and value > 0):
                raise MinitronError(f"{_words(name)} is {value}; give a positive number.")
        if self.batch_tokens % self.sequence_length:
            raise MinitronError(
                f"batch tokens ({self.batch_tokens}) is not a multiple of the sequence length "
                f"({self.sequence_length}); give for example "
                f"{max(1, self.batch_tokens // self.sequence_length) * self.sequence_length}."
            )
        if self.sequence_length < 2:
            raise MinitronError("sequence length is 1, which leaves no token to predict; give 2 or more.")
        if self.tokens is not None and self.tokens < self.batch_tokens:
            raise MinitronError(
                f"{self.tokens} tokens are less than one step of {self.batch_tokens}; "
                "give more tokens or smaller batch tokens."
            )
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise MinitronError(f"{_words(name)} is {value}; give a number of 0 or more.")
        if self.stream_weight is not None and not (math.isfinite(self.stream_weight) and self.stream_weight >= 0):
            raise MinitronError(f"stream weight is {self.stream_weight}; give a number of 0 or more.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise MinitronError(f"betas are {self.betas}, but must lie in [0, 1); correct the recipe.")
        self._check_minimum_rate()
        if self.warmup_steps is not None and not 0 <= self.warmup_steps <= self.total_steps:
            raise MinitronError(
                f"{self.warmup_steps} warm-up steps do not fit into a run of {self.total_steps} steps; give fewer."
            )
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise MinitronError(f"there is no {_words(name)} {value!r}; choose one of {', '.join(known)}.")
        if self.mtp_lm_weight and not self.mtp_weight:
            raise MinitronError("the MTP LM weight is part of the MTP loss; give an MTP weight too.")
        if self.mtp_weight and self.train not in ("all", MTP):
            raise MinitronError(
                f"the MTP block is trained with all parameters or alone; set train to all or {MTP}, or drop the MTP "
                "weight."
            )
        if self.train == MTP:
            self._check_mtp_alone()
        self._check_on_policy()
        sparse = parse_loss(self.loss).divergence.pick is not None
        if sparse and self.vocab_chunk is not None:
            raise MinitronError(f"the loss {self.loss} needs the whole vocabulary; drop the vocab chunk.")

    def _check_minimum_rate(self) -> None:
        if self.minimum_learning_rate is None or self.learning_rate is None:
            return
        if self.learning_rate == AUTO:
            raise MinitronError(
                "a learning rate that is to be found ends at a tenth of itself; drop the minimum learning rate."
            )
        if self.minimum_learning_rate > self.peak:
            raise MinitronError(
                f"the minimum learning rate ({self.minimum_learning_rate}) is above the peak "
                f"({self.learning_rate}); lower it or drop it."
            )

    def _check_mtp_alone(self) -> None:
        """Raise MinitronError for a part of the loss that teaches nothing but what stays as it is."""
        if not self.mtp_weight:
            raise MinitronError(f"train is {MTP}, which trains the MTP block alone; give an MTP weight too.")
        for name in ("lm_weight", "cosine_weight", "stream_weight"):
            if getattr(self, name):
                raise MinitronError(
                    f"train is {MTP}, and the {_words(name)} is of parameters that stay; drop one of them."
                )

    def _check_on_policy(self) -> None:
        if self.on_policy > 1:
            raise MinitronError(f"the on-policy share is {self.on_policy}; give a share from 0 to 1.")
        if parse_loss(self.on_policy_loss).divergence.pick is not None:
            raise MinitronError(
                f"the on-policy loss {self.on_policy_loss} reads a few tokens of the vocabulary only; give reverse_kl "
                "or jsd:0.5."
            )
        if not 0 < self.answer_tokens < self.sequence_length:
            raise MinitronError(
                f"answers of {self.on_policy_answer} tokens leave nothing of a sequence of {self.sequence_length} for "
                "the prompt; give a smaller --on-policy-answer or a larger --sequence-length."
            )

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer that the student writes itself."""
        return self.on_policy_answer or max(1, self.sequence_length // 2)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else (self.tokens or 0) // self.batch_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.total_steps * self.batch_tokens

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimiser step, over all processes."""
        return self.batch_tokens // self.sequence_length

    @property
    def sequences_per_pass(self) -> int:
        """Sequences in one forward pass."""
        return min(self.micro_batch or max(1, _PASS_TOKENS // self.sequence_length), self.sequences_per_step)

    @property
    def peak(self) -> float:
        """The highest learning rate, of a recipe that gives it or of a student of no known width."""
        if isinstance(self.learning_rate, str):
            raise ValueError("this learning rate is still to be found")
        return PUBLISHED if self.learning_rate is None else self.learning_rate

    @property
    def last_learning_rate(self) -> float:
        """The learning rate at the end."""
        if self.minimum_learning_rate is not None:
            return self.minimum_learning_rate
        return LEAST_LEARNING_RATE_SHARE * self.peak

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(1, math.ceil(self.total_steps / 5))

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_every or max(1, min(500, math.ceil(self.total_steps / 10)))

    def saves_behind(self, device: torch.device) -> bool:
        """Whether checkpoints of a student on `device` are written behind the steps that follow."""
        return device.type != "cpu" if self.async_checkpoints is None else self.async_checkpoints

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 .. total_steps - 1: a linear warm-up, then half a cosine down to the last one."""
        warmup = min(100, self.total_steps // 10) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        # The first step after the warm-up has the highest rate, the last step of the run the lowest.
        progress = (step - warmup) / max(1, self.total_steps - 1 - warmup)
        span = self.peak - self.last_learning_rate
        return self.last_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON gives them back."""
        return asdict(self) | {"betas": list(self.betas), "tasks": list(self.tasks)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` told, or a file; raises MinitronError for a value of the wrong kind."""
        if wrong := misfit(values, cls):
            raise MinitronError(f"{wrong}; correct the recipe.")
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**given)


_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "precision": get_args(Dtype),
    "train": TRAINED,
    "stream_norm": STREAM_NORMS,
    "loss_kernel": KERNELS,
    "select": SELECTED,
}
"""Field -> what it may be."""

_NOT_NEGATIVE: Final = (
    "seed",
    "weight_decay",
    "lm_weight",
    "mtp_weight",
    "mtp_lm_weight",
    "cosine_weight",
    "most_skipped",
    "most_broken",
    "on_policy",
    "on_policy_temperature",
)

_POSITIVE: Final = tuple(
    field.name
    for field in fields(Recipe)
    if field.name
    not in {
        *("betas", "tasks", "precision", "loss", "loss_kernel", "warmup_steps", "assistant_only"),
        *(
            "train",
            "select",
            "activation_checkpointing",
            "async_checkpoints",
            "compile",
            "stream_weight",
            "stream_norm",
            "on_policy_loss",
        ),
        *_NOT_NEGATIVE,
    }
)


def _words(name: str) -> str:
    return name.replace("_", " ")
