"""The trainer: optimiser steps of a student, and the state to resume them after a kill.

Shape letters: B sequences, T tokens, H hidden.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from distill.processes import Processes, own_part
from distill.recipe import MTP, Recipe
from distill.run.checkpoints import WEIGHTS, Checkpoints, names_of
from distill.run.compiled import Compiled
from distill.run.dealing import Dealing
from distill.run.domains import Faculty, pooled
from distill.run.mtp import Predictor, measure_drafts
from distill.run.objective import Objective
from distill.run.own_text import OwnText, staleness
from distill.run.passes import Pass
from distill.run.router_load import counted, load_of, routers_of
from distill.run.stream_match import StreamMatch
from distill.run.tasks import Ask
from distill.run.work import Work
from distill.teacher.streamed import StreamedTeacher
from distill.teacher.teacher_source import Reference, answers
from distill.text.data import Batch, Text
from minitron.allocator import keep_freed_memory
from minitron.errors import MinitronError
from minitron.measure import quality
from minitron.measure.benchmarks import Results
from minitron.model.backbone import backbone
from minitron.model.spec import ModelSpec

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_COUNT: Final = "step"
_RANDOM: Final = "rng.cpu"

_AHEAD: Final = 2**16
"""Tokens that a streamed teacher is asked about at once: 512 MiB of states at a width of 4,096."""


@dataclass(frozen=True)
class Beside:
    """What a run may have beside student, teacher and text."""

    ask: Ask | None = None
    """Tasks that validations ask too."""

    mtp: Predictor | None = None
    """The student's multi-token-prediction block, where it is trained."""

    spec: ModelSpec | None = None
    """The student's, where a table holds its family."""

    stream: StreamMatch | None = None
    """Compares residual streams."""

    own: OwnText | None = None
    """Gives the sequences that the student writes itself."""

    faculty: Faculty | None = None
    """The teachers of domains of text."""


NOTHING: Final = Beside()


