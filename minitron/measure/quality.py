"""How well a model predicts a text, alone and beside its teacher: perplexity, KL divergence, top-1 agreement.

Shapes: B sequences a batch, T tokens a sequence, N tokens of a chunk, H hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from minitron.errors import MinitronError, NotFinite
from minitron.model.backbone import backbone
from minitron.model.output_layer import OutputLayer, as_read, output_layer
from minitron.progress import Advance

CHUNK_LOGITS: Final = 2**24
"""Logits alive at a time, 64 MiB in fp32: [N, V] with N = CHUNK_LOGITS / V, whatever the text's length."""

LARGEST_LOSS: Final = 700.0
"""Nats; exp of more overflows a float."""


Read = Callable[[PreTrainedModel, Tensor], Tensor]
"""A model and token ids [B, T] -> [B, T, H]: what its output layer reads."""


@dataclass(frozen=True)
class Quality:
    """What one pass over a text measured."""

    tokens: int
    """Tokens read: the KL divergence and the agreement are means over all of them."""

    perplexity: float
    """exp of the mean negative log likelihood, in nats, of every token but the first of each sequence."""

    kl_to_teacher: float | None
    """KL(teacher || student) of the next token's distribution in nats, mean over tokens; None without a teacher."""

    top1_agreement: float | None
    """Share of the tokens, from 0 to 1, after which student and teacher like the same next token best."""


class Answers(Protocol):
    """What a model that others are compared with says of a text."""

    @property
    def head(self) -> OutputLayer:
        """Makes logits of hidden states."""

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of the token ids [B, T]."""


@dataclass
class Teacher:
    """A model to compare others with over the same sequences; what it said of them is kept while that is small."""

    model: PreTrainedModel
    """The teacher, in eval mode."""

    memory: int = 2**30
    """Bytes of hidden states to keep on the CPU, so that a second student need not wait for the teacher again."""

    read: Read | None = None
    """How it is read; None in one pass, without a cache."""

    _kept: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    @property
    def head(self) -> OutputLayer:
        """Its output layer."""
        return output_layer(self.model)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of the token ids [B, T]."""
        key = ids.cpu().numpy().tobytes()
        if key in self._kept:
            return self._kept[key].to(self.model.device)
        states = (self.read or hidden_states)(self.model, ids)
        if sum(kept.nbytes for kept in self._kept.values()) + states.nbytes <= self.memory:
            self.remember(ids, states)
        return states

    def remember(self, ids: Tensor, states: Tensor) -> None:
        """Keep the hidden states [B, T, H] of the token ids [B, T], from wherever they come."""
        self._kept[ids.cpu().numpy().tobytes()] = states.cpu()


def hidden_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B, T, H]: what the output layer reads, for the token ids [B, T]."""
    states: Tensor = backbone(model)(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return as_read(states, model.get_output_embeddings().weight)


@torch.no_grad()
def measure_quality(
    model: PreTrainedModel,
    blocks: NDArray[np.int64],
    *,
    teacher: Answers | None = None,
    batch_size: int = 1,
    advance: Advance | None = None,
    read: Read | None = None,
) -> Quality:
    """Perplexity of `model` on the sequences `blocks` [S, T] and, given a teacher, KL and agreement with it.

    The logits [tokens, V] never exist as a whole: the output layer is applied to chunks of the hidden states.  Softmax
    is in fp32, sums over tokens are in fp64.  Of two vocabularies of different length the tail of the longer is padding
    and takes no part in the comparison.  `advance` is told of every batch's tokens; `read` reads the model in another
    way than in one pass without a cache.  Raises NotFinite where a logit is
    not finite."""
    if blocks.shape[1] < 2:
        raise MinitronError("--sequence-length is 1, which leaves no token to predict; give 2 or more.")
    sums = np.zeros(3)
    for start in range(0, len(blocks), batch_size):
        ids = torch.from_numpy(blocks[start : start + batch_size])
        sums += _batch_sums(model, teacher, ids, read or hidden_states)
        if not np.isfinite(sums).all():
            raise NotFinite(
                f"{model.config.name_or_path or 'The model'} gives logits that are not finite on the "
                "evaluation text; check its weights, or try --dtype fp32."
            )
        if advance is not None:
            advance(ids.numel())
    nll = float(sums[0]) / (blocks.size - len(blocks))
    if nll > LARGEST_LOSS:
        raise NotFinite(f"The mean loss of {nll:.0f} nats gives no finite perplexity; check the model's weights.")
    kl, agreed = (float(value) / blocks.size for value in sums[1:])
    return Quality(blocks.size, exp(nll), kl if teacher else None, agreed if teacher else None)


def _batch_sums(model: PreTrainedModel, teacher: Answers | None, ids: Tensor, read: Read) -> NDArray[np.float64]:
    """[3]: negative log likelihood, KL and agreements, summed over the ids [B, T]."""
    states = read(model, ids).flatten(0, 1)
    teacher_states = None if teacher is None else teacher.hidden_states(ids).flatten(0, 1)
    # The token that follows each one; -1 after the last of a sequence, where it is not known.
    following = torch.full_like(ids, -1)
    following[:, :-1] = ids[:, 1:]
    following = following.flatten().to(states.device)
    head = output_layer(model)
    sums = np.zeros(3)
    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    for start in range(0, ids.numel(), size):
        chunk = slice(start, start + size)
        logits = head(states[chunk])
        log_q = logits.log_softmax(-1)
        known = following[chunk] >= 0
        picked = log_q.gather(-1, following[chunk].clamp(min=0)[:, None])[:, 0][known]
        sums[0] -= float(picked.cpu().double().sum())
        if teacher is not None and teacher_states is not None:
            # The teacher may have a device of its own.
            theirs = teacher.head(teacher_states[chunk]).to(logits.device)
            vocab = min(logits.shape[-1], theirs.shape[-1])
            if vocab < logits.shape[-1]:
                logits = logits[:, :vocab]
                log_q = logits.log_softmax(-1)
            sums[1:] += _divergence(logits, log_q, theirs[:, :vocab])
    return sums


def _divergence(logits: Tensor, log_q: Tensor, teacher_logits: Tensor) -> NDArray[np.float64]:
    """[2]: KL and agreements summed over N tokens; all three tensors are [N, V] in fp32."""
    log_p = teacher_logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).cpu().double().sum()
    agreed = (logits.argmax(-1) == teacher_logits.argmax(-1)).sum()
    return np.array([float(kl), float(agreed)])
