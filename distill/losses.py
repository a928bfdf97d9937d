"""Losses between two models' next-token distributions, computed without ever holding [tokens, vocabulary] numbers.

`chunked_loss` walks over chunks of tokens, and on request over blocks of the vocabulary; what is compared there is one
of distill.divergences.

Shape letters: N tokens, C tokens of one chunk, H hidden (the student's and the teacher's may differ), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.divergences import Loss, Sparse

# Logits of one chunk, and the bounds of its length.  A long chunk leaves the processor's caches, a short one adds to
# the head's gradient, which is [V, H], too often; 2^24 logits are 64 MiB in fp32.
_CHUNK_LOGITS: Final = 2**24
_SHORTEST_CHUNK: Final = 128
_LONGEST_CHUNK: Final = 512

_ROWS: Final = 2**14
"""Rows of the head whose gradient is made at once: where a chunk's has to be widened, it is never there as a whole."""


def chunked_loss(
    loss: Loss,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    mask: Tensor | None = None,
    following: Tensor | None = None,
    lm_weight: float = 0.0,
    temperature: float = 1.0,
    divisor: float | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The loss of N tokens from last hidden states and output layers, summed and divided by `divisor`; a scalar.

    student_hidden [N, H], student_head [V, H], teacher_hidden [N, H'], teacher_head [V', H'].  Of two vocabularies of
    different length the tail of the longer is padding: those columns take no part, as if their logits were minus
    infinity on both sides.  `mask` [N] (bool) says which tokens count.  Logits are divided by `temperature` and the
    loss is multiplied by its square, so that gradients keep their size (Hinton et al. 2015, section 2).  `lm_weight`
    times the cross entropy of the token that follows, `following` [N] (-1: unknown, which costs nothing), is added, at
    temperature 1.  `divisor` is the number of tokens that count unless given: a part of a larger batch gives the whole
    batch's.  `chunk` tokens are worked on at a time, and of them `vocab_chunk` columns where that is given: logits are
    then made twice, three times where a divergence needs sums over the vocabulary first.  Picks by chance follow from
    `seed` and the chunk's place.

    The gradients of `student_hidden` and `student_head` are made in the same pass as the loss, so that a chunk's logits
    are forgotten before the next chunk; that of the head is summed in fp32 (float64 where the inputs are).  Nothing
    flows to the teacher.  Under autocast the matmuls with the student's head run in autocast's type.

    Raises ValueError for a sparse divergence over blocks of the vocabulary, which picks among all of it."""
    if loss.divergence.pick is not None and vocab_chunk is not None:
        raise ValueError(f"{loss.name} picks among the whole vocabulary")
    vocab = min(student_head.shape[0], teacher_head.shape[0])
    how = _Settings(loss, vocab, lm_weight, temperature, divisor, chunk, vocab_chunk, seed)
    return _apply(student_hidden, student_head, _Heads(teacher_hidden, teacher_head[:vocab]), mask, following, how)


def sparse_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    targets: Sparse,
    *,
    mask: Tensor | None = None,
    following: Tensor | None = None,
    lm_weight: float = 0.0,
    divisor: float | None = None,
    chunk: int | None = None,
    vocab: int | None = None,
) -> Tensor:
    """As `chunked_loss`, where what a sparse divergence reads of the teacher is known already: `targets` of N tokens.

    Columns from `vocab` on are padding."""
    how = _Settings(_KNOWN, vocab or student_head.shape[0], lm_weight, divisor=divisor, chunk=chunk)
    return _apply(student_hidden, student_head, targets, mask, following, how)


def hidden_cosine(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    projection: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    divisor: float | None = None,
) -> Tensor:
    """Sum over tokens of 1 - cosine(P s, t), divided by `divisor` (the tokens that count unless given); a scalar.

    student_hidden [N, H], teacher_hidden [N, H'], `projection` P [H', H] where the widths differ (Muralidharan et al.
    2024, Minitron, arXiv 2407.14679, section 3: states go through a learned linear).  Reckoned in fp32."""
    if mask is not None:
        kept = mask.nonzero().squeeze(-1)
        student_hidden, teacher_hidden = student_hidden[kept], teacher_hidden[kept]
    mine = student_hidden if projection is None else student_hidden @ projection.to(student_hidden.dtype).T
    wide = _sum_dtype(mine.dtype)
    with torch.autocast(mine.device.type, enabled=False):
        cosines = torch.cosine_similarity(mine.to(wide), teacher_hidden.detach().to(wide), dim=-1)
        total: Tensor = (1 - cosines).sum() / (divisor if divisor is not None else max(len(mine), 1))
    return total


def chunk_length(vocab_size: int) -> int:
    """How many tokens' logits are held at a time."""
    return max(_SHORTEST_CHUNK, min(_LONGEST_CHUNK, _CHUNK_LOGITS // vocab_size))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a matmul with `hidden` runs here: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def chunks(count: int, length: int) -> Iterator[slice]:
    """0 .. `count` in slices of `length`."""
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


_KNOWN: Final = Loss("sampled")


@dataclass(frozen=True)
class _Heads:
    """A teacher's last hidden states and its output layer."""

    hidden: Tensor
    head: Tensor

    def __getitem__(self, part: slice | Tensor) -> _Heads:
        return _Heads(self.hidden[part], self.head)


@dataclass(frozen=True)
class _Settings:
    loss: Loss
    vocab: int
    lm_weight: float = 0.0
    temperature: float = 1.0
    divisor: float | None = None
    chunk: int | None = None
    vocab_chunk: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    """The type of the matmuls with the student's head."""

    @property
    def wide(self) -> torch.dtype:
        """That of all else."""
        return _sum_dtype(self.dtype)


def _apply(
    student_hidden: Tensor,
    student_head: Tensor,
    reference: _Heads | Sparse,
    mask: Tensor | None,
    following: Tensor | None,
    how: _Settings,
) -> Tensor:
    if mask is not None:
        kept = mask.nonzero().squeeze(-1)
        student_hidden, reference = student_hidden[kept], reference[kept]
        following = None if following is None else following[kept]
    how = replace(
        how,
        dtype=compute_dtype(student_hidden),
        divisor=how.divisor if how.divisor is not None else float(max(len(student_hidden), 1)),
        chunk=how.chunk or chunk_length(student_head.shape[0]),
        lm_weight=how.lm_weight if following is not None else 0.0,
    )
    result: Tensor = _ChunkedLoss.apply(student_hidden, student_head, reference, following, how)  # type: ignore[no-untyped-call]
    return result


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        reference: _Heads | Sparse,
        following: Tensor | None,
        how: _Settings,
    ) -> Tensor:
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        wide = _sum_dtype(student_hidden.dtype)
        # Without this the ambient autocast would turn the fp32 sums below into bf16 ones.
        with torch.autocast(student_hidden.device.type, enabled=False):
            head = student_head[: how.vocab].to(how.dtype)
            total = torch.zeros((), dtype=wide, device=student_hidden.device)
            hidden_gradient = torch.empty_like(student_hidden) if needs_hidden else None
            head_gradient = torch.zeros_like(student_head, dtype=wide) if needs_head else None
            for part in chunks(len(student_hidden), how.chunk or len(student_hidden)):
                states = student_hidden[part].to(how.dtype)
                aside = torch.zeros_like(states, dtype=wide) if needs_hidden else None
                known = None if following is None else following[part]
                for columns, losses, slope in _slopes(states, head, reference[part], known, how, part.start):
                    total += losses.sum()
                    slope = slope.to(how.dtype)
                    if aside is not None:
                        aside += slope @ head[columns]
                    if head_gradient is not None:
                        _add_product(head_gradient[columns], slope, states)
                if hidden_gradient is not None and aside is not None:
                    hidden_gradient[part] = aside
        ctx.gradients = (hidden_gradient, None if head_gradient is None else head_gradient.to(student_head.dtype))
        factor = 1.0 / (how.divisor or 1.0)
        ctx.factor = factor
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and handed over: the head's gradient may be gigabytes, and nobody else reads it.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a chunked loss can be taken once only")
        factor = upstream * ctx.factor
        return (*(None if gradient is None else gradient.mul_(factor) for gradient in gradients), None, None, None)


def _add_product(into: Tensor, slope: Tensor, states: Tensor) -> None:
    """into [V, H] += slope^T [V, C] @ states [C, H]."""
    if into.dtype == states.dtype:
        into.addmm_(slope.T, states)
        return
    wide = states.to(into.dtype)
    for rows in chunks(len(into), _ROWS):
        if into.device.type == "cpu":
            # To add a bf16 product to fp32 sums takes longer there than to multiply in fp32.
            into[rows].addmm_(slope[:, rows].T.to(into.dtype), wide)
        else:
            into[rows] += slope[:, rows].T @ states


def _slopes(
    states: Tensor, head: Tensor, reference: _Heads | Sparse, following: Tensor | None, how: _Settings, start: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of one chunk: (columns, their part of each token's loss [C], its derivative by their logits [C, columns])."""
    divergence, heat = how.loss.divergence, how.temperature
    blocks = _Blocks(states, head, reference, how)
    for columns in blocks.columns:
        log_q = blocks.log_q(columns)
        if isinstance(reference, Sparse) or divergence.pick is not None:
            losses, slope = _sparse(log_q, blocks.picked(start))
        else:
            assert divergence.terms is not None
            losses, slope = divergence.terms(log_q, blocks.log_p(columns), how.loss.parameter)
            q = log_q.exp() if how.lm_weight else log_q.exp_()
            if divergence.slope is not None:
                slope.add_(q, alpha=-divergence.slope)
            else:
                slope.addcmul_(q, blocks.total(slope), value=-1.0)
        if heat != 1.0:
            # d(t^2 L(z / t)) / dz = t * dL: one factor t is lost to the division of the logits.
            losses, slope = losses * heat**2, slope.mul_(heat)
        if how.lm_weight and following is not None:
            losses = losses + _cross_entropy(slope, blocks.log_q_at_one(log_q, columns), following, columns, how)
        yield columns, losses, slope


def _sparse(log_q: Tensor, picked: Sparse) -> tuple[Tensor, Tensor]:
    weights = picked.weights.to(log_q.dtype)
    losses = (weights * (picked.log_p.to(log_q.dtype) - log_q.gather(-1, picked.ids))).sum(-1)
    slope = log_q.exp().mul_(weights.sum(-1, keepdim=True))
    return losses, slope.scatter_add_(-1, picked.ids, -weights)


def _cross_entropy(slope: Tensor, log_q: Tensor, following: Tensor, columns: slice, how: _Settings) -> Tensor:
    """[C]: the columns' part of the weighted cross entropy; its derivative is added to `slope`."""
    weights = how.lm_weight * (following >= 0).to(log_q.dtype)
    slope.addcmul_(log_q.exp(), weights[:, None])
    place = following - columns.start
    weights = weights * ((place >= 0) & (place < log_q.shape[1]))
    place = place.clamp(0, log_q.shape[1] - 1)[:, None]
    slope.scatter_add_(-1, place, -weights[:, None])
    return log_q.gather(-1, place)[:, 0].mul_(weights).neg_()


class _Blocks:
    """The log-probabilities of one chunk, block of the vocabulary by block; of one block alone there is one pass."""

    def __init__(self, states: Tensor, head: Tensor, reference: _Heads | Sparse, how: _Settings) -> None:
        self.states, self.head, self.reference, self.how = states, head, reference, how
        self.columns = list(chunks(how.vocab, how.vocab_chunk or how.vocab))
        several = len(self.columns) > 1
        self._student = self._log_sum(self._logits_q) if several else None
        self._teacher = self._log_sum(self._logits_p) if several else None
        self._student_at_one = (
            self._log_sum(lambda columns: self._logits_q(columns).mul_(how.temperature))
            if several and how.lm_weight and how.temperature != 1.0
            else None
        )
        self._total = self._sum_of_slopes() if several and how.loss.divergence.slope is None else None

    def log_q(self, columns: slice) -> Tensor:
        """[C, columns] of the student, a buffer of its own."""
        return _normalised(self._logits_q(columns), self._student)

    def log_p(self, columns: slice) -> Tensor:
        """[C, columns] of the teacher, a buffer of its own."""
        return _normalised(self._logits_p(columns), self._teacher)

    def log_q_at_one(self, log_q: Tensor, columns: slice) -> Tensor:
        """[C, columns] of the student at temperature 1."""
        if self.how.temperature == 1.0:
            return log_q
        if self._student_at_one is None:
            return torch.log_softmax(log_q * self.how.temperature, -1)
        return self._logits_q(columns).mul_(self.how.temperature).sub_(self._student_at_one)

    def picked(self, start: int) -> Sparse:
        """What a sparse divergence reads; `start` is the chunk's first token."""
        if isinstance(self.reference, Sparse):
            return self.reference
        pick, loss = self.how.loss.divergence.pick, self.how.loss
        assert pick is not None
        chance = torch.Generator(self.states.device).manual_seed(self.how.seed * 1_000_003 + start)
        return pick(self.log_p(self.columns[0]), round(loss.parameter), chance)

    def total(self, slope: Tensor) -> Tensor:
        """[C, 1]: the sum over the vocabulary of what a divergence's function gave, of which `slope` is a block."""
        return slope.sum(-1, keepdim=True) if self._total is None else self._total

    def _sum_of_slopes(self) -> Tensor:
        terms = self.how.loss.divergence.terms
        assert terms is not None
        parts = [
            terms(self.log_q(columns), self.log_p(columns), self.how.loss.parameter)[1].sum(-1, keepdim=True)
            for columns in self.columns
        ]
        return torch.stack(parts).sum(0)

    def _log_sum(self, logits: Callable[[slice], Tensor]) -> Tensor:
        """[C, 1]: log of the sum of exp over the vocabulary."""
        parts = [logits(columns).logsumexp(-1, keepdim=True) for columns in self.columns]
        return torch.stack(parts).logsumexp(0)

    def _logits_q(self, columns: slice) -> Tensor:
        return self._logits(self.states, self.head[columns])

    def _logits_p(self, columns: slice) -> Tensor:
        assert isinstance(self.reference, _Heads)
        return self._logits(self.reference.hidden, self.reference.head[columns])

    def _logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        logits = (hidden.to(head.dtype) @ head.T).to(self.how.wide)
        return logits if self.how.temperature == 1.0 else logits.div_(self.how.temperature)


def _normalised(logits: Tensor, log_sum: Tensor | None) -> Tensor:
    return torch.log_softmax(logits, -1) if log_sum is None else logits.sub_(log_sum)
