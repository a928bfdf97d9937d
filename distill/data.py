"""The text of a run as sequences of token ids: which are held out, and which comes when.

Shape letters: S sequences, T tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minitron.errors import MinitronError
from minitron.text import text_hash, token_blocks


@dataclass(frozen=True)
class Text:
    """What is trained on and what is held out; no sequence is in both."""

    training: NDArray[np.int64]
    """[S, T] token ids."""

    validation: NDArray[np.int64]
    """[S, T] token ids."""

    source: dict[str, Any]
    """Which files, by name and SHA-256: what the order and the model card depend on."""

    def batch(self, position: int, count: int, *, seed: int) -> NDArray[np.int64]:
        """[count, T]: the sequences number `position` and following of an endless stream.

        The stream goes through all training sequences once an epoch, each epoch in an order of its own that follows
        from `seed` and the epoch's number alone: a position is all there is to remember."""
        size = len(self.training)
        numbers = np.arange(position, position + count)
        orders = {
            epoch: np.random.default_rng([seed, int(epoch)]).permutation(size) for epoch in np.unique(numbers // size)
        }
        return self.training[[orders[number // size][number % size] for number in numbers]]


def read_text(
    tokenizer: PreTrainedTokenizerBase,
    data: Path,
    *,
    sequence_length: int,
    validation: Path | None = None,
    validation_sequences: int,
) -> Text:
    """The sequences of `data`, and held out from it or from the file `validation` at most `validation_sequences`.

    Without a file for validation the end of the text is held out, at most a tenth of it and at least one sequence: a
    stretch of its own, where sequences from all over would continue what was trained on.  Raises MinitronError where
    either text is too short, or both are the same file."""
    blocks = token_blocks(tokenizer, data, sequence_length=sequence_length)
    source: dict[str, Any] = {"data": {"name": data.name, "sha256": text_hash(data)}}
    if validation is not None:
        held_out = token_blocks(tokenizer, validation, sequence_length=sequence_length, samples=validation_sequences)
        source["validation"] = {"name": validation.name, "sha256": text_hash(validation)}
        if source["validation"]["sha256"] == source["data"]["sha256"]:
            raise MinitronError(
                f"{validation} is the training text {data}; give another file for validation, "
                "or none to hold out a part of it."
            )
        return Text(blocks, held_out, source)
    count = min(validation_sequences, max(1, len(blocks) // 10))
    if len(blocks) <= count:
        raise MinitronError(
            f"{data} holds {len(blocks)} sequence of {sequence_length} tokens, too few to hold one out; "
            "give more text, a smaller --sequence-length or a file for --validation."
        )
    return Text(blocks[:-count], blocks[-count:], source)
