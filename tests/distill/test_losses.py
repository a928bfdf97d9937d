"""The chunked losses against the same formulas written out over whole logits in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import Loss, parse_loss
from minitron.errors import MinitronError

# Tokens, student and teacher hidden, vocabulary, a teacher's padded vocabulary.
N, H, HT, V, VT = 37, 12, 16, 50, 64
FORWARD = Loss("forward_kl")


def inputs(dtype: torch.dtype = torch.float64, teacher_vocab: int = V, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    student, head = torch.randn(N, H, generator=generator), torch.randn(V, H, generator=generator)
    teacher, other = torch.randn(N, HT, generator=generator), torch.randn(teacher_vocab, HT, generator=generator)
    student, head, teacher, other = (tensor.to(dtype) for tensor in (student, head, teacher, other))
    return student.requires_grad_(), head.requires_grad_(), teacher, other


def naive(
    student: Tensor, head: Tensor, teacher: Tensor, other: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Mean over counted tokens of t^2 * sum over V of p (log p - log q), with padding at minus infinity."""
    logits, reference = student @ head.T / temperature, (teacher @ other.T)[:, : head.shape[0]] / temperature
    q, p = logits.exp() / logits.exp().sum(-1, keepdim=True), reference.exp() / reference.exp().sum(-1, keepdim=True)
    each = temperature**2 * (p * (p / q).log()).sum(-1)
    return each.mean() if mask is None else each[mask].mean()


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("teacher_vocab", [V, VT])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_equal_the_naive_ones(temperature: float, teacher_vocab: int, masked: bool) -> None:
    student, head, teacher, other = inputs(teacher_vocab=teacher_vocab)
    mask = torch.arange(N) % 3 != 1 if masked else None
    ours = chunked_loss(
        FORWARD, student, head, teacher, other, options=LossOptions(temperature=temperature, chunk=5), mask=mask
    )
    theirs = naive(student, head, teacher, other, mask, temperature)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for one, other_one in zip(gradients(3 * ours, student, head), gradients(3 * theirs, student, head), strict=True):
        torch.testing.assert_close(one, other_one, rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(chunk=st.integers(1, N + 3), seed=st.integers(0, 99))
def test_the_length_of_a_chunk_changes_nothing(chunk: int, seed: int) -> None:
    student, head, teacher, other = inputs(seed=seed)
    whole = chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=N))
    parts = chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=chunk))
    for one, other_one in zip(gradients(whole, student, head), gradients(parts, student, head), strict=True):
        torch.testing.assert_close(one, other_one, rtol=0, atol=1e-12)


def test_parts_of_a_batch_with_its_divisor_add_up() -> None:
    student, head, teacher, other = inputs()
    whole = chunked_loss(FORWARD, student, head, teacher, other)
    halves = [
        chunked_loss(FORWARD, student[part], head, teacher[part], other, options=LossOptions(divisor=N))
        for part in (slice(0, 10), slice(10, N))
    ]
    torch.testing.assert_close(sum(halves), whole, rtol=0, atol=1e-12)
    for one, other_one in zip(gradients(sum(halves), student, head), gradients(whole, student, head), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one, other_one, rtol=0, atol=1e-12)


def test_a_tied_head_gets_both_gradients() -> None:
    _, head, teacher, other = inputs()
    ids = torch.arange(N) % V
    ours = chunked_loss(FORWARD, torch.tanh(head[ids]), head, teacher, other, options=LossOptions(chunk=8))
    theirs = naive(torch.tanh(head[ids]), head, teacher, other)
    torch.testing.assert_close(gradients(ours, head), gradients(theirs, head), rtol=0, atol=1e-10)


def test_bf16_is_within_its_rounding() -> None:
    student, head, teacher, other = inputs(torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (student, head)]
    ours = chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=8))
    theirs = naive(*exact, teacher.double(), other.double())
    assert ours.dtype == torch.float32
    # bf16 keeps 8 bits: each logit, and each number of the gradient's two matmuls, is off by at most 2^-9 of its size.
    assert abs(ours.item() - theirs.item()) < 2**-6 * theirs.item()
    for one, other_one in zip(gradients(ours, student, head), gradients(theirs, *exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other_one).norm() / other_one.norm()) < 2**-6


def test_autocast_keeps_fp32_weights_and_their_fp32_gradient() -> None:
    student, head, teacher, other = inputs(torch.float32)
    exact = gradients(naive(student, head, teacher, other), student, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(chunked_loss(FORWARD, student, head, teacher.bfloat16(), other.bfloat16()), student, head)
    for one, other_one in zip(ours, exact, strict=True):
        assert one.dtype == torch.float32
        assert 0 < float((one - other_one).norm() / other_one.norm()) < 2**-6


class LargestOutput(TorchDispatchMode):
    """Watches every operation for the largest tensor that it puts out."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_logits_are_never_whole() -> None:
    tokens, vocab, hidden, chunk = 256, 1000, 4, 16
    student = torch.randn(tokens, hidden, requires_grad=True)
    head = torch.randn(vocab, hidden, requires_grad=True)
    teacher, other = torch.randn(tokens, hidden), torch.randn(vocab, hidden)
    with LargestOutput() as watch:
        chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=chunk)).backward()
    assert watch.largest == chunk * vocab
    with LargestOutput() as watch:
        naive(student, head, teacher, other).backward()
    assert watch.largest == tokens * vocab


def test_a_heads_gradient_is_added_where_it_is_asked_for() -> None:
    student, head, teacher, other = inputs(teacher_vocab=VT)
    theirs = gradients(
        chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=5)), student, head
    )
    into = torch.ones_like(head)
    loss = chunked_loss(FORWARD, student, head, teacher, other, options=LossOptions(chunk=7), head_gradient=into)
    (states,) = gradients(loss, student)
    torch.testing.assert_close(states, theirs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(into - 1, theirs[1], rtol=0, atol=1e-12)
    assert head.grad is None
    loss = chunked_loss(FORWARD, student, head, teacher, other, head_gradient=torch.zeros_like(head))
    with pytest.raises(RuntimeError, match="added already"):
        gradients(2 * loss, student)


def test_no_gradient_is_made_for_what_needs_none() -> None:
    student, head, teacher, other = inputs()
    (alone,) = gradients(chunked_loss(FORWARD, student, head.detach(), teacher, other), student)
    torch.testing.assert_close(alone, gradients(naive(student, head, teacher, other), student)[0], rtol=0, atol=1e-10)
    with torch.no_grad():
        assert not chunked_loss(FORWARD, student, head, teacher, other).requires_grad


def test_a_gradient_is_taken_once() -> None:
    student, head, teacher, other = inputs()
    loss = chunked_loss(FORWARD, student, head, teacher, other)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


def test_an_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(MinitronError, match="forward_kl"):
        parse_loss("backward_kl")
