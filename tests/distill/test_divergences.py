"""Every divergence against its formula over whole probabilities in float64, gradients by autograd."""

from collections.abc import Callable
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses.chunked import LossOptions, chunked_loss, hidden_cosine, sparse_loss
from distill.losses.divergences import DIVERGENCES, Loss, Sparse, parse_loss, sampled, top_k
from distill.losses.slopes import _sparse
from minitron.errors import MinitronError

N, H, HT, V, VT = 23, 8, 12, 40, 48


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def best(p: Tensor, count: int) -> Tensor:
    """The distribution of the `count` likeliest alone."""
    kept = p * (p >= p.sort(-1, descending=True).values[:, count - 1 : count])
    return kept / kept.sum(-1, keepdim=True)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd:0.3": lambda p, q: 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q),
    "jsd": lambda p, q: 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2),
    "skewed_kl:0.1": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skewed_reverse_kl:0.2": lambda p, q: kl(q, 0.8 * p + 0.2 * q),
    "top_k:5": lambda p, q: (best(p, 5) * ((best(p, 5) + 1e-300).log() - q.log())).sum(-1),
}
DENSE = [name for name in FORMULAS if not name.startswith("top_k")]


def inputs(seed: int = 0, teacher_vocab: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, H), (V, H), (N, HT), (teacher_vocab, HT))
    student, head, teacher, other = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return student.requires_grad_(), head.requires_grad_(), teacher, other


def naive(
    name: str,
    student: Tensor,
    head: Tensor,
    teacher: Tensor,
    other: Tensor,
    temperature: float,
    following: Tensor | None,
    lm_weight: float,
) -> Tensor:
    logits = student @ head.T
    q = torch.softmax(logits / temperature, -1)
    p = torch.softmax((teacher @ other.T)[:, :V] / temperature, -1)
    total = temperature**2 * FORMULAS[name](p, q).sum()
    if following is not None:
        known = following >= 0
        total = total + lm_weight * torch.nn.functional.cross_entropy(logits[known], following[known], reduction="sum")
    return total / len(student)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("lm_weight", [0.0, 0.7])
@pytest.mark.parametrize("vocab_chunk", [None, 13])
def test_loss_and_gradients_are_those_of_the_formula(
    name: str, temperature: float, lm_weight: float, vocab_chunk: int | None
) -> None:
    student, head, teacher, other = inputs(teacher_vocab=VT)
    following = torch.arange(N) * 7 % V
    following[::5] = -1
    if name.startswith("top_k") and vocab_chunk:
        with pytest.raises(ValueError, match="whole vocabulary"):
            chunked_loss(parse_loss(name), student, head, teacher, other, options=LossOptions(vocab_chunk=vocab_chunk))
        return
    ours = chunked_loss(
        parse_loss(name),
        student,
        head,
        teacher,
        other,
        options=LossOptions(temperature=temperature, lm_weight=lm_weight, chunk=6, vocab_chunk=vocab_chunk),
        following=following if lm_weight else None,
    )
    theirs = naive(name, student, head, teacher, other, temperature, following if lm_weight else None, lm_weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for one, wanted in zip(
        torch.autograd.grad(ours, (student, head)), torch.autograd.grad(theirs, (student, head)), strict=True
    ):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DENSE)
def test_equal_distributions_have_no_distance_and_no_slope(name: str) -> None:
    student, head, _, _ = inputs()
    loss = chunked_loss(parse_loss(name), student, head, student.detach(), head.detach())
    assert abs(loss.item()) < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(loss, (student, head)))


def distributions(seed: int, sharpness: float, rows: int = 6, size: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(sharpness * torch.randn(rows, size, generator=generator, dtype=torch.float64), -1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), sharpness=st.sampled_from([0.0, 1.0, 4.0, 30.0]), count=st.integers(1, 31))
def test_a_sample_holds_different_tokens_that_weigh_one_together(seed: int, sharpness: float, count: int) -> None:
    log_p = distributions(seed, sharpness)
    found = sampled(log_p, count, torch.Generator().manual_seed(seed))
    assert found.ids.shape == (6, min(count, 30))
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(6, dtype=torch.float64))
    for ids, weights in zip(found.ids, found.weights, strict=True):
        used = ids[weights > 0]
        assert len(used.unique()) == len(used)
    torch.testing.assert_close(found.log_p, log_p.gather(-1, found.ids))


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_a_sample_is_the_teacher_on_average(sharpness: float) -> None:
    log_p, rounds = distributions(1, sharpness), 4000
    many = log_p.repeat(rounds, 1)
    found = sampled(many, 7, torch.Generator().manual_seed(0))
    dense = torch.zeros_like(many).scatter_add_(-1, found.ids, found.weights).view(rounds, *log_p.shape)
    mean, variance = dense.mean(0), dense.var(0, correction=0)
    spread = (variance / rounds).sqrt()
    # A rare token may not have come once: that happens to one that is expected up to ten times.
    assert ((mean - log_p.exp()).abs() <= 5 * spread + 10 / 7 / rounds).all()
    # Seven draws of single tokens, each weighing a seventh, vary more.
    p = log_p.exp()
    assert variance.sum() < 0.7 * (p * (1 - p) / 7).sum()


