"""How well a model predicts a text, alone and beside its teacher: perplexity, KL divergence, top-1 agreement.

Shapes: B sequences a batch, T tokens a sequence, N tokens of a chunk, H hidden, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp, isfinite
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from minitron.errors import MinitronError
from minitron.progress import Advance

CHUNK_LOGITS: Final = 2**24
"""Logits alive at a time, 64 MiB in fp32: [N, V] with N = CHUNK_LOGITS / V, whatever the text's length."""


@dataclass(frozen=True)
class Quality:
    """What one pass over a text measured."""

    tokens: int
    """Tokens predicted: every token of every sequence but the first."""

    perplexity: float
    """exp of the mean negative log likelihood of a token, in nats."""

    kl_to_teacher: float | None
    """KL(teacher || student) in nats, the mean over the predicted tokens; None without a teacher."""

    top1_agreement: float | None
    """Part of the predicted tokens, from 0 to 1, for which student and teacher like the same token best."""


@dataclass
class Teacher:
    """A model to compare others with over the same sequences; what it said of them is kept while that is small."""

    model: PreTrainedModel
    """The teacher, in eval mode."""

    memory: int = 2**30
    """Bytes of hidden states to keep on the CPU, so that a second student need not wait for the teacher again."""

    _kept: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    def hidden_states(self, ids: Tensor) -> Tensor:
        """[B, T, H] of the token ids [B, T]."""
        key = ids.cpu().numpy().tobytes()
        if key in self._kept:
            return self._kept[key].to(self.model.device)
        states = hidden_states(self.model, ids)
        if sum(kept.nbytes for kept in self._kept.values()) + states.nbytes <= self.memory:
            self._kept[key] = states.cpu()
        return states


def hidden_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B, T, H]: what the output layer reads, for the token ids [B, T]."""
    states: Tensor = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    return states


@torch.inference_mode()
def measure_quality(
    model: PreTrainedModel,
    blocks: NDArray[np.int64],
    *,
    teacher: Teacher | None = None,
    batch_size: int = 1,
    advance: Advance | None = None,
) -> Quality:
    """Perplexity of `model` on the sequences `blocks` [S, T] and, given a teacher, KL and agreement with it.

    The logits [tokens, V] never exist as a whole: the output layer is applied to chunks of the hidden states.  Softmax
    is in fp32, sums over tokens are in fp64.  `advance` is told of every batch's tokens.  Raises MinitronError where a
    logit is not finite, or the teacher's vocabulary is of another size."""
    if blocks.shape[1] < 2:
        raise MinitronError("A sequence of one token predicts nothing; give a --sequence-length of 2 or more.")
    if teacher is not None:
        require_same_vocabulary(model, teacher.model)
    sums = np.zeros(3)
    for start in range(0, len(blocks), batch_size):
        ids = torch.from_numpy(blocks[start : start + batch_size])
        states = hidden_states(model, ids)[:, :-1].flatten(0, 1)
        teacher_states = None if teacher is None else teacher.hidden_states(ids)[:, :-1].flatten(0, 1)
        targets = ids[:, 1:].flatten().to(states.device)
        for chunk in _chunks(len(targets), model.get_output_embeddings().weight.shape[0]):
            sums += _chunk_sums(
                model,
                states[chunk],
                targets[chunk],
                None if teacher is None else teacher.model,
                None if teacher_states is None else teacher_states[chunk],
            )
        if not np.isfinite(sums).all():
            raise MinitronError(
                f"{model.config.name_or_path or 'The model'} gives logits that are not finite on the evaluation text; "
                "its weights are damaged or the dtype is too narrow (try fp32)."
            )
        if advance is not None:
            advance(ids.numel())
    tokens = blocks.shape[0] * (blocks.shape[1] - 1)
    nll, kl, agreed = (float(value) / tokens for value in sums)
    perplexity = exp(nll) if nll < 700 else float("inf")
    if not isfinite(perplexity):
        raise MinitronError(
            f"The mean loss of {nll:.0f} nats has no finite perplexity; the model's weights are damaged."
        )
    return Quality(tokens, perplexity, kl if teacher else None, agreed if teacher else None)


def require_same_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise MinitronError unless both models give logits over a vocabulary of one size."""
    one, other = (model.get_output_embeddings().weight.shape[0] for model in (student, teacher))
    if one != other:
        raise MinitronError(
            f"The student's vocabulary has {one} tokens and the teacher's {other}; KL compares logits, "
            "so both must share one vocabulary."
        )


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _chunk_sums(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    teacher: PreTrainedModel | None,
    teacher_states: Tensor | None,
) -> NDArray[np.float64]:
    """[3]: negative log likelihood, KL and agreements, summed over the chunk: states [N, H], targets [N]."""
    logits = model.get_output_embeddings()(states).float()
    log_q = logits.log_softmax(-1)
    nll = -log_q.gather(-1, targets[:, None]).cpu().double().sum()
    if teacher is None or teacher_states is None:
        return np.array([float(nll), 0.0, 0.0])
    teacher_logits = teacher.get_output_embeddings()(teacher_states).float().to(logits.device)
    log_p = teacher_logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).cpu().double().sum()
    agreed = (logits.argmax(-1) == teacher_logits.argmax(-1)).sum()
    return np.array([float(nll), float(kl), float(agreed)])
