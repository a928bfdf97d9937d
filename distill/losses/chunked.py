"""Losses between two models' next-token distributions, computed in chunks, without a whole [tokens, vocabulary] tensor.

`chunked_loss` walks over chunks of tokens, and on request over blocks of the vocabulary; what is compared there is one
of distill.losses.divergences.

Shape letters: N tokens, C tokens of one chunk, H hidden (the student's and the teacher's may differ), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.losses.divergences import Loss, Sparse
from distill.losses.slopes import Chunk, Heads, Settings, add_to_head, add_to_states, chunks, sum_dtype
from minitron.model.families.logits import PLAIN, LogitMap

# Logits of one chunk, and the bounds of its length.  A short chunk adds to the head's gradient, which is [V, H], too
# often; 2^27 logits are 256 MiB in bf16, of each model.
_CHUNK_LOGITS: Final = 2**27
_SHORTEST_CHUNK: Final = 128
_LONGEST_CHUNK: Final = 1024


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What is asked of a loss beside its divergence; of all but the first four `sparse_loss` knows nothing."""

    lm_weight: float = 0.0
    """Times the cross entropy of the token that follows, at temperature 1, added to the loss."""

    divisor: float | None = None
    """The number of tokens that count unless given: a part of a larger batch gives the whole batch's."""

    chunk: int | None = None
    """Tokens that are worked on at a time."""

    student_logits: LogitMap = PLAIN
    """What the student does to the products of its output layer."""

    vocab_chunk: int | None = None
    """Of them so many columns, where it is given: logits are then made twice, three times where a divergence needs
    sums over the vocabulary first."""

    temperature: float = 1.0
    """Divides logits; the loss is multiplied by its square, so that gradients keep their size (Hinton et al. 2015,
    section 2)."""

    teacher_logits: LogitMap = PLAIN
    """What the teacher does to the products of its output layer."""

    seed: int = 0
    """From it and the chunk's place follow picks by chance."""

    compiled: bool = False
    """Whether torch.compile fuses what a dense divergence does with logits."""


def chunked_loss(
    loss: Loss,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    options: LossOptions | None = None,
    *,
    mask: Tensor | None = None,
    following: Tensor | None = None,
    head_gradient: Tensor | None = None,
) -> Tensor:
    """The loss of N tokens from last hidden states and output layers, summed and divided; a scalar.

    student_hidden [N, H], student_head [V, H], teacher_hidden [N, H'], teacher_head [V', H'].  Of two vocabularies of
    different length the tail of the longer is padding: those columns take no part, as if their logits were minus
    infinity on both sides.  `mask` [N] (bool) says which tokens count, `following` [N] which token follows each (-1:
    unknown, which costs nothing).

    The gradients of `student_hidden` and `student_head` are made in the same pass as the loss, so that a chunk's logits
    are forgotten before the next chunk; that of the head is summed in fp32 (float64 where the inputs are).  Nothing
    flows to the teacher.  Under autocast the matmuls with the student's head run in autocast's type.  Given
    `head_gradient` [V, H], in fp32, that of the head is added to it at once and autograd hears nothing of the head: no
    second [V, H] ever exists; the loss must then be summed with a weight of one into what backward() is called on.

    Raises ValueError for a sparse divergence over blocks of the vocabulary, which picks among all of it."""
    asked = options or LossOptions()
    if loss.divergence.pick is not None and asked.vocab_chunk is not None:
        raise ValueError(f"{loss.name} picks among the whole vocabulary")
    vocab = min(student_head.shape[0], teacher_head.shape[0])
    how = Settings(
        loss,
        vocab,
        lm_weight=asked.lm_weight,
        temperature=asked.temperature,
        divisor=asked.divisor or 0.0,
        chunk=asked.chunk or 0,
        vocab_chunk=asked.vocab_chunk,
        seed=asked.seed,
        compiled=asked.compiled,
        student_logits=asked.student_logits,
        teacher_logits=asked.teacher_logits,
    )
    reference = Heads(teacher_hidden, teacher_head[:vocab])
    return _apply(student_hidden, student_head, reference, mask, following, head_gradient, how)


