"""What a student is trained to: the recipe's mix of losses over one batch of sequences.

Shape letters: B sequences, T tokens, N = B * T.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.divergences import parse_loss
from distill.losses import chunked_loss, hidden_cosine
from distill.recipe import Recipe
from minitron.quality import hidden_states

PROJECTION = "projection"


class Objective:
    """The loss of a student beside its teacher."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, recipe: Recipe) -> None:
        """Where hidden states of two widths are compared, a linear that is trained along turns one into the other."""
        self.student, self.teacher, self.recipe = student, teacher, recipe
        self.projection = _projection(student, teacher) if recipe.cosine_weight else None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the student, by name."""
        return {} if self.projection is None else {PROJECTION: self.projection}

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 matmuls over fp32 weights, where the recipe wants bf16."""
        return torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def loss(self, ids: Tensor, place: int, *, counted: Tensor | None = None, divisor: float) -> Tensor:
        """The part that [B, T] token ids have in the loss of a whole batch, in which `divisor` tokens count.

        `counted` [B, T] says which tokens are to be learnt: what is said of each is learnt at the one before it.
        `place`, the number of the first sequence since the run began, is what chance follows from."""
        recipe = self.recipe
        heads = [model.get_output_embeddings().weight for model in (self.student, self.teacher)]
        with torch.no_grad():
            theirs = hidden_states(self.teacher, ids).flatten(0, 1)
        with self.autocast():
            mine = hidden_states(self.student, ids).flatten(0, 1)
            mask = None if counted is None else before_counted(counted).to(mine.device)
            total = chunked_loss(
                parse_loss(recipe.loss),
                mine,
                heads[0],
                theirs,
                heads[1],
                mask=mask,
                following=following(ids).to(mine.device) if recipe.lm_weight else None,
                lm_weight=recipe.lm_weight,
                temperature=recipe.temperature,
                divisor=divisor,
                vocab_chunk=recipe.vocab_chunk,
                seed=int(np.random.SeedSequence([recipe.seed, place]).generate_state(1)[0]),
            )
            if recipe.cosine_weight:
                cosine = hidden_cosine(mine, theirs, self.projection, mask=mask, divisor=divisor)
                total = total + recipe.cosine_weight * cosine
        return total


def following(ids: Tensor) -> Tensor:
    """[B, T] -> [N]: the token after each one; -1 after the last of a sequence, where it is not known."""
    shifted = torch.full_like(ids, -1)
    shifted[:, :-1] = ids[:, 1:]
    return shifted.flatten()


def before_counted(counted: Tensor) -> Tensor:
    """[B, T] -> [N]: whether the token after each one is to be learnt."""
    shifted = torch.zeros_like(counted)
    shifted[:, :-1] = counted[:, 1:]
    return shifted.flatten()


def _projection(student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Parameter | None:
    """[H', H] from the student's width to the teacher's, the same for every run; None where they are equal."""
    mine, theirs = (model.get_output_embeddings().weight.shape[1] for model in (student, teacher))
    if mine == theirs:
        return None
    start = torch.randn(theirs, mine, generator=torch.Generator().manual_seed(0)) / mine**0.5
    return nn.Parameter(start.to(student.device))
