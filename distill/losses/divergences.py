"""Divergences between the teacher's next-token distribution p and the student's q: one function each.

A divergence is a sum over the vocabulary of f(log q_v, log p_v).  Its function returns the sum and g_v, the derivative
of f by log q_v; whoever has logits z makes of it dL/dz_v = g_v - q_v * sum of g, for the softmax's derivative is
d log q_w / dz_v = [v = w] - q_v.  A sparse one reads a few tokens of p only.

The command line takes its help from DIVERGENCES, so that torch is imported where it is used.

Shape letters: C tokens, V vocabulary, K tokens picked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log
from typing import TYPE_CHECKING, Final, TypeAlias

from minitron.errors import MinitronError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# (log q [C, V], log p [C, V], parameter) -> (sum over V [C], g [C, V]); log p is the callee's to overwrite.
Terms: TypeAlias = "Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]"


@dataclass(frozen=True)
class Sparse:
    """What is kept of a teacher's distributions: the divergence is sum over K of weight * (log p - log q)."""

    ids: Tensor
    """[C, K] token ids; the same one may stand twice."""

    weights: Tensor
    """[C, K]; 0 for a place that is not used."""

    log_p: Tensor
    """[C, K] in nats; finite."""

    def __getitem__(self, part: slice | Tensor) -> Sparse:
        """Some of the tokens."""
        return Sparse(self.ids[part], self.weights[part], self.log_p[part])

    def to(self, device: torch.device) -> Sparse:
        """The same on a device."""
        return Sparse(self.ids.to(device), self.weights.to(device), self.log_p.to(device))


# (log p [C, V], how many tokens of V, where chance comes from) -> what is kept.
Pick: TypeAlias = "Callable[[Tensor, int, torch.Generator], Sparse]"


@dataclass(frozen=True)
class Divergence:
    """An entry of DIVERGENCES: `terms` or `pick`."""

    summary: str
    """What is made small, in one phrase; p is the teacher's distribution and q the student's."""

    source: str
    """The paper."""

    terms: Terms | None = None
    """All of the vocabulary."""

    pick: Pick | None = None
    """A part of it."""

    is_unbiased: bool = False
    """Whether the weights that `pick` gives are p on average."""

    slope: float | None = None
    """What g adds up to over the vocabulary, where that is the same for any p and q: it saves a pass."""

    parameter: float | None = None
    """The number behind the colon (`jsd:0.5`) where none is typed; None for a divergence that takes none."""

    letter: str = ""
    """What that number is called in `summary`."""

    lowest: float = 0.0
    highest: float = 1.0
    """Between these, both excluded, lies the parameter."""

    def __post_init__(self) -> None:
        if (self.terms is None) == (self.pick is None):
            raise ValueError(f"a divergence has either terms or a pick: {self.summary}")
        if (self.parameter is None) != (not self.letter):
            raise ValueError(f"a divergence's parameter has a letter, and nothing else has: {self.summary}")
        if not (self.summary and self.source):
            raise ValueError("a divergence needs a summary and a source")


def forward_kl(log_q: Tensor, log_p: Tensor, parameter: float = 0.0) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum of p (log p - log q), so that dL/dz = q - p (Hinton, Vinyals, Dean 2015, arXiv 1503.02531,
    section 2)."""
    p = log_p.exp()
    return log_p.sub_(log_q).mul_(p).sum(-1), p.neg_()


def reverse_kl(log_q: Tensor, log_p: Tensor, parameter: float = 0.0) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum of q (log q - log p) (Gu et al. 2023, MiniLLM, arXiv 2306.08543, equation 1)."""
    import torch

    q = log_q.exp()
    each = torch.sub(log_q, log_p, out=log_p).mul_(q)
    return each.sum(-1), each.add_(q)


def jensen_shannon(log_q: Tensor, log_p: Tensor, parameter: float) -> tuple[Tensor, Tensor]:
    """b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q, b the parameter (Agarwal et al. 2023, GKD, arXiv
    2306.13649, equation 1)."""
    import torch

    log_m = _mixture(log_p, log_q, parameter)
    p, q = log_p.exp(), log_q.exp()
    own = torch.sub(log_q, log_m).mul_(q).mul_(1 - parameter)
    losses = p.mul_(log_p.sub_(log_m)).sum(-1).mul_(parameter).add_(own.sum(-1))
    return losses, own


