"""A model of a folder that answers conversations, by transformers.

Padding is exact for models whose layers all attend: a mask hides it.  A recurrent state, and the inputs that a
convolution keeps, would have read it, so prompts of other models are batched with those of the same length alone.

Shapes: B conversations of a batch, T tokens of a prompt.
"""

from __future__ import annotations

import gc
import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from judge.contests import Conversation
from judge.generating import Ids, batches, continued, ends_of, pad_of
from judge.parsing import THOUGHTS, without_thoughts
from judge.speaking import Keep, Reply, Speaking
from minitron.errors import MinitronError
from minitron.measure.options import Dtype
from minitron.measure.records import Record
from minitron.measure.rendering import BrokenRecordError, Renderer
from minitron.measure.text import token_ids
from minitron.model.identity import tokenizer_hash, weights_of
from minitron.model.sources import title

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ENDING: Final = "\n{}\n\n"
"""How a thought is ended that is not done by its limit."""

_SHORTEST_SPECIAL: Final = 3
"""Characters of a control token, at least: shorter ones stand in any text."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as tokens."""

    ids: tuple[int, ...]

    opened: str = ""
    """The mark by which the template has opened a thought, if it has."""


@dataclass(frozen=True)
class _Piece:
    """What is still to be said after a prompt."""

    number: int
    prompt: Prompt
    said: tuple[int, ...]
    left: int
    """Tokens that may follow."""

    thought: int | None
    """Tokens of the thinking, where there was some."""

    cut: bool
    """Whether the thinking was ended by its limit."""


