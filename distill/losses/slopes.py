"""One chunk of tokens: its losses and their gradients with respect to the output layer's products, which overwrite the
products.

Shape letters: C tokens of the chunk, H hidden (the student's and the teacher's may differ), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor

from distill.losses.divergences import Loss, Sparse
from minitron.model.families.logits import PLAIN, LogitMap

_ROWS: Final = 2**14
"""Rows of a head that are widened or narrowed at once: a copy of the whole never exists."""

_ROUNDING: Final = 2**-7
"""By how much a cached weight may differ from a cached probability that is the same."""

_FAR: Final = 1.4
_ALL_FAR: Final = 1.7
"""How fast a student's own guess loses its weight with the variation distance from the teacher: of the token, and of
all tokens that are worked on at once."""

_LOGITS: Final = {"cpu": 2**21}
_LOGITS_ELSEWHERE: Final = 2**25
"""fp32 logits of each model that are worked on at once: on a CPU few enough for its caches."""


@dataclass(frozen=True)
class Heads:
    """A teacher's last hidden states [C, H] and its output layer [V, H]."""

    hidden: Tensor
    head: Tensor

    def __getitem__(self, part: slice | Tensor) -> Heads:
        """Some of the tokens."""
        return Heads(self.hidden[part], self.head)


@dataclass(frozen=True)
class Settings:
    """What is asked for, as in distill.losses.chunked.chunked_loss; divisor and chunk are 0 until they are known."""

    loss: Loss
    vocab: int
    lm_weight: float = 0.0
    temperature: float = 1.0
    divisor: float = 0.0
    chunk: int = 0
    vocab_chunk: int | None = None
    seed: int = 0
    compiled: bool = False
    """Whether a dense divergence over the whole vocabulary runs as torch.compile makes it."""

    student_logits: LogitMap = PLAIN
    teacher_logits: LogitMap = PLAIN
    """What is done to the products of each output layer."""

    dtype: torch.dtype = torch.float32
    """The type of the matmuls with the student's head."""

    @property
    def wide(self) -> torch.dtype:
        """That of all else."""
        return sum_dtype(self.dtype)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of `dtype` are added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunks(count: int, length: int) -> Iterator[slice]:
    """0 .. `count` in slices of `length`."""
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def rows_at_once(columns: int, device: torch.device) -> int:
    """How many tokens' fp32 logits over so many columns are worked on at a time."""
    return max(1, _LOGITS.get(device.type, _LOGITS_ELSEWHERE) // columns)


def products_of(states: Tensor, head: Tensor) -> Tensor:
    """[C, H] and [V, H] -> [C, V] in the type of `states`, to which the head is narrowed block by block."""
    if head.dtype == states.dtype:
        return states @ head.T
    found = states.new_empty(len(states), len(head))
    for rows in chunks(len(head), _ROWS):
        found[:, rows] = states @ head[rows].to(states.dtype).T
    return found


def add_to_states(into: Tensor, slope: Tensor, head: Tensor) -> None:
    """into [C, H] += slope [C, V] @ head [V, H]."""
    if head.dtype == slope.dtype:
        into += slope @ head
        return
    for rows in chunks(len(head), _ROWS):
        into += slope[:, rows] @ head[rows].to(slope.dtype)


def add_to_head(into: Tensor, slope: Tensor, states: Tensor, factor: float) -> None:
    """into [V, H] += factor * slope^T [V, C] @ states [C, H]."""
    if into.dtype == states.dtype:
        into.addmm_(slope.T, states, alpha=factor)
        return
    for rows in chunks(len(into), _ROWS):
        into[rows].add_(slope[:, rows].T @ states, alpha=factor)


class Chunk:
    """Some tokens, block of the vocabulary by block; of one block alone there is one pass."""

    def __init__(
        self,
        states: Tensor,
        head: Tensor,
        reference: Heads | Sparse,
        following: Tensor | None,
        how: Settings,
        start: int,
    ) -> None:
        """`states` [C, H] in the type of the matmuls, `head` [V, H]; `following` [C] as for chunked_loss; `start` is
        the place of the first token, from which chance follows."""
        self.states, self.head, self.reference, self.following = states, head, reference, following
        self.how, self.start = how, start
        self.columns = list(chunks(how.vocab, how.vocab_chunk or how.vocab))
        several = len(self.columns) > 1
        mapped = how.student_logits
        self._student = self._log_sum(states, head, mapped, how.temperature) if several else None
        self._student_at_one = (
            self._log_sum(states, head, mapped, 1.0) if several and how.lm_weight and how.temperature != 1.0 else None
        )
        self._teacher = (
            self._log_sum(reference.hidden, reference.head, how.teacher_logits, how.temperature)
            if several and isinstance(reference, Heads)
            else None
        )
        self._total = self._sum_of_slopes() if several and how.loss.divergence.slope is None else None

    def slopes(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(columns, their part of each token's loss [C], its derivative by their products [C, columns])."""
        for columns in self.columns:
            mine, theirs = self._products(columns)
            losses = torch.empty(len(mine), dtype=self.how.wide, device=mine.device)
            for rows in self._rows(columns):
                losses[rows], slope = self._slope(mine, theirs, rows, columns)
                mine[rows] = slope
            yield columns, losses, mine

    def _slope(self, mine: Tensor, theirs: Tensor | None, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        divergence, heat = self.how.loss.divergence, self.how.temperature
        if self._is_compiled:
            assert theirs is not None
            return _compiled()(mine[rows], theirs[rows], self.how)
        log_q = self._log_q(mine, rows, heat)
        if isinstance(self.reference, Sparse) or divergence.pick is not None:
            losses, slope = _sparse(log_q, self._picked(theirs, rows), steady=divergence.is_unbiased)
        else:
            assert divergence.terms is not None and theirs is not None
            log_p = self._log_p(theirs, rows)
            losses, slope = divergence.terms(log_q, log_p, self.how.loss.parameter)
            q = log_q.exp() if self.how.lm_weight else log_q.exp_()
            if divergence.slope is not None:
                slope.add_(q, alpha=-divergence.slope)
            else:
                total = slope.sum(-1, keepdim=True) if self._total is None else self._total[rows]
                slope.addcmul_(q, total, value=-1.0)
        if heat != 1.0:
            # d(t^2 L(z / t)) / dz = t * dL: one factor t is lost to the division of the logits.
            losses, slope = losses * heat**2, slope.mul_(heat)
        if self.how.lm_weight and self.following is not None:
            if heat != 1.0:
                log_q = self._log_q(mine, rows, 1.0)
            following = self.following[rows]
            losses = losses + _cross_entropy(slope, log_q, following, columns, self.how.lm_weight)
        return losses, self.how.student_logits.pull_back(slope, mine[rows])

    @property
    def _is_compiled(self) -> bool:
        how, dense = self.how, isinstance(self.reference, Heads) and self.how.loss.divergence.terms is not None
        return how.compiled and dense and len(self.columns) == 1 and not how.lm_weight

    def _products(self, columns: slice) -> tuple[Tensor, Tensor | None]:
        mine = products_of(self.states, self.head[columns])
        if isinstance(self.reference, Sparse):
            return mine, None
        head = self.reference.head[columns]
        return mine, products_of(self.reference.hidden.to(head.dtype), head)

    def _rows(self, columns: slice) -> Iterator[slice]:
        return chunks(len(self.states), rows_at_once(columns.stop - columns.start, self.states.device))

    def _log_q(self, mine: Tensor, rows: slice, heat: float) -> Tensor:
        """The student's log-probabilities of some rows."""
        log_sum = self._student if heat == self.how.temperature else self._student_at_one
        return self._log(mine[rows], self.how.student_logits, heat, log_sum, rows)

    def _log_p(self, theirs: Tensor, rows: slice) -> Tensor:
        """The teacher's."""
        return self._log(theirs[rows], self.how.teacher_logits, self.how.temperature, self._teacher, rows)

    def _log(self, products: Tensor, mapped: LogitMap, heat: float, log_sum: Tensor | None, rows: slice) -> Tensor:
        """Log-probabilities in a buffer of their own; `log_sum` [C, 1] where they are not of the whole vocabulary."""
        logits = self._wide(products, mapped, heat)
        if log_sum is None:
            return torch.log_softmax(logits, -1, dtype=self.how.wide)
        return logits.to(self.how.wide) - log_sum[rows]

    def _wide(self, products: Tensor, mapped: LogitMap, heat: float) -> Tensor:
        """Logits over the temperature, widened where they are not the products themselves."""
        return products if mapped.is_plain and heat == 1.0 else mapped(products.to(self.how.wide)) / heat

    def _picked(self, theirs: Tensor | None, rows: slice) -> Sparse:
        """What a sparse divergence reads."""
        if isinstance(self.reference, Sparse):
            return self.reference[rows]
        pick, loss = self.how.loss.divergence.pick, self.how.loss
        assert pick is not None and theirs is not None
        seed = self.how.seed * 1_000_003 + self.start + rows.start
        chance = torch.Generator(self.states.device).manual_seed(seed)
        return pick(self._log_p(theirs, rows), round(loss.parameter), chance)

    def _log_sum(self, states: Tensor, head: Tensor, mapped: LogitMap, heat: float) -> Tensor:
        """[C, 1]: log of the sum of exp over the vocabulary."""
        parts = []
        for columns in self.columns:
            products = products_of(states.to(head.dtype) if head is not self.head else states, head[columns])
            found = [
                (mapped(products[rows].to(self.how.wide)) / heat).logsumexp(-1, keepdim=True)
                for rows in self._rows(columns)
            ]
            parts.append(torch.cat(found))
        return torch.stack(parts).logsumexp(0)

    def _sum_of_slopes(self) -> Tensor:
        """[C, 1]: the sum over the vocabulary of what the divergence's function gives."""
        terms, heat = self.how.loss.divergence.terms, self.how.temperature
        assert terms is not None
        total = torch.zeros(len(self.states), 1, dtype=self.how.wide, device=self.states.device)
        for columns in self.columns:
            mine, theirs = self._products(columns)
            assert theirs is not None
            for rows in self._rows(columns):
                log_q = self._log_q(mine, rows, heat)
                log_p = self._log_p(theirs, rows)
                total[rows] += terms(log_q, log_p, self.how.loss.parameter)[1].sum(-1, keepdim=True)
        return total


@cache
def _compiled() -> Callable[[Tensor, Tensor, Settings], tuple[Tensor, Tensor]]:
    """`_dense` in a few passes over memory."""
    made: Callable[[Tensor, Tensor, Settings], tuple[Tensor, Tensor]] = torch.compile(_dense, dynamic=False)
    return made


def _dense(mine: Tensor, theirs: Tensor, how: Settings) -> tuple[Tensor, Tensor]:
    """Losses [C] and their derivative [C, V] of a divergence over the whole vocabulary, from products [C, V]."""
    divergence, heat = how.loss.divergence, how.temperature
    assert divergence.terms is not None
    logits, reference = how.student_logits(mine.to(how.wide)), how.teacher_logits(theirs.to(how.wide))
    log_q, log_p = (torch.log_softmax(one / heat, -1) for one in (logits, reference))
    losses, slope = divergence.terms(log_q, log_p, how.loss.parameter)
    total = slope.sum(-1, keepdim=True) if divergence.slope is None else divergence.slope
    # d(t^2 L(z / t)) / dz = t * dL.
    slope = how.student_logits.pull_back((slope - total * log_q.exp()) * heat, mine)
    return losses * heat**2, slope.to(mine.dtype)


def _sparse(log_q: Tensor, picked: Sparse, *, steady: bool) -> tuple[Tensor, Tensor]:
    """Losses [C] and their derivative [C, V]; to `steady` the latter is right where weights are p on average."""
    weights, log_p = picked.weights.to(log_q.dtype), picked.log_p.to(log_q.dtype)
    losses = (weights * (log_p - log_q.gather(-1, picked.ids))).sum(-1)
    q = log_q.exp()
    if not steady:
        slope = q.mul_(weights.sum(-1, keepdim=True))
        return losses, slope.scatter_add_(-1, picked.ids, -weights)
    # The derivative is q * sum(target) - target, whatever numbers the target is made of.
    guess, corrections = _guess(q, picked.ids, weights, log_p.exp())
    total = guess.sum(-1, keepdim=True) + corrections.sum(-1, keepdim=True)
    slope = q.mul_(total).sub_(guess)
    return losses, slope.scatter_add_(-1, picked.ids, -corrections)


def _guess(q: Tensor, ids: Tensor, weights: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """(g [C, V], c [C, K]) such that g + c, put at `ids`, is the teacher on average, as `weights` are, with less noise.

    The difference estimator of survey sampling (Cassel, Saerndal, Wretman 1976): g is a share of the student's own q,
    which is known everywhere, and the sample has to tell only how far the teacher is from it: c = w - g w / p.  Where
    both agree no noise is left.  A guess that is far above p costs more than it gains, for rare tokens weigh much when
    they are drawn; so it is no higher than the weight t of a drawn token, above which there are none, and a student
    that is far from its teacher in the tokens kept for sure is trusted less.  Any share gives the same mean, for none
    depends on what was drawn; these were chosen by two students, at KL 0.04 and 0.37 from their teachers, and what they
    save is in benchmarks/RESULTS.md."""
    kept = weights <= p * (1 + _ROUNDING)  # those kept for sure have w = p
    mine = q.gather(-1, ids)
    known_p, known_q = ((one * kept).sum(-1, keepdim=True) for one in (p, mine))
    apart = ((mine - p).abs() * kept).sum(-1, keepdim=True) + (known_p - known_q).abs()
    share = (1 - _FAR * apart).clamp_min_(0) * (1 - _ALL_FAR * apart.mean()).clamp_min_(0)
    highest = weights.masked_fill(kept, 0.0).amax(-1, keepdim=True)
    ratio = (weights / p.clamp_min(torch.finfo(p.dtype).tiny)).masked_fill_(kept, 1.0)
    corrections = weights - torch.minimum(mine, highest) * share * ratio.mul_(weights > 0)
    return torch.minimum(q, highest).mul_(share), corrections


def _cross_entropy(slope: Tensor, log_q: Tensor, following: Tensor, columns: slice, weight: float) -> Tensor:
    """The columns' part of each token's weighted cross entropy; its derivative is added to `slope`."""
    weights = weight * (following >= 0).to(log_q.dtype)
    slope.addcmul_(log_q.exp(), weights[:, None])
    place = following - columns.start
    weights = weights * ((place >= 0) & (place < log_q.shape[1]))
    place = place.clamp(0, log_q.shape[1] - 1)[:, None]
    slope.scatter_add_(-1, place, -weights[:, None])
    return log_q.gather(-1, place)[:, 0].mul_(weights).neg_()