def skewed_kl(log_q: Tensor, log_p: Tensor, parameter: float) -> tuple[Tensor, Tensor]:
    """KL(p || a p + (1 - a) q), a the parameter (Ko et al. 2024, DistiLLM, arXiv 2402.03898, equation 3)."""
    import torch

    log_m = _mixture(log_p, log_q, parameter)
    p = log_p.exp()
    losses = torch.sub(log_p, log_m).mul_(p).sum(-1)
    return losses, p.mul_(torch.sub(log_q, log_m, out=log_m).exp_()).mul_(parameter - 1)


def skewed_reverse_kl(log_q: Tensor, log_p: Tensor, parameter: float) -> tuple[Tensor, Tensor]:
    """KL(q || (1 - a) p + a q), a the parameter (DistiLLM, equation 5)."""
    import torch

    log_m = _mixture(log_q, log_p, parameter)
    q = log_q.exp()
    ratio = torch.sub(log_q, log_m)
    losses = torch.mul(ratio, q, out=log_p)
    total = losses.sum(-1)
    # q (log q - log m) + q (1 - a q / m)
    return total, losses.add_(q).sub_(q.mul_(ratio.exp_()).mul_(parameter))


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """log(share * exp(one) + (1 - share) * exp(other))."""
    import torch

    return torch.logaddexp(one + log(share), other + log(1 - share))


def top_k(log_p: Tensor, count: int, chance: torch.Generator) -> Sparse:
    """The teacher's likeliest tokens, their probabilities scaled to one: KL(p' || q).  Biased: what p' leaves out the
    student unlearns (Anshumann et al. 2025, arXiv 2503.16870, section 3)."""
    import torch

    best, ids = log_p.topk(min(count, log_p.shape[-1]), dim=-1)
    best = torch.log_softmax(best, -1)
    return Sparse(ids, best.exp(), best)


def sampled(log_p: Tensor, count: int, chance: torch.Generator) -> Sparse:
    """`count` different tokens with weights whose expectation is p: gradients are right on average (importance
    sampling; for distillation Anshumann et al. 2025, arXiv 2503.16870, section 4).

    Of all unbiased picks of `count` tokens this has the least variance (Fearnhead and Clifford 2003, On-line inference
    for hidden Markov models via particle filters, section 3): a token likelier than 1 / c is kept with its own
    probability, the others share the rest of the places and weigh 1 / c each, where c makes the expected number of
    places `count`.  Those are drawn systematically, at equal distances from one random start."""
    import torch

    size = log_p.shape[-1]
    if count >= size:
        ids = torch.arange(size, device=log_p.device).expand_as(log_p)
        return Sparse(ids, log_p.exp(), _finite(log_p))
    p = log_p.exp()
    p = p / p.sum(-1, keepdim=True)
    best, ids = p.topk(count, dim=-1)
    places = torch.arange(count, device=p.device)
    # Added up from the least: one minus the sum of the others would be nothing but rounding for a sharp teacher.
    ahead = p.scatter(-1, ids, 0.0).sum(-1, keepdim=True) + best.flip(-1).cumsum(-1).flip(-1)
    # Kept are the likeliest as long as each is at least its share of what is left for the places that are left.
    kept = (best * (count - places) >= ahead).long().cumprod(-1).bool()
    number = kept.sum(-1, keepdim=True)
    rest = p.scatter(-1, ids, best.masked_fill(kept, 0.0)).cumsum(-1)
    left, free = rest[:, -1:], (count - number).clamp_min(1)
    start = torch.rand(len(p), 1, generator=chance, device=p.device, dtype=p.dtype)
    points = (places - number + start) / free * left
    # The last point may be rounded to the very end, where nothing is left of the vocabulary.
    points = torch.minimum(points, torch.nextafter(left, torch.zeros_like(left)))
    drawn = torch.searchsorted(rest, points, right=True).clamp_max_(size - 1)
    ids = torch.where(kept, ids, drawn)
    weights = torch.where(kept, best, left / free)
    # Where the kept ones are all there is, the other places stay empty.
    weights = weights.masked_fill(~kept & (left <= 0), 0.0)
    return Sparse(ids, weights, _finite(log_p.gather(-1, ids)))


