"""Text for calibration, distillation and evaluation: records in, blocks of token ids out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron.errors import MinitronError
from minitron.foreign import told, why
from minitron.measure.records import Broken, Record, Source, no_text, records
from minitron.measure.rendering import BrokenRecordError, Renderer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LARGE: Final = 2**23
"""Characters above which a few samples are read from places spread over a text instead of from all of its tokens: a
tokenizer needs a minute for 60 MB."""

_CHARACTERS: Final = 8
"""Characters of a long record that are turned into tokens at once, for each token that is wanted."""


def documents(path: Path) -> Iterator[Record]:
    """The records of a file or folder that is read whole or not at all.

    Raises MinitronError where it is missing, a record is broken, or nothing is in it."""
    found = False
    for record in records(Source(str(path)), Broken()):
        found = found or record.text is None or bool(record.text.strip())
        yield record
    if not found:
        raise MinitronError(f"{path} holds no text; give another file.")


def token_blocks(
    tokenizer: PreTrainedTokenizerBase, path: Path, *, sequence_length: int, samples: int | None = None
) -> NDArray[np.int64]:
    """[N, T] token ids: the records of `path`, each followed by the end-of-text token, packed without padding.

    N is as many whole blocks of T = `sequence_length` as the text holds, at most `samples`.  Blocks are spread evenly
    over the text, so that a few samples see all of it and not only its beginning; of a text of more than LARGE
    characters, blocks begin at records, or at words of a long one, and the rest is not turned into tokens.  Raises
    MinitronError where the text is too short for one block, a record is broken, or the tokenizer cannot show a
    conversation."""
    import numpy as np

    if samples is not None:
        length = sum(record.length for record in documents(path))
        if length > max(LARGE, 4 * _CHARACTERS * samples * sequence_length):
            with Renderer(tokenizer) as renderer:
                return np.stack(list(_spread(renderer, path, sequence_length, samples, length)))
    end = end_of_text(tokenizer)
    with Renderer(tokenizer) as renderer:
        runs = [np.asarray([*_ids(renderer, record), *end], dtype=np.int32) for record in documents(path)]
    ids = np.concatenate(runs)
    whole = len(ids) // sequence_length
    if whole == 0:
        raise MinitronError(
            f"{path} holds {len(ids)} tokens, less than one sequence of {sequence_length}; "
            "give more text or a smaller --sequence-length."
        )
    blocks = ids[: whole * sequence_length].reshape(whole, sequence_length).astype(np.int64)
    if samples is not None and samples < whole:
        blocks = blocks[np.linspace(0, whole - 1, samples).round().astype(np.int64)]
    return blocks


def _spread(
    renderer: Renderer, path: Path, sequence_length: int, samples: int, length: int
) -> Iterator[NDArray[np.int64]]:
    """One block after each of `samples` places, which are evenly far apart in the `length` characters of a text."""
    import numpy as np

    end = end_of_text(renderer.tokenizer)
    block: list[int] = []
    passed = made = 0
    for record in documents(path):
        at = 0
        while made < samples:
            place = made * length // samples
            if not block and passed + at < place:
                if passed + record.length <= place:
                    break
                at = _word(record, place - passed, at)
            ids, at = _some(renderer, record, at, sequence_length - len(block))
            block += ids
            if at >= record.length:
                block += end
            if len(block) >= sequence_length:
                yield np.asarray(block[:sequence_length], dtype=np.int64)
                block, made = [], made + 1
            if at >= record.length:
                break
        if made == samples:
            return
        passed += record.length


def _word(record: Record, place: int, at: int) -> int:
    """Where a long text is entered: at the first word after `place`; a short one, or a conversation, from `at` on."""
    if record.text is None or record.length <= LARGE // 2**10:
        return at
    found = record.text.find(" ", place)
    return place if found < 0 else found


def _some(renderer: Renderer, record: Record, at: int, wanted: int) -> tuple[list[int], int]:
    """Tokens of a record from a character on, at least as many as wanted where there are, and how far they reach."""
    if record.text is None:
        return _ids(renderer, record), max(1, record.length)
    stop = at + max(1, wanted) * _CHARACTERS
    return _ids(renderer, Record(record.where, record.text[at:stop])), min(stop, max(1, record.length))


def _ids(renderer: Renderer, record: Record) -> list[int]:
    try:
        return token_ids(renderer.tokenizer, renderer.text(record))
    except BrokenRecordError as error:
        Broken().add(record.where, str(error))
        raise


MOST_UNKNOWN: Final = 0.1
"""The share of unknown tokens above which a text is taken for one of another tokenizer."""


def require_known(tokenizer: PreTrainedTokenizerBase, blocks: NDArray[np.int64], path: Path) -> None:
    """Raise MinitronError where much of a text is no word of the tokenizer's: it was made for another language, or the
    tokenizer is another model's."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return
    share = float((blocks == unknown).mean())
    if share > MOST_UNKNOWN:
        raise MinitronError(
            f"{share:.0%} of the tokens of {path} are unknown to the model's tokenizer; give text in languages that "
            "the model knows, or the tokenizer that it was trained with."
        )


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token after each record, if the tokenizer has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, none added; raises BrokenRecordError for what is no Unicode text."""
    return list(encoded(tokenizer, text)["input_ids"])


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    """What the tokenizer says of a text, no token added.

    Raises BrokenRecordError for what is no Unicode text, and where the tokenizer gives up on it: its patterns may need
    more steps than they are allowed for a text."""
    if flaw := no_text(text):
        raise BrokenRecordError(flaw)
    try:
        with told("a tokenizer cannot read a text", "give another"):
            # verbose=False: a text longer than the model's context is no mistake here, it is cut into blocks.
            found: BatchEncoding = tokenizer(text, add_special_tokens=False, verbose=False)
    except MinitronError as error:
        raise BrokenRecordError(f"is refused by the tokenizer ({why(error.__cause__ or error)})") from error
    return found


__all__ = [
    "LARGE",
    "BrokenRecordError",
    "Renderer",
    "documents",
    "encoded",
    "end_of_text",
    "require_known",
    "token_blocks",
    "token_ids",
]
