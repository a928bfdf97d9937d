"""The training objective: the recipe's mix of losses over one batch of sequences.

Shape letters: B sequences, T tokens, N = B * T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from distill.losses.chunked import LossOptions, chunked_loss, hidden_cosine, sparse_loss
from distill.losses.divergences import Sparse, parse_loss
from distill.losses.liger import liger_loss
from distill.recipe import MTP, Recipe
from distill.run.mtp import PREFIX, Predictor
from distill.run.passes import Pass
from distill.run.stream_match import Seen, StreamMatch
from distill.teacher.cache import TeacherCache
from distill.teacher.streamed import StreamedTeacher
from distill.teacher.teacher_source import Reference
from minitron.measure.quality import hidden_states
from minitron.model.families.logits import PLAIN, LogitMap
from minitron.model.output_layer import OutputLayer, logit_map, widened

PROJECTION = "projection"

OWN_STREAMS = True


@dataclass(frozen=True)
class _Rows:
    """What is to be learnt at each of N tokens."""

    theirs: Tensor | Sparse
    """The teacher's states [N, H], or what a cache kept of it."""

    mask: Tensor | None
    following: Tensor | None
    """As for distill.losses.chunked.chunked_loss."""

    def of(self, numbers: Tensor) -> _Rows:
        """Those of some of the tokens."""
        mask, following = (None if one is None else one[numbers] for one in (self.mask, self.following))
        return _Rows(self.theirs[numbers], mask, following)


class Objective(nn.Module):
    """The loss of a student beside its teacher; a module, so that the student's parameters are there while it runs."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Reference,
        recipe: Recipe,
        mtp: Predictor | None = None,
        stream: StreamMatch | None = None,
        others: Sequence[Reference] = (),
    ) -> None:
        """Where hidden states of two widths are compared, a linear that is trained along turns one into the other;
        `mtp` is the student's own multi-token-prediction block, where it is trained along, `stream` compares the
        residual streams; `others` are the teachers of passes that have another than the first."""
        super().__init__()
        self.student, self.recipe, self.mtp, self.stream = student, recipe, mtp, stream
        # Not a part of this module: their parameters are their own affair.
        self.teachers: tuple[Reference, ...] = (teacher, *others)
        self._copied_heads: dict[int, Tensor] = {}
        self.projection: nn.Parameter | None = None
        if recipe.cosine_weight and not isinstance(teacher, TeacherCache):
            self.projection = _projection(student, teacher)

    @property
    def teacher(self) -> Reference:
        """What the student is compared with, where there is but one."""
        return self.teachers[0]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: the student's parameters and what goes along with them."""
        own = {} if self.projection is None else {PROJECTION: self.projection}
        if self.mtp is not None:
            own |= {f"{PREFIX}{name}": parameter for name, parameter in self.mtp.named_parameters()}
        return dict(self.student.named_parameters()) | own

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 matmuls over fp32 weights, where the recipe wants bf16."""
        return torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def forward(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, done while the student's parameters are whole."""
        return work()

    def loss(self, part: Pass, place: int) -> Tensor:
        """The part that some sequences have in the loss of a whole batch."""
        return self.total(self.losses(part, place))

    def total(self, losses: Tensor) -> Tensor:
        """What is minimised, of `losses`."""
        return losses[0] if self.stream is None else losses[0] + self.stream.weight * losses[1]

    def losses(self, part: Pass, place: int) -> Tensor:
        """[2]: the part that some sequences have in the loss of a whole batch, and in the error of its residual
        streams, 0 where they are not compared; what is said of a token is learnt at the one before it.  Chance follows
        from `place`, the number of the first sequence since the run began."""
        recipe, head = self.recipe, OutputLayer(self.student.get_output_embeddings())
        stays = recipe.train == MTP
        with self._watching(part) as seen:
            rows = self._rows(part)
            with self.autocast(), torch.no_grad() if stays else nullcontext():
                mine = hidden_states(self.student, part.ids)
        with self.autocast():
            total = torch.zeros((), device=mine.device)
            if not stays:
                how = self._options(part, part.divisor, recipe.lm_weight, _seed(recipe.seed, place))
                total = self._compare(part, mine.flatten(0, 1), head, rows, how)
            if self.mtp is not None:
                ids = part.ids.to(mine.device)
                drafted = self.mtp(mine[:, :-1], self.student.get_input_embeddings()(ids[:, 1:]))
                later = rows.of(torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, 1:].flatten())
                # The weight goes into the divisor: what adds to the head's gradient at once knows no other.
                divisor = part.divisor / recipe.mtp_weight
                how = self._options(part, divisor, recipe.mtp_lm_weight, _seed(recipe.seed, place, 1))
                total = total + self._compare(part, drafted.flatten(0, 1), head, later, how)
            if recipe.cosine_weight:
                assert isinstance(rows.theirs, Tensor)
                cosine = hidden_cosine(
                    mine.flatten(0, 1), rows.theirs, self.projection, mask=rows.mask, divisor=part.divisor
                )
                total = total + recipe.cosine_weight * cosine
        error = torch.zeros_like(total) if seen is None or self.stream is None else self.stream.error(seen)
        return torch.stack([total, error * (part.ids.numel() / recipe.batch_tokens)])

    def _watching(self, part: Pass) -> AbstractContextManager[Seen | None]:
        """The residual streams, where they are compared: with those of the parent, which is the first teacher."""
        if self.stream is None or part.teacher != 0 or (part.is_own and not OWN_STREAMS):
            return nullcontext()
        return self.stream.watching(part.ids, part.places)

    def _rows(self, part: Pass) -> _Rows:
        """What is to be learnt at each token of some sequences."""
        recipe, device = self.recipe, self.student.device
        mask = None if part.counted is None else before_counted(part.counted).to(device)
        next_ids = following(part.ids).to(device) if recipe.lm_weight or recipe.mtp_lm_weight else None
        if isinstance(self.teacher, TeacherCache):
            return _Rows(self.teacher.targets(part.places).to(device), mask, next_ids)
        with torch.no_grad():
            theirs = self._teacher_states(part).flatten(0, 1).to(device)
        return _Rows(theirs, mask, next_ids)

    def _options(self, part: Pass, divisor: float, lm_weight: float, seed: int) -> LossOptions:
        """What the recipe asks of every loss, and what it asks of this one."""
        teacher = self.teachers[part.teacher]
        return LossOptions(
            student_logits=logit_map(self.student),
            teacher_logits=PLAIN if isinstance(teacher, TeacherCache) else _logits_of(teacher),
            # What the student has written is no example of what is to be written.
            lm_weight=0.0 if part.is_own else lm_weight,
            divisor=divisor,
            vocab_chunk=self.recipe.vocab_chunk,
            temperature=self.recipe.temperature,
            seed=seed,
            compiled=self.recipe.compile,
        )

    def _compare(self, part: Pass, states: Tensor, layer: OutputLayer, rows: _Rows, how: LossOptions) -> Tensor:
        """The loss of states [N, H] of a pass beside what the teacher says of the same tokens."""
        loss, head = parse_loss(self.recipe.on_policy_loss if part.is_own else self.recipe.loss), layer.matrix
        asked = {"mask": rows.mask, "following": rows.following, "head_gradient": self._head_gradient(layer)}
        states = widened(states, head)
        if isinstance(rows.theirs, Sparse):
            assert isinstance(self.teacher, TeacherCache)
            return sparse_loss(loss, states, head, rows.theirs, how, vocab=self.teacher.vocab, **asked)
        theirs = self._teacher_head(part.teacher, self.student.device)
        reference = widened(rows.theirs, theirs)
        if self.recipe.loss_kernel == "liger" and not part.is_own:
            assert how.divisor is not None
            return liger_loss(loss, states, head, reference, theirs, mask=rows.mask, divisor=how.divisor)
        return chunked_loss(loss, states, head, reference, theirs, how, **asked)

    def _teacher_states(self, part: Pass) -> Tensor:
        """[B, T, H] of the sequences of a pass."""
        teacher = self.teachers[part.teacher]
        if isinstance(teacher, StreamedTeacher):
            return teacher.hidden_states(part.ids)
        assert isinstance(teacher, PreTrainedModel)
        return hidden_states(teacher, part.ids)

    def _teacher_head(self, number: int, device: torch.device) -> Tensor:
        """The matrix of a teacher's output layer, of which the student's `device` has a copy where the teacher is on
        another or it holds a bias."""
        layer = _output_layer(self.teachers[number])
        if layer.weight.device == device and layer.bias is None:
            return layer.weight
        if number not in self._copied_heads:
            self._copied_heads[number] = layer.matrix.detach().to(device)
        return self._copied_heads[number]

    def _head_gradient(self, layer: OutputLayer) -> Tensor | None:
        """Where the output layer's gradient may be added at once; of one that is dealt out or rounded, or whose bias is
        a part of the matrix, autograd must hear."""
        head = layer.weight
        if (
            isinstance(self, FSDPModule)
            or layer.bias is not None
            or layer.is_rounded
            or not (head.requires_grad and torch.is_grad_enabled())
        ):
            return None
        if head.grad is None:
            head.grad = torch.zeros_like(head)
        return head.grad


