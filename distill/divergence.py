"""How one model's predictions differ from another's over some text: sums over chunks of logits.

Shape letters: B sequences, T tokens, C tokens of one chunk, H hidden, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses import chunk_length, chunk_logits, chunks, compute_dtype


@dataclass(frozen=True)
class Divergence:
    """How one model's predictions differ from another's over some text."""

    kl: float
    """Mean KL(reference || model) over tokens, in nats."""
    top1_agreement: float
    """The share of tokens where both hold the same next token for the likeliest."""
    perplexity: float
    """The model's own: exp of the mean negative log-likelihood of the next token."""
    reference_perplexity: float
    """The reference's."""
    tokens: int
    """Tokens the KL was averaged over."""

    def to_json(self) -> dict[str, float | int]:
        """The fields, by name."""
        return dict(vars(self))


class DivergenceSum:
    """Sums from which a Divergence comes; chunks of logits pass through and are forgotten."""

    def __init__(self) -> None:
        self._tokens = 0
        self._predicted = 0
        # KL, agreements, negative log-likelihood of the model and of the reference; float64 on whatever device.
        self._sums: Tensor | None = None

    def add(self, hidden: Tensor, head: Tensor, reference_hidden: Tensor, reference_head: Tensor, ids: Tensor) -> None:
        """Take in one batch: hidden [B, T, H], head [V, H], the reference's likewise, token ids [B, T].

        The last position of a sequence has no next token: it counts for the KL and not for the perplexity."""
        following = torch.full_like(ids, -1)
        following[:, :-1] = ids[:, 1:]
        following = following.flatten()
        hidden, reference_hidden = hidden.flatten(0, 1), reference_hidden.flatten(0, 1)
        vocab = min(head.shape[0], reference_head.shape[0])
        head, reference_head = head[:vocab].to(compute_dtype(hidden)), reference_head[:vocab]
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(hidden.shape[0], chunk_length(vocab)):
                sums = _divergence_sums(
                    chunk_logits(hidden[part], head, torch.float32, 1.0),
                    chunk_logits(reference_hidden[part], reference_head, torch.float32, 1.0),
                    following[part],
                )
                self._sums = sums if self._sums is None else self._sums + sums
        self._tokens += ids.numel()
        self._predicted += ids.numel() - ids.shape[0]

    def totals(self) -> Tensor:
        """[6] float64: the four sums, tokens, predicted tokens; they add up over processes."""
        if self._sums is None:
            raise ValueError("no batch was added")
        counts = torch.tensor([self._tokens, self._predicted], dtype=torch.float64, device=self._sums.device)
        return torch.cat([self._sums, counts])


def divergence(totals: Tensor) -> Divergence:
    """The means of `DivergenceSum.totals`."""
    kl, agreements, negative, reference_negative, tokens, predicted = totals.tolist()
    return Divergence(
        kl=kl / tokens,
        top1_agreement=agreements / tokens,
        perplexity=math.exp(min(negative / predicted, 700.0)),
        reference_perplexity=math.exp(min(reference_negative / predicted, 700.0)),
        tokens=int(tokens),
    )


def _divergence_sums(logits: Tensor, reference: Tensor, following: Tensor) -> Tensor:
    """[C, V], [C, V], [C] (-1 where there is no next token) -> [4] float64."""
    agreements = logits.argmax(-1).eq(reference.argmax(-1)).sum()
    log_q, log_p = torch.log_softmax(logits, dim=-1), torch.log_softmax(reference, dim=-1)
    has_next = following.ge(0)
    index = following.clamp(min=0).unsqueeze(-1)
    negative = [-log.gather(-1, index).squeeze(-1).double()[has_next].sum() for log in (log_q, log_p)]
    kl = log_p.exp().mul_(log_p.sub_(log_q)).sum(-1).double().sum()
    return torch.stack([kl, agreements.double(), *negative])