@dataclass
class LocalModel:
    """A checkpoint folder; the model is loaded when it first speaks, and stays until `close`."""

    folder: Path
    speaking: Speaking
    dtype: Dtype = "bf16"
    device: str | None = None
    batch_size: int = 8
    """Conversations in one pass, at most."""

    _model: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The folder's."""
        return title(self.folder)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Weights and tokenizer, and how it speaks; what is drawn depends on who is in a batch, too."""
        drawn = {"batch": self.batch_size} if self.speaking.temperature else {}
        weights = weights_of(self.folder)["sha256"]
        about = {"weights": weights, "tokenizer": tokenizer_hash(self.folder), "dtype": self.dtype}
        return {**about, "speaking": vars(self.speaking), **drawn}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's."""
        from minitron.model.loading import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """Its control tokens."""
        found = {str(token) for token in self.tokenizer.all_special_tokens}
        found |= {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(
            sorted((token for token in found if len(token.strip()) >= _SHORTEST_SPECIAL), key=len, reverse=True)
        )

    @cached_property
    def pads_exactly(self) -> bool:
        """Whether shorter prompts may be padded."""
        from minitron.memory.caches import keeps_states
        from minitron.model.configs import spec_if_known

        spec = spec_if_known(self.folder)
        return spec is not None and not keeps_states(spec)

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded."""
        from minitron.model.loading import DTYPES, find_device, load_model

        if self._model is None:
            self._model = load_model(self.folder, dtype=DTYPES[self.dtype], device=find_device(self.device))
        model: PreTrainedModel = self._model
        return model

    def close(self) -> None:
        """Free the model: another may need its memory."""
        import torch

        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def speak(self, conversations: Sequence[Conversation], missing: Sequence[int], keep: Keep) -> None:
        """Answer the missing ones, batch by batch.  Which conversations share a batch follows from all of them: where
        tokens are drawn, a run that goes on makes the replies of one that was not stopped."""
        prompts = self._prompts(conversations)
        wanted, refused = set(missing), self._too_long(prompts)
        for number in wanted & refused.keys():
            keep(number, Reply("", refused=refused[number]))
        sound = [number for number in range(len(prompts)) if number not in refused]
        for batch in self._batches({number: len(prompts[number].ids) for number in sound}):
            # Greedy replies do not depend on the others of a batch.
            asked = [number for number in batch if number in wanted] if not self.speaking.temperature else batch
            if wanted.isdisjoint(batch):
                continue
            for number, reply in self._replies({number: prompts[number] for number in asked}):
                if number in wanted:
                    keep(number, reply)

    def _prompts(self, conversations: Sequence[Conversation]) -> list[Prompt]:
        with Renderer(self.tokenizer) as renderer:
            return [self.prompt(renderer, conversation) for conversation in conversations]

    def prompt(self, renderer: Renderer, conversation: Conversation) -> Prompt:
        """Raises MinitronError where the chat template refuses it, or there is none and it has several messages."""
        where = f"a conversation of {len(conversation)} messages"
        try:
            if not self.tokenizer.chat_template and len(conversation) == 1:
                text = str(conversation[0]["content"])
                begin = self.tokenizer.bos_token_id
                return Prompt((*(() if begin is None else (int(begin),)), *token_ids(self.tokenizer, text)))
            text = renderer.text(Record(where, None, tuple(conversation)), prompt=True)
            opened = next((begin for begin, _ in THOUGHTS if text.rstrip().endswith(begin)), "")
            return Prompt(tuple(token_ids(self.tokenizer, text)), opened)
        except BrokenRecordError as error:
            raise MinitronError(f"{self.folder}: {where} {error}; choose another model.") from None

    def _too_long(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        """Number of a prompt that leaves no room for an answer -> why."""
        from minitron.model.configs import spec_if_known

        spec = spec_if_known(self.folder)
        longest = None if spec is None else spec.value("max_position_embeddings")
        if not isinstance(longest, int):
            return {}
        return {
            number: f"it has {len(prompt.ids):,} tokens, and the model reads {longest:,} with the answer"
            for number, prompt in enumerate(prompts)
            if len(prompt.ids) + self.speaking.max_tokens + (self.speaking.max_thinking_tokens or 0) > longest
        }

    def _batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Numbers that are read together, the shortest first."""
        numbers = list(lengths)
        for batch in batches(list(lengths.values()), self.batch_size, pads=self.pads_exactly):
            yield [numbers[place] for place in batch]

    def _replies(self, prompts: Mapping[int, Prompt]) -> Iterator[tuple[int, Reply]]:
        speaking = self.speaking
        first = speaking.max_thinking_tokens or speaking.max_tokens
        numbers = list(prompts)
        going_on = []
        for number, (ids, ended) in zip(
            numbers, self._generate([prompts[number].ids for number in numbers], first), strict=True
        ):
            piece = self._after_thinking(number, prompts[number], ids, ended)
            if ended or speaking.max_thinking_tokens is None or piece.left <= 0:
                yield number, self._reply(piece, ended)
            else:
                going_on.append(piece)
        lengths = {place: len(piece.prompt.ids) + len(piece.said) for place, piece in enumerate(going_on)}
        for batch in self._batches(lengths):
            pieces = [going_on[place] for place in batch]
            found = self._generate(
                [piece.prompt.ids + piece.said for piece in pieces], max(piece.left for piece in pieces)
            )
            for piece, (ids, ended) in zip(pieces, found, strict=True):
                more, done = ids[: piece.left], ended and len(ids) <= piece.left
                said = _Piece(piece.number, piece.prompt, piece.said + more, 0, piece.thought, piece.cut)
                yield piece.number, self._reply(said, done)

    def _after_thinking(self, number: int, prompt: Prompt, ids: tuple[int, ...], ended: bool) -> _Piece:
        """What may follow what was said within the first limit; a thought that is not done is ended."""
        most, text = self.speaking.max_tokens, self._text(ids)
        marks = next(
            ((begin, end) for begin, end in THOUGHTS if prompt.opened == begin or text.lstrip().startswith(begin)), None
        )
        if marks is None:
            return _Piece(number, prompt, ids[:most], most - len(ids), None, False)
        thought = self._until(ids, marks[1])
        if thought is not None:
            said = ids[: thought + most] if self.speaking.max_thinking_tokens else ids
            return _Piece(number, prompt, said, most - (len(ids) - thought), thought, False)
        if self.speaking.max_thinking_tokens is None or ended:
            return _Piece(number, prompt, ids, 0, len(ids), False)
        ending = tuple(token_ids(self.tokenizer, _ENDING.format(marks[1])))
        return _Piece(number, prompt, ids + ending, most, len(ids), True)

    def _until(self, ids: tuple[int, ...], mark: str) -> int | None:
        """How many tokens it takes until `mark` is said; None where it is not."""
        if mark not in self._text(ids):
            return None
        return bisect_left(range(len(ids) + 1), True, key=lambda count: mark in self._text(ids[:count]))

    def _reply(self, piece: _Piece, ended: bool) -> Reply:
        answer = self.said(piece.said, opened=bool(piece.prompt.opened))
        return Reply(answer, len(piece.said), piece.thought, ended, piece.cut)

    def said(self, ids: Sequence[int], *, opened: bool = False) -> str:
        """What tokens say, without a thought (`opened` where the prompt has opened it) and without control tokens."""
        answer = without_thoughts(self._text(ids), opened=opened)[1]
        for token in self.specials:
            answer = answer.replace(token, "")
        return answer.strip()

    def _text(self, ids: Sequence[int]) -> str:
        # A name of another type is no text: decode() makes lists of lists.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def _ends(self) -> Ids:
        """Tokens that end an answer."""
        return ends_of(self.model, self.tokenizer)

    def _generate(self, prompts: Sequence[Ids], limit: int) -> list[tuple[Ids, bool]]:
        """(new tokens without what ends them, whether they were ended) for each prompt; at most `limit`."""
        import torch

        model, ends, speaking = self.model, self._ends, self.speaking
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(_seed(speaking.seed, prompts))
            found = continued(
                model,
                prompts,
                limit,
                ends=ends,
                pad=pad_of(self.tokenizer, ends),
                temperature=speaking.temperature,
                top_p=speaking.top_p,
            )
        return [(ids, end is not None) for ids, end in found]


def _seed(seed: int, prompts: Sequence[tuple[int, ...]]) -> int:
    """Of a batch: batches must not draw alike, and a run that goes on must draw as it would have."""
    whole = json.dumps([seed, [list(prompt) for prompt in prompts]])
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:7])
