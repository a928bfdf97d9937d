"""The loss of distillation over a large vocabulary: ours, liger's, one over whole logits.  Part `loss` of gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from math import inf, log10

import torch
from gpu_setting import NEEDS_GPU, Row, Setting, bytes_row, forget, peak_of, seconds_of
from torch import Tensor

from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import Loss
from distill.losses.liger import is_usable, liger_loss

KL = Loss("forward_kl")
Given = tuple[Tensor, Tensor, Tensor, Tensor]


def loss(setting: Setting) -> Iterator[Row]:
    """Forward KL and its gradients by hidden states in bf16 and the head in fp32, as a step has them."""
    place = setting.place
    vocab, hidden, tokens = (512, 32, 64) if setting.tiny else (131_072, 4096, 8192)
    given = _inputs(vocab, hidden, tokens, place)
    value, by_states, by_head = _reference(given)
    yield Row("vocabulary", vocab, "", f"{tokens:,} tokens, hidden {hidden:,}; matmuls in bf16, sums in fp32")
    for name, way in _ways(setting).items():
        if isinstance(way, str):
            yield Row(name, None, "s", way)
            continue
        states, head, *_ = given
        assert states.grad is not None and head.grad is not None

        def both(way: Callable[[Given], Tensor] = way) -> Tensor:
            made = way(given)
            made.backward()  # type: ignore[no-untyped-call]
            return made.detach()

        both()  # whatever is allocated once, such as the workspace of matmuls, is there
        peak = peak_of(both, place)
        states.grad.zero_(), head.grad.zero_()
        apart = abs(float(both()) - value) / abs(value)
        errors = [
            float((one.grad - other).norm() / other.norm()) for one, other in ((states, by_states), (head, by_head))
        ]
        taken = seconds_of(both, place, 1 if setting.tiny else 5)
        yield Row(f"{name}: forward and backward", taken, "s")
        yield bytes_row(f"{name}: peak beside inputs and gradients", peak)
        digits = -log10(apart) if apart else inf
        yield Row(
            f"{name}: digits of the loss", round(digits, 1) if digits < inf else "all", "",
            f"against fp32; relative errors of the gradients {errors[0]:.1e} (states), {errors[1]:.1e} (head)",
        )  # fmt: skip
        forget(place)


def _ways(setting: Setting) -> dict[str, Callable[[Given], Tensor] | str]:
    """Name -> a loss, or why there is none."""
    found: dict[str, Callable[[Given], Tensor] | str] = {"plain, whole logits": _plain, "ours": _ours}
    if not setting.on_gpu:
        found["liger"] = NEEDS_GPU
    elif find_spec("liger_kernel") is None:
        found["liger"] = "liger-kernel is not installed"
    else:
        found["liger"] = _liger if is_usable() else "liger-kernel does not load here"
    # The last one: triton needs a C compiler, which an image may lack.
    found["ours, compiled"] = _compiled if setting.on_gpu else NEEDS_GPU
    return found


def _inputs(vocab: int, hidden: int, tokens: int, place: torch.device) -> Given:
    """Student's states [N, H] in bf16 and head [V, H] in fp32 with gradients to add to; the teacher's, in bf16."""
    torch.manual_seed(0)
    states, other = (torch.randn(tokens, hidden, device=place).bfloat16() for _ in range(2))
    head = torch.randn(vocab, hidden, device=place).div_(hidden**0.5)
    other_head = torch.randn(vocab, hidden, device=place).div_(hidden**0.5).bfloat16()
    states.grad, head.grad = torch.zeros_like(states), torch.zeros_like(head)
    return states.requires_grad_(), head.requires_grad_(), other, other_head


def _reference(given: Given) -> tuple[float, Tensor, Tensor]:
    """The loss and its gradients with fp32 matmuls, some tokens at a time."""
    states, head, other, other_head = (one.detach().float() for one in given)
    head.requires_grad_(True)
    value, gradients = 0.0, []
    for part in torch.arange(len(states), device=states.device).split(512):
        mine = states[part].requires_grad_(True)
        log_p = (other[part] @ other_head.T).log_softmax(-1)
        each = torch.nn.functional.kl_div((mine @ head.T).log_softmax(-1), log_p, reduction="sum", log_target=True)
        (each / len(states)).backward()  # type: ignore[no-untyped-call]
        value += float(each.detach().double()) / len(states)
        assert mine.grad is not None
        gradients.append(mine.grad)
    assert head.grad is not None
    return value, torch.cat(gradients), head.grad


def _plain(given: Given) -> Tensor:
    states, head, other, other_head = given
    with torch.autocast(states.device.type, torch.bfloat16):
        logits = (states @ head.T).float()
    with torch.no_grad():
        log_p = torch.log_softmax((other @ other_head.T).float(), -1)
    log_q = torch.log_softmax(logits, -1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(states)


def _ours(given: Given, options: LossOptions | None = None) -> Tensor:
    """As a step calls it."""
    states, head, other, other_head = given
    with torch.autocast(states.device.type, torch.bfloat16):
        return chunked_loss(KL, states, head, other, other_head, options, head_gradient=head.grad)


def _compiled(given: Given) -> Tensor:
    return _ours(given, LossOptions(compiled=True))


def _liger(given: Given) -> Tensor:
    states, head, other, other_head = given
    with torch.autocast(states.device.type, torch.bfloat16):
        return liger_loss(KL, states, head, other, other_head, mask=None, divisor=float(len(states)))
