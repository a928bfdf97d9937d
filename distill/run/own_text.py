"""The share of a run's sequences that the student writes itself, and how they come into a step.

A step's loss is (1 - s) times the mean over tokens of the text, plus s times the mean over tokens of the student's own
answers, s being the share of its sequences that are its own (Agarwal et al. 2023, GKD, arXiv 2306.13649, algorithm 1,
which draws one kind or the other for a whole step).  Nothing flows back through the writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from distill.losses.slopes import chunks
from distill.policy.endpoint import EndpointAnswers, divergence
from distill.policy.generation import LocalAnswers
from distill.policy.prompts import is_own, join, prompt
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.text.data import Batch, Text
from minitron.measure.quality import CHUNK_LOGITS, hidden_states
from minitron.measure.text import end_of_text
from minitron.model.configs import vocabulary_of
from minitron.model.loading import load_tokenizer
from minitron.model.output_layer import output_layer


class Answering(Protocol):
    """Who answers prompts."""

    length: int
    """Tokens of the longest answer."""

    def answer(self, prompts: NDArray[np.int64], seed: int) -> list[list[int]]:
        """The answers to prompts [S, P], of at least one token."""

    @property
    def told(self) -> str | None:
        """What a user should know of the way it answers; None where there is nothing."""


@dataclass(frozen=True)
class OwnText:
    """Where the student's own sequences come from."""

    share: float
    answering: Answering
    filler: int
    """A token that stands behind short answers."""

    def numbers(self, position: int, count: int, world_size: int) -> list[int]:
        """Which of the `count` sequences of a step, that begins with the sequence `position`, are the student's own:
        every process has as many, which layers that are dealt out need."""
        return [number for number in range(count) if is_own((position + number) // world_size, self.share)]

    def prompts(self, text: Text, batch: Batch, numbers: Sequence[int]) -> NDArray[np.int64]:
        """[S, P] for the sequences `numbers` of a batch."""
        size = batch.ids.shape[1] - self.answering.length
        return np.stack([prompt(text.parts[part], place, size) for part, place in (batch.places[n] for n in numbers)])

    def answered(self, batch: Batch, numbers: Sequence[int], prompts: NDArray[np.int64], seed: int) -> Batch:
        """The batch with the sequences `numbers` written anew; of it no other is to be read."""
        found = join(prompts, self.answering.answer(prompts, seed), batch.ids.shape[1], filler=self.filler)
        ids, counted = batch.ids.copy(), np.zeros(batch.ids.shape, dtype=np.bool_)
        ids[list(numbers)], counted[list(numbers)] = found.ids, found.counted
        return Batch(ids, counted, batch.places)


@torch.no_grad()
def staleness(student: PreTrainedModel, own: OwnText, batch: Batch, numbers: Sequence[int]) -> float | None:
    """How far the student that an endpoint serves is from the one in training, over the answers that it has just given
    in the sequences `numbers` of a batch (distill.policy.endpoint.divergence); None where it does not say."""
    if not isinstance(own.answering, EndpointAnswers) or batch.counted is None:
        return None
    head, found = output_layer(student), []
    for number in numbers:
        ids = torch.from_numpy(batch.ids[number : number + 1])
        counted = torch.from_numpy(batch.counted[number, 1:])
        states = hidden_states(student, ids)[0, :-1][counted.to(student.device)]
        tokens = ids[0, 1:][counted].to(states.device)
        parts = [
            head(states[part]).float().log_softmax(-1).gather(-1, tokens[part, None])[:, 0]
            for part in chunks(len(tokens), max(1, CHUNK_LOGITS // head.weight.shape[0]))
        ]
        found.append(torch.cat(parts).double().cpu().numpy())
    return divergence(own.answering.said, found)


def own_text(asked: Distillation, recipe: Recipe, student: PreTrainedModel, processes: Processes) -> OwnText:
    """Where a run's own sequences come from; `student` is the model that is trained.

    Raises MinitronError where the endpoint has no address."""
    tokenizer = load_tokenizer(asked.student)
    ends = student.generation_config.eos_token_id
    stops = frozenset(end_of_text(tokenizer)) | {
        int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None
    }
    folders = (asked.student, asked.teacher, *asked.teachers.values())
    sizes = [size for folder in folders if (size := vocabulary_of(folder)) is not None]
    known = min([max(tokenizer.get_vocab().values()) + 1, *sizes])
    limits: dict[str, Any] = {"stops": stops, "known_tokens": known, "length": recipe.answer_tokens}
    limits["temperature"] = recipe.on_policy_temperature
    answering: Answering
    if asked.on_policy_endpoint is not None:
        answering = EndpointAnswers(asked.on_policy_endpoint, asked.on_policy_model, tokenizer, **limits)
    else:
        answering = LocalAnswers(student, **limits, stops_early=processes.world_size == 1)
    return OwnText(recipe.on_policy, answering, min(stops, default=0))