class Trainer:
    """A student, its optimiser and where the run stands."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Reference,
        text: Text,
        recipe: Recipe,
        work: Work,
        processes: Processes,
        beside: Beside = NOTHING,
    ) -> None:
        """`student` has fp32 weights and is trained in place; `teacher` is only read."""
        own, faculty = beside.own, beside.faculty
        domains = None if faculty is None else faculty.domains
        self.dealing = Dealing(recipe.sequences_per_pass, processes, student.device, own, domains)
        self.staleness: float | None = None
        """How far the student that an endpoint serves is from this one, in nats a token, as last measured."""
        self.remarks: list[str] = []
        """What is to be told of the steps since it was last looked."""
        self._told: set[str] = set()
        self.student, self.text = student, text
        others = () if faculty is None else faculty.teachers
        self.objective = Objective(student, teacher, recipe, beside.mtp, beside.stream, others)
        self.work, self.processes = work, processes
        self.checkpoints = Checkpoints(
            work.folder, processes, keep=recipe.keep_checkpoints, behind=recipe.saves_behind(student.device)
        )
        # eval() turns dropout off, which only adds noise here, and keeps Mamba layers on a GPU off the fused kernel of
        # training mode, which reads weights past their modules.
        student.eval().requires_grad_(recipe.train not in ("router", MTP))
        if recipe.train not in ("all", MTP):
            _choose_trained(student, beside.spec, routers=recipe.train == "router")
        models = [model for model in (student, teacher, *others) if isinstance(model, PreTrainedModel)]
        self._compiled = Compiled(models if recipe.compile else [])
        if student.device.type == "cpu":
            keep_freed_memory()
        if recipe.activation_checkpointing:
            for layer in backbone(student).layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        processes.shard(self.objective, backbone(student).layers)
        if isinstance(teacher, PreTrainedModel):
            processes.shard(backbone(teacher), backbone(teacher).layers)
        # Its teacher's answers to the held-out text are needed at every validation and never change.
        self._references = [answers(each, student.device) for each in self.objective.teachers]
        self._ask = beside.ask
        self.begin_again(recipe)

    def begin_again(self, recipe: Recipe) -> None:
        """Stand before the first step of `recipe`, with an optimiser that has seen nothing; the weights, and what does
        not change from step to step, stay as they are."""
        self.recipe = recipe
        # Every step has a learning rate of its own.
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.parameters, recipe.weight_decay), lr=0.0, betas=recipe.betas, fused=True
        )
        self._asked = 0
        """The step up to which a streamed teacher was asked about sequences."""
        self.step = 0
        self.position = 0
        """Sequences read so far, over all processes."""
        self.seconds = 0.0
        """Time spent in steps."""
        self.losses: list[float] = []
        """The loss of every step so far; nan where it was skipped."""
        self.skipped = 0
        """Steps in a row that were skipped."""
        self.curve: list[dict[str, Any]] = []
        """The validations so far."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return self.objective.trained

    @property
    def best(self) -> dict[str, Any]:
        """The validation with the lowest KL, the first of equals; the one before training where there is no other."""
        # Behind a model that stays as it is only drafts become better.
        judged = "mtp_kl" if self.recipe.train == MTP else "kl"
        return min(self.curve[1:] or self.curve, key=lambda point: point[judged])

    @property
    def selected(self) -> dict[str, Any]:
        """The validation of the weights that the recipe selects."""
        return self.best if self.recipe.select == "best" else self.curve[-1]

    @property
    def is_done(self) -> bool:
        """Whether no step is left, or patience ran out."""
        since = sum(point["step"] > self.best["step"] for point in self.curve)
        return self.step >= self.recipe.total_steps or since >= (self.recipe.patience or self.step + 1)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.recipe.batch_tokens

    def train_step(self) -> dict[str, Any]:
        """Read one batch and make one step of the optimiser; returns its metrics.

        Where loss or gradient is not finite, weights and optimiser stay as they were.  Raises MinitronError when that
        happens more often in a row than the recipe allows."""
        started = time.perf_counter()
        recipe, processes = self.recipe, self.processes
        batch = self.text.batch(self.position, recipe.sequences_per_step, seed=recipe.seed)
        self._ask_ahead()
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for first, part in self.dealing.passes(batch, self.position, self._written):
            losses = self._forward_backward(part, self.position + first)
            # The student's own share of the loss is told beside the whole.
            parts.append(torch.cat([losses, losses[:1] * part.is_own]))
        loss, error, of_own = processes.sum(torch.stack(parts).sum(0)).tolist()
        parameters = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        norm = float(processes.gather(nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)))
        good = math.isfinite(loss) and math.isfinite(error) and math.isfinite(norm)
        self.skipped = 0 if good else self.skipped + 1
        if self.skipped > recipe.most_skipped:
            self.checkpoints.settle()
            raise MinitronError(
                f"the loss of step {self.step + 1} is {loss} and the norm of its gradient {norm}, not "
                f"finite for {self.skipped} steps in a row; start again (--overwrite) with a lower "
                "--learning-rate or --dtype fp32; the last good checkpoint is "
                f"{self.checkpoints.newest()}."
            )
        rate = recipe.learning_rate_at(self.step)
        if good:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        else:
            loss, norm = math.nan, math.nan
        found = {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
        found |= {} if self.objective.stream is None else {"stream_error": error}
        if count := len(self.dealing.own_numbers(self.position, recipe.sequences_per_step)):
            # As a mean over the tokens of the answers.
            found["on_policy_loss"] = of_own * recipe.sequences_per_step / count
            found |= {} if self.staleness is None else {"endpoint_staleness": self.staleness}
        self.step += 1
        self.position += recipe.sequences_per_step
        self.losses.append(loss)
        self.seconds += time.perf_counter() - started
        return {"step": self.step, "tokens": self.tokens} | (found if good else {"skipped": self.skipped})

    def _ask_ahead(self) -> None:
        """Ask a streamed teacher about the sequences of the steps to come: it reads its layers once for all of them."""
        recipe = self.recipe
        streamed = [teacher for teacher in self.objective.teachers if isinstance(teacher, StreamedTeacher)]
        if not streamed or self.step < self._asked:
            return
        each = recipe.sequences_per_step
        steps = min(max(1, _AHEAD // recipe.batch_tokens), recipe.total_steps - self.step)
        batches = [self.text.batch(self.position + i * each, each, seed=recipe.seed) for i in range(steps)]
        # The same sequences go together whatever the first step is: a run that goes on has the same numbers.
        mine = range(each)[self.processes.share(each)]
        size = math.gcd(len(mine), recipe.sequences_per_pass) if len(streamed) == 1 else 1
        for number, teacher in enumerate(streamed):
            blocks = [batch.ids[self.dealing.taught_by(number, batch, mine)] for batch in batches]
            if sum(map(len, blocks)):
                teacher.ask(np.concatenate(blocks), size)
        self._asked = self.step + steps

    def _written(self, own: OwnText, batch: Batch, numbers: list[int]) -> Batch:
        """The batch, in which the student has written some sequences itself."""
        prompts = own.prompts(self.text, batch, numbers)
        seed = np.random.SeedSequence((self.recipe.seed, self.position + numbers[0])).generate_state(1)[0]

        def work() -> Batch:
            with self.objective.autocast():
                found = own.answered(batch, numbers, prompts, int(seed))
                if self.step % self.recipe.validation_interval == 0:
                    self.staleness = staleness(self.student, own, found, numbers)
            return found

        with torch.no_grad():
            found: Batch = self.objective(work)
        self.processes.collect(self.objective)
        remarks = [own.answering.told]
        if self.staleness is not None:
            remarks.append(f"The endpoint's student is {self.staleness:.3g} nats a token from the one in training.")
        for remark in remarks:
            if remark is not None and remark not in self._told:
                self.remarks.append(remark)
                self._told.add(remark)
        return found

    def _forward_backward(self, part: Pass, place: int) -> Tensor:
        """Add the gradient of some sequences to the student's; returns their part of the batch's losses."""
        with self._compiled.on():
            losses: Tensor = self.objective(lambda: self.objective.losses(part, place))
            # Each process has a part of the batch's loss, of whose gradients the mean is taken.
            (self.objective.total(losses) * self.processes.world_size).backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def validate(self) -> dict[str, Any]:
        """The student against the teacher on the held-out sequences; the result joins the curve."""

        def measure() -> quality.Quality:
            with self.objective.autocast():
                return pooled(
                    [
                        quality.measure_quality(
                            self.student, blocks, teacher=teacher, batch_size=self.recipe.sequences_per_pass
                        )
                        for teacher, blocks in zip(self._references, self.dealing.held_out(self.text), strict=True)
                        if len(blocks)
                    ]
                )

        def drafted(mtp: Predictor) -> dict[str, float]:
            with self.objective.autocast():
                return measure_drafts(
                    self.student, mtp, self.text.validation, self._references[0], self.recipe.sequences_per_pass
                )

        def asked(ask: Ask) -> Results:
            with self.objective.autocast():
                return ask(self.student)

        with torch.no_grad():
            with counted(self.student) as tokens:
                found = self.objective(measure)
            results: dict[str, Any] = {}
            if self.objective.mtp is not None:
                results |= self.objective(partial(drafted, self.objective.mtp))
            if self._ask is not None:
                results["tasks"] = self.objective(partial(asked, self._ask))
        self.processes.collect(self.objective)
        assert found.kl_to_teacher is not None and found.top1_agreement is not None  # there was a teacher
        point = {
            "step": self.step,
            "tokens": self.tokens,
            "kl": found.kl_to_teacher,
            "perplexity": found.perplexity,
            "top1_agreement": found.top1_agreement,
            **load_of(tokens),
            **results,
        }
        self.curve.append(point)
        return point

    def keep_best(self) -> None:
        """Keep the weights of this moment where its validation is the best so far and not the last of the run."""
        if self.best["step"] != self.step or self.step == self.recipe.total_steps:
            return
        self.checkpoints.save_best(self.step, self._weights)

    @torch.no_grad()
    def own_weights(self) -> dict[str, Tensor]:
        """A copy of what is trained, of each tensor this process's part, in the CPU's memory."""
        return {name: own_part(parameter).to("cpu", copy=True) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put_weights(self, kept: Mapping[str, Tensor]) -> None:
        """Train on from what `own_weights` gave."""
        for name, parameter in self.parameters.items():
            own_part(parameter).copy_(kept[name])

    @property
    def _weights(self) -> dict[str, Tensor]:
        return {f"{WEIGHTS}{name}": parameter for name, parameter in self.parameters.items()}

    def save(self) -> None:
        """Write a checkpoint of this moment; all processes take part."""
        tensors = self._weights | {_RANDOM: torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
        state = {
            "step": self.step,
            "position": self.position,
            "seconds": self.seconds,
            "losses": [None if math.isnan(loss) else loss for loss in self.losses],
            "skipped": self.skipped,
            "curve": list(self.curve),
        }
        self.checkpoints.save(self.step, tensors, state)

    @torch.no_grad()
    def restore(self, checkpoint: Path) -> None:
        """Become what `save` wrote."""
        known = names_of(checkpoint)
        tensors = self._weights | {_RANDOM: torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            moments = {
                moment: torch.zeros_like(parameter) if moment != _COUNT else torch.zeros((), device=parameter.device)
                for moment in (*_MOMENTS, _COUNT)
                if f"{moment}.{name}" in known
            }
            self.optimizer.state[parameter] = moments
            tensors |= {f"{moment}.{name}": value for moment, value in moments.items()}
        state = self.checkpoints.restore(checkpoint, tensors)
        torch.set_rng_state(tensors[_RANDOM])
        self.step, self.position, self.seconds = state["step"], state["position"], state["seconds"]
        self.losses = [math.nan if loss is None else loss for loss in state["losses"]]
        self.skipped, self.curve = state["skipped"], state["curve"]


def _choose_trained(model: PreTrainedModel, spec: ModelSpec | None, *, routers: bool) -> None:
    """Train routers, or leave them as they are; raises MinitronError where there are none."""
    found = list(routers_of(model, spec))
    if not found:
        raise MinitronError("the student has no routers; drop --train.")
    for module in found:
        module.requires_grad_(routers)


def _parameter_groups(named: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; norms' gains, biases and the vectors of Mamba layers are not."""
    parameters = [parameter for parameter in named.values() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
