"""The student's answers, written here by transformers' generate: a function of its weights, the prompts and a seed.

Shape letters: S sequences, P tokens of a prompt, A of the longest answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from distill.losses.slopes import chunks
from distill.policy.prompts import until_stop
from minitron.errors import MinitronError

_TOKENS: Final = 2**15
"""Of the sequences that are written at once: with 128 KiB of keys and values a token they take 4 GiB."""

_APART: Final = 0.05
"""Nats between what a student says with its cache and without, above which the cache is not used: rounding in bf16
stays below."""

_PROBE: Final = 16

_FAILURES: Final = (
    *(TypeError, ValueError, AttributeError, KeyError, IndexError),
    *(NotImplementedError, RuntimeError, AssertionError),
)
"""What a class of transformers raises that does not decode with a cache on this machine."""


@dataclass
class LocalAnswers:
    """A student that answers prompts."""

    student: PreTrainedModel
    stops: frozenset[int]
    """Tokens that end an answer."""

    known_tokens: int
    """Tokens that both student and teacher know; others are padding and are not said."""

    length: int
    """A."""

    temperature: float = 1.0
    """Of sampling; 0 takes the likeliest token."""

    stops_early: bool = True
    """Whether it ends when all answers have; not where several processes gather layers for every token."""

    _has_cache: bool | None = field(default=None, init=False)

    def answer(self, prompts: NDArray[np.int64], seed: int) -> list[list[int]]:
        """The answers to prompts [S, P], of at least one token.  What else draws random numbers draws the same as if
        there were no answers."""
        if self._has_cache is None:
            self._has_cache = self._can_use_cache(prompts[:1, :_PROBE])
        device = self.student.device
        found: list[list[int]] = []
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for part in chunks(len(prompts), max(1, _TOKENS // (prompts.shape[1] + self.length))):
                torch.manual_seed(seed + part.start)
                made = self._generate(torch.from_numpy(prompts[part]), self.length, self._has_cache)
                rows = made.sequences[:, prompts.shape[1] :].tolist()
                found += [until_stop(row, self.stops) for row in rows]
        return found

    @property
    def told(self) -> str | None:
        """What a user should know of the way it answers, once it did; None where there is nothing."""
        if self._has_cache is not False:
            return None
        return "The student cannot decode with a cache here: every token of its answers runs all of those before it."

    @torch.no_grad()
    def _generate(self, ids: Tensor, length: int, has_cache: bool, **more: Any) -> Any:
        """transformers' own record of ids [S, P] and what follows them."""
        ids = ids.to(self.student.device)
        ends = sorted(self.stops) if self.stops_early and self.stops else None
        samples = self.temperature > 0
        asked = GenerationConfig(
            max_new_tokens=length,
            do_sample=samples,
            **({"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if samples else {}),
            use_cache=has_cache,
            eos_token_id=ends,
            pad_token_id=ends[0] if ends else 0,
            return_dict_in_generate=True,
            **more,
        )
        known = LogitsProcessorList([_Known(self.known_tokens)])
        with _plainly(self.student):
            return self.student.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=asked, logits_processor=known
            )

    def _can_use_cache(self, ids: NDArray[np.int64]) -> bool:
        """Whether the student says the same of a token with its cache and without.

        Raises MinitronError where it says nothing in either way."""
        if not self.student.can_generate():
            raise MinitronError(_MUTE)
        prompt = torch.from_numpy(ids)
        with torch.random.fork_rng([self.student.device] if self.student.device.type == "cuda" else []):
            try:
                made = self._generate(prompt, 2, True, output_logits=True)
                kept = made.logits[-1].float().log_softmax(-1)
                both = made.sequences[:, :-1].cpu()
            except torch.OutOfMemoryError:
                raise
            except _FAILURES:
                kept, both = None, prompt
            try:
                plain = self._generate(both, 1, False, output_logits=True).logits[-1].float().log_softmax(-1)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                raise MinitronError(f"{_MUTE[:-1]} (transformers says: {error}).") from error
        return kept is not None and bool((plain.exp() * (plain - kept)).sum(-1).max() < _APART)


_MUTE: Final = (
    "transformers does not generate text with this student here; drop --on-policy, or give --on-policy-endpoint."
)


class _Known(LogitsProcessor):  # type: ignore[misc]
    """Leaves out the padding of a vocabulary."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # Not in place: transformers keeps the same tensor as what the model said.
        known = scores.clone()
        known[:, self.vocab :] = -torch.inf
        return known


@contextmanager
def _plainly(student: PreTrainedModel) -> Iterator[None]:
    """Nothing of what its folder says of sampling, such as top-k or penalties, until the block ends: the loss is of the
    student's own distribution."""
    own = student.generation_config
    student.generation_config = GenerationConfig()
    try:
        yield
    finally:
        student.generation_config = own