def sparse_loss(
    loss: Loss,
    student_hidden: Tensor,
    student_head: Tensor,
    targets: Sparse,
    options: LossOptions | None = None,
    *,
    mask: Tensor | None = None,
    following: Tensor | None = None,
    vocab: int | None = None,
    head_gradient: Tensor | None = None,
) -> Tensor:
    """As `chunked_loss`, where what the sparse `loss` reads of the teacher is known already: `targets` of N tokens.

    Columns from `vocab` on are padding."""
    asked, columns = options or LossOptions(), vocab or student_head.shape[0]
    how = Settings(
        loss,
        columns,
        asked.lm_weight,
        divisor=asked.divisor or 0.0,
        chunk=asked.chunk or 0,
        student_logits=asked.student_logits,
    )
    return _apply(student_hidden, student_head, targets, mask, following, head_gradient, how)


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
    wide = sum_dtype(mine.dtype)
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


def _apply(
    student_hidden: Tensor,
    student_head: Tensor,
    reference: Heads | Sparse,
    mask: Tensor | None,
    following: Tensor | None,
    head_gradient: Tensor | None,
    how: Settings,
) -> Tensor:
    if mask is not None:
        kept = mask.nonzero().squeeze(-1)
        student_hidden, reference = student_hidden[kept], reference[kept]
        following = None if following is None else following[kept]
    how = replace(
        how,
        dtype=compute_dtype(student_hidden),
        divisor=how.divisor or float(max(len(student_hidden), 1)),
        chunk=how.chunk or chunk_length(student_head.shape[0]),
        lm_weight=how.lm_weight if following is not None else 0.0,
    )
    if head_gradient is not None:
        student_head = student_head.detach()
    arguments = (student_hidden, student_head, reference, following, head_gradient, how)
    result: Tensor = _ChunkedLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        reference: Heads | Sparse,
        following: Tensor | None,
        into: Tensor | None,
        how: Settings,
    ) -> Tensor:
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        factor = 1.0 / how.divisor
        # Without this the ambient autocast would turn the fp32 sums below into bf16 ones.
        with torch.autocast(student_hidden.device.type, enabled=False):
            wide = sum_dtype(student_hidden.dtype)
            total = torch.zeros((), dtype=wide, device=student_hidden.device)
            hidden_gradient = torch.empty_like(student_hidden) if needs_hidden else None
            head_gradient = torch.zeros_like(student_head, dtype=wide) if needs_head else into
            for part in chunks(len(student_hidden), how.chunk):
                states = student_hidden[part].to(how.dtype)
                aside = torch.zeros_like(states, dtype=wide) if needs_hidden else None
                known = None if following is None else following[part]
                for columns, losses, slope in Chunk(
                    states, student_head[: how.vocab], reference[part], known, how, part.start
                ).slopes():
                    total += losses.sum()
                    if aside is not None:
                        add_to_states(aside, slope, student_head[columns])
                    if head_gradient is not None:
                        add_to_head(head_gradient[columns], slope, states, factor)
                if hidden_gradient is not None and aside is not None:
                    hidden_gradient[part] = aside.mul_(factor)
        handed = head_gradient.to(student_head.dtype) if needs_head and head_gradient is not None else None
        ctx.gradients, ctx.is_end = (hidden_gradient, handed), into is not None
        return total * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Handed over and scaled in place: the head's gradient may be gigabytes, and nobody else reads it.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a chunked loss can be taken once only")
        if (scale := float(upstream)) != 1.0:
            if ctx.is_end:
                raise RuntimeError(f"the head's gradient is added already, and not times {scale}")
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return (*gradients, None, None, None, None)