def test_a_sample_of_everything_is_the_teacher() -> None:
    student, head, teacher, other = inputs()
    whole = chunked_loss(Loss("forward_kl"), student, head, teacher, other)
    all_of_it = chunked_loss(Loss("sampled", V), student, head, teacher, other)
    for one, wanted in zip(
        [all_of_it, *torch.autograd.grad(all_of_it, (student, head))],
        [whole, *torch.autograd.grad(whole, (student, head))],
        strict=True,
    ):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("distance", "least", "most"), [(0.0, 0.0, 0.05), (0.3, 0.0, 0.5), (3.0, 0.5, 1.1)])
def test_a_samples_gradient_is_right_on_average_and_steadier_near_the_teacher(
    distance: float, least: float, most: float
) -> None:
    log_p = distributions(1, 3.0)
    noise = torch.randn(log_p.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    log_q = torch.log_softmax(log_p + distance * noise, -1)
    rounds, chance = 4000, torch.Generator().manual_seed(0)
    wanted = log_q.exp() - log_p.exp()
    variances = []
    for steady in (True, False):
        picked = sampled(log_p.repeat(rounds, 1), 7, chance)
        slopes = _sparse(log_q.repeat(rounds, 1), picked, steady=steady)[1]
        torch.testing.assert_close(slopes.sum(-1), torch.zeros(len(slopes), dtype=torch.float64), rtol=0, atol=1e-12)
        slopes = slopes.view(rounds, *log_p.shape)
        variance = slopes.var(0, correction=0)
        assert ((slopes.mean(0) - wanted).abs() <= 5 * (variance / rounds).sqrt() + 10 / 7 / rounds).all()
        variances.append(variance.sum().item())
    assert least <= variances[0] / variances[1] <= most


def test_picks_follow_from_the_seed() -> None:
    student, head, teacher, other = inputs()
    losses = [
        chunked_loss(Loss("sampled", 4), student, head, teacher, other, options=LossOptions(seed=seed)).item()
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_what_was_picked_before_gives_the_same_loss() -> None:
    student, head, teacher, other = inputs()
    log_p = torch.log_softmax(teacher @ other.T, -1)
    targets = top_k(log_p, 5, torch.Generator())
    mask = torch.arange(N) % 4 != 0
    known = sparse_loss(Loss("top_k", 5), student, head, targets, options=LossOptions(chunk=7), mask=mask)
    wanted = chunked_loss(Loss("top_k", 5), student, head, teacher, other, mask=mask)
    torch.testing.assert_close(known, wanted, rtol=0, atol=1e-12)
    assert isinstance(targets[2:4], Sparse) and targets[2:4].ids.shape == (2, 5)


def test_hidden_states_are_compared_by_direction() -> None:
    student, _, teacher, _ = inputs()
    projection = torch.randn(HT, H, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(N) % 2 == 0
    ours = hidden_cosine(student, teacher, projection, mask=mask)
    mine = (student @ projection.T)[mask]
    wanted = (1 - (mine * teacher[mask]).sum(-1) / (mine.norm(dim=-1) * teacher[mask].norm(dim=-1))).mean()
    torch.testing.assert_close(ours, wanted)
    (slope,) = torch.autograd.grad(ours, projection)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted, projection)[0])
    assert hidden_cosine(teacher * 3, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("backward_kl", "forward_kl"),
        ("forward_kl:2", "takes no parameter"),
        ("jsd:1", "jsd:0.5"),
        ("jsd:half", "not a number"),
        ("top_k:2.5", "top_k:64"),
        ("sampled:0", "sampled:12"),
    ],
)
def test_a_loss_that_there_is_not_is_refused(typed: str, message: str) -> None:
    with pytest.raises(MinitronError, match=message):
        parse_loss(typed)


def test_a_loss_has_its_usual_number() -> None:
    assert parse_loss("jsd").parameter == DIVERGENCES["jsd"].parameter == 0.5
    assert parse_loss("sampled:8") == Loss("sampled", 8)
    assert log(2) > chunked_loss(parse_loss("jsd"), *inputs()).item() > 0