def _finite(log_p: Tensor) -> Tensor:
    import torch

    return log_p.clamp_min(torch.finfo(log_p.dtype).min)


DEFAULT_LOSS: Final = "forward_kl"

DIVERGENCES: Final[dict[str, Divergence]] = {
    "forward_kl": Divergence(
        "KL(p ∥ q) of the teacher's distribution p and the student's q",
        "Hinton et al. 2015, arXiv 1503.02531, section 2",
        terms=forward_kl,
        slope=-1.0,
    ),
    "reverse_kl": Divergence("KL(q ∥ p)", "Gu et al. 2023, MiniLLM, arXiv 2306.08543, equation 1", terms=reverse_kl),
    "jsd": Divergence(
        "B KL(p ∥ m) + (1 - B) KL(q ∥ m), m = B p + (1 - B) q",
        "Agarwal et al. 2023, GKD, arXiv 2306.13649, equation 1",
        terms=jensen_shannon,
        parameter=0.5,
        letter="B",
    ),
    "skewed_kl": Divergence(
        "KL(p ∥ A p + (1 - A) q)",
        "Ko et al. 2024, DistiLLM, arXiv 2402.03898, equation 3",
        terms=skewed_kl,
        parameter=0.1,
        letter="A",
    ),
    "skewed_reverse_kl": Divergence(
        "KL(q ∥ (1 - A) p + A q)",
        "Ko et al. 2024, DistiLLM, equation 5",
        terms=skewed_reverse_kl,
        parameter=0.1,
        letter="A",
    ),
    "top_k": Divergence(
        "KL over the teacher's K most likely tokens, renormalised; biased",
        "Anshumann et al. 2025, arXiv 2503.16870, section 3",
        pick=top_k,
        parameter=64,
        letter="K",
        highest=inf,
    ),
    "sampled": Divergence(
        "K tokens per position: unbiased, with the least variance that K tokens can have; near the "
        "teacher, the student's distribution as a control variate reduces it further",
        "Anshumann et al. 2025, section 4; Fearnhead and Clifford 2003, section 3; Cassel, Särndal and Wretman 1976",
        pick=sampled,
        is_unbiased=True,
        parameter=12,
        letter="K",
        highest=inf,
    ),
}


@dataclass(frozen=True)
class Loss:
    """A divergence as it is typed: `forward_kl`, `jsd:0.3`, `sampled:12`."""

    name: str
    parameter: float = 0.0

    @property
    def divergence(self) -> Divergence:
        """The entry in DIVERGENCES."""
        return DIVERGENCES[self.name]


def parse_loss(typed: str) -> Loss:
    """`name` or `name:parameter`; raises MinitronError for a name or a number that there is not."""
    name, _, number = typed.partition(":")
    if name not in DIVERGENCES:
        raise MinitronError(f"there is no loss {typed!r}; choose one of {', '.join(DIVERGENCES)}.")
    entry = DIVERGENCES[name]
    if entry.parameter is None:
        if number:
            raise MinitronError(f"the loss {name} takes no parameter; drop :{number}.")
        return Loss(name)
    try:
        parameter = float(number) if number else entry.parameter
    except ValueError:
        raise MinitronError(f"{number!r} is not a number for the loss {name}; write it like {written(name)}.") from None
    whole = entry.pick is None or parameter == round(parameter)
    if not (entry.lowest < parameter < entry.highest and whole):
        raise MinitronError(f"the loss {name} cannot take {number}; write it like {written(name)}.")
    return Loss(name, parameter)


def written(name: str) -> str:
    """A loss as it is typed, with the number that it takes by default."""
    parameter = DIVERGENCES[name].parameter
    return name if parameter is None else f"{name}:{parameter:g}"