def following(ids: Tensor) -> Tensor:
    """[B, T] -> [N]: the token after each one; -1 after the last of a sequence, where it is not known."""
    shifted = torch.full_like(ids, -1)
    shifted[:, :-1] = ids[:, 1:]
    return shifted.flatten()


def before_counted(counted: Tensor) -> Tensor:
    """[B, T] -> [N]: whether the token after each one is to be learnt."""
    shifted = torch.zeros_like(counted)
    shifted[:, :-1] = counted[:, 1:]
    return shifted.flatten()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _output_layer(model: Reference) -> OutputLayer:
    """That of a model; what is done to its products stands elsewhere."""
    assert not isinstance(model, TeacherCache)
    return model.head if isinstance(model, StreamedTeacher) else OutputLayer(model.get_output_embeddings())


def _logits_of(model: PreTrainedModel | StreamedTeacher) -> LogitMap:
    """What a model does to the products of its output layer."""
    return model.head.map if isinstance(model, StreamedTeacher) else logit_map(model)


def _projection(student: PreTrainedModel, teacher: Reference) -> nn.Parameter | None:
    """[H', H] from the student's width to the teacher's, the same for every run; None where they are equal."""
    mine, theirs = (_output_layer(model).weight.shape[1] for model in (student, teacher))
    if mine == theirs:
        return None
    start = torch.randn(theirs, mine, generator=torch.Generator().manual_seed(0)) / mine**0.5
    return nn.Parameter(start.to(student.device))
