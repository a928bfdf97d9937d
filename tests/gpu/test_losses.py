"""Losses on a device against the naive formula in float64 on the CPU."""

import pytest
import torch
from torch import Tensor

from distill.losses.chunked import LossOptions, chunked_loss, sparse_loss
from distill.losses.divergences import DIVERGENCES, Sparse, parse_loss
from distill.losses.liger import BETAS, is_usable, liger_loss

TOKENS, HIDDEN, WIDER, VOCABULARY = 24, 16, 20, 64


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (TOKENS, WIDER), (VOCABULARY, WIDER))
    states, head, theirs, their_head = (
        torch.randn(shape, generator=generator).mul(0.5).to(device, dtype=torch.float32) for shape in shapes
    )
    return states.requires_grad_(), head.requires_grad_(), theirs, their_head


def forward_kl(states: Tensor, head: Tensor, theirs: Tensor, their_head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over tokens and its gradients, in float64 on the CPU."""
    states, head, theirs, their_head = (one.detach().cpu().double() for one in (states, head, theirs, their_head))
    states.requires_grad_(True), head.requires_grad_(True)
    log_q, log_p = (states @ head.T).log_softmax(-1), (theirs @ their_head.T).log_softmax(-1)
    loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return (loss, *torch.autograd.grad(loss, (states, head)))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vocab_chunk", [None, 24])
def test_forward_kl_and_its_gradients(device: torch.device, vocab_chunk: int | None, compiled: bool) -> None:
    given = inputs(device)
    if compiled and (device.type == "cpu" or vocab_chunk):
        pytest.skip("tests/distill/test_compiled.py compiles on a CPU")
    options = LossOptions(chunk=10, vocab_chunk=vocab_chunk, compiled=compiled)
    loss = chunked_loss(parse_loss("forward_kl"), *given, options)
    found = (loss, *torch.autograd.grad(loss, given[:2]))
    for one, other in zip(found, forward_kl(*given), strict=True):
        assert one.device.type == device.type
        torch.testing.assert_close(one.detach().cpu().double(), other.detach(), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_head_is_added_at_once(device: torch.device) -> None:
    states, head, *rest = inputs(device)
    head.grad = torch.ones_like(head)
    with torch.autocast(device.type, torch.bfloat16):
        chunked_loss(parse_loss("forward_kl"), states, head, *rest, head_gradient=head.grad).backward()
    _, _, wanted = forward_kl(states, head, *rest)
    # Matmuls in bf16: eight bits.
    torch.testing.assert_close(head.grad.cpu().double() - 1, wanted, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_every_loss_is_the_same_as_on_a_cpu(device: torch.device, name: str) -> None:
    following = torch.arange(TOKENS) % VOCABULARY
    mask = torch.arange(TOKENS) % 5 != 0
    options = LossOptions(chunk=10, lm_weight=0.5, temperature=1.5)
    found = []
    for place in (device, torch.device("cpu")):
        given = inputs(place)
        loss = chunked_loss(parse_loss(name), *given, options, mask=mask.to(place), following=following.to(place))
        found.append((loss, *torch.autograd.grad(loss, given[:2])))
    if name == "sampled":
        # Another device draws other tokens: of the same kind, and as finite.
        assert all(one.isfinite().all() for one in found[0])
        return
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-5)


def test_what_a_cache_kept_of_a_teacher(device: torch.device) -> None:
    found = []
    for place in (device, torch.device("cpu")):
        states, head, theirs, their_head = inputs(place)
        best, ids = (theirs @ their_head.T).log_softmax(-1).topk(8)
        targets = Sparse(ids.cpu(), best.exp().cpu(), best.cpu()).to(place)
        loss = sparse_loss(parse_loss("top_k:8"), states, head, targets, LossOptions(chunk=7))
        found.append((loss, *torch.autograd.grad(loss, (states, head))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BETAS))
def test_ligers_loss_is_ours(device: torch.device, name: str) -> None:
    if device.type == "cpu" or not is_usable():
        pytest.skip("liger-kernel needs a GPU")
    found = []
    for way in ("liger", "own"):
        given = inputs(device)
        loss = (
            liger_loss(parse_loss(name), *given, mask=None, divisor=11.0)
            if way == "liger"
            else chunked_loss(parse_loss(name), *given, LossOptions(divisor=11.0))
        )
        found.append((loss, *torch.autograd.grad(loss, given[:2])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=5e-3, atol=1e-4)
