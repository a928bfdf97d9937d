"""Prompts of tokens continued in one batch, by transformers.

Shapes: B prompts, T tokens of the longest, N new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]

Drawn = tuple[Ids, int | None]
"""(new tokens without the one that ends them, that one; None where the limit ended them)."""


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Tokens that end an answer."""
    said = getattr(model.generation_config, "eos_token_id", None)
    ends = said if isinstance(said, list) else [] if said is None else [said]
    own = tokenizer.eos_token_id
    return tuple(dict.fromkeys(int(one) for one in [*ends, *([] if own is None else [own])]))


def pad_of(tokenizer: PreTrainedTokenizerBase, ends: Ids) -> int:
    """The token that stands where there is none."""
    pad = tokenizer.pad_token_id
    return (ends[0] if ends else 0) if pad is None else int(pad)


def continued(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    limit: int,
    *,
    ends: Ids,
    pad: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[Drawn]:
    """What comes after each prompt, at most `limit` tokens.

    Above a temperature of 0 tokens are drawn with torch's own generators."""
    import torch
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0}
    how = GenerationConfig(
        max_new_tokens=limit,
        do_sample=temperature > 0,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        **(drawn if temperature else {}),
    )
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=how)
    finally:
        model.generation_config = kept
    return [_ended([int(one) for one in row], ends) for row in out[:, width:].tolist()]


def _ended(ids: Sequence[int], ends: Sequence[int]) -> Drawn:
    place = next((place for place, one in enumerate(ids) if one in ends), None)
    return (tuple(ids), None) if place is None else (tuple(ids[:place]), ids[place])


def batches(lengths: Sequence[int], most: int, *, pads: bool) -> list[list[int]]:
    """Numbers of prompts that are read together, the shortest first, `most` at a time: unless prompts may be padded
    (`pads`), those of one length alone."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        apart = not found or len(found[-1]) == most or (not pads and lengths[number] != lengths[found[-1][0]])
        if apart:
            found.append([])
        found[-1].append(number)
    return found
