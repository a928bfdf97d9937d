"""Losses between two models' next-token distributions, computed without ever holding [tokens, vocabulary] numbers.

Shape letters: N tokens, C tokens of one chunk, H hidden (the student's and the teacher's may differ), V vocabulary.

A loss is a function of one chunk's logits that returns each token's loss and its gradient; `chunked_loss` walks the
chunks.  A new loss is one function and one line in LOSSES.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minitron.errors import MinitronError

# (student logits [C, V], teacher logits [C, V]), both the callee's to overwrite, at least fp32
#     -> (loss of each token [C] in nats, its gradient with respect to the student's logits [C, V]).
ChunkLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Logits of one chunk, and the bounds of its length.  A long chunk leaves the processor's caches, a short one adds to
# the head's gradient, which is [V, H], too often; 2^24 logits are 64 MiB in fp32.
_CHUNK_LOGITS: Final = 2**24
_SHORTEST_CHUNK: Final = 128
_LONGEST_CHUNK: Final = 512


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum over V of p (log p - log q), p the teacher's distribution and q the student's.

    Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 2: the gradient with respect to the student's logits is
    q - p.  [C, V], [C, V] -> [C], [C, V]."""
    log_q = torch.log_softmax(student_logits, dim=-1)
    log_p = torch.log_softmax(teacher_logits, dim=-1)
    p = torch.exp(log_p)
    loss = log_p.sub_(log_q).mul_(p).sum(dim=-1)
    return loss, log_q.exp_().sub_(p)


LOSSES: Final[dict[str, ChunkLoss]] = {"forward_kl": forward_kl}


def loss_named(name: str) -> ChunkLoss:
    """The loss of that name; raises MinitronError with the known names where there is none."""
    if name not in LOSSES:
        raise MinitronError(f"there is no loss {name!r}; choose one of {', '.join(LOSSES)}.")
    return LOSSES[name]


def chunked_loss(
    loss: ChunkLoss,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    divisor: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The loss of N tokens from last hidden states and output layers, summed and divided by `divisor`; a scalar.

    student_hidden [N, H], student_head [V, H], teacher_hidden [N, H'], teacher_head [V', H'].  Of two vocabularies of
    different length the tail of the longer is padding: those columns take no part, as if their logits were minus
    infinity on both sides.  `mask` [N] (bool) says which tokens count.  Logits are divided by `temperature` and the
    loss is multiplied by its square, so that gradients keep their size (Hinton et al. 2015, section 2).  `divisor` is
    the number of tokens that count unless given: a part of a larger batch gives the whole batch's.  `chunk` tokens are
    worked on at a time.

    The gradients of `student_hidden` and `student_head` are made in the same pass as the loss, so that a chunk's logits
    are forgotten before the next chunk; that of the head is summed in fp32 (float64 where the inputs are).  Nothing
    flows to the teacher.  Under autocast the matmuls with the student's head run in autocast's type."""
    if mask is not None:
        kept = mask.nonzero().squeeze(-1)
        student_hidden, teacher_hidden = student_hidden[kept], teacher_hidden[kept]
    settings = _Settings(
        loss=loss,
        temperature=temperature,
        divisor=float(divisor if divisor is not None else max(student_hidden.shape[0], 1)),
        chunk=chunk or chunk_length(student_head.shape[0]),
        dtype=compute_dtype(student_hidden),
    )
    result: Tensor = _ChunkedLoss.apply(student_hidden, student_head, teacher_hidden, teacher_head, settings)  # type: ignore[no-untyped-call]
    return result


def chunk_length(vocab_size: int) -> int:
    """How many tokens' logits are held at a time."""
    return max(_SHORTEST_CHUNK, min(_LONGEST_CHUNK, _CHUNK_LOGITS // vocab_size))


@dataclass(frozen=True)
class _Settings:
    loss: ChunkLoss
    temperature: float
    divisor: float
    chunk: int
    dtype: torch.dtype
    """The type of the matmuls with the student's head."""


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type in which a matmul with `hidden` runs here: autocast's where it is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients of `chunked_loss` in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        how: _Settings,
    ) -> Tensor:
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        vocab = min(student_head.shape[0], teacher_head.shape[0])
        wide = _sum_dtype(student_hidden.dtype)
        # Without this the ambient autocast would turn the fp32 sums below into bf16 ones.
        with torch.autocast(student_hidden.device.type, enabled=False):
            head = student_head[:vocab].to(how.dtype)
            other_head = teacher_head[:vocab]
            total = torch.zeros((), dtype=wide, device=student_hidden.device)
            hidden_gradient = torch.empty_like(student_hidden) if needs_hidden else None
            head_gradient = torch.zeros_like(student_head, dtype=wide) if needs_head else None
            for part in chunks(student_hidden.shape[0], how.chunk):
                states = student_hidden[part].to(how.dtype)
                student_logits = chunk_logits(states, head, wide, how.temperature)
                teacher_logits = chunk_logits(teacher_hidden[part], other_head, wide, how.temperature)
                losses, slope = how.loss(student_logits, teacher_logits)
                total += losses.sum()
                slope = slope.to(how.dtype)
                if hidden_gradient is not None:
                    hidden_gradient[part] = slope @ head
                if head_gradient is not None:
                    head_gradient[:vocab] += slope.T @ states
        ctx.gradients = (hidden_gradient, None if head_gradient is None else head_gradient.to(student_head.dtype))
        # d(t^2 L(z / t) / n) / dz = t / n * dL: one factor t is lost to the division of the logits.
        ctx.factor = how.temperature / how.divisor
        return total * (how.temperature**2 / how.divisor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and handed over: the head's gradient may be gigabytes, and nobody else reads it.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a chunked loss can be taken once only")
        factor = upstream * ctx.factor
        return (*(None if gradient is None else gradient.mul_(factor) for gradient in gradients), None, None, None)


def chunks(count: int, length: int) -> Iterator[slice]:
    """0 .. `count` in slices of `length`."""
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def chunk_logits(hidden: Tensor, head: Tensor, wide: torch.dtype, temperature: float) -> Tensor:
    """[C, H], [V, H] -> [C, V] in `wide`, a buffer of its own."""
    logits = (hidden.to(head.dtype) @ head.T).to(wide)
    return logits if temperature == 1.0 else logits.div_(temperature)
