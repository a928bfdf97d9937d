"""Text for calibration, distillation and evaluation: files in, blocks of token ids out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron.errors import MinitronError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# UTF-8, with or without the byte order mark that some editors put in front of a file.
_ENCODING: Final = "utf-8-sig"


def documents(path: Path) -> Iterator[str]:
    """The documents of a .jsonl file (the field `text` of each line) or of a text file (the whole file is one).

    Raises MinitronError where the file is missing, a line is no JSON object with a `text`, or nothing is in it."""
    if not path.is_file():
        raise MinitronError(f"{path} does not exist; give a text file or a .jsonl file with a field `text` a line.")
    found = False
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding=_ENCODING) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        found = True
                        yield _text_field(path, number, line)
        elif text := path.read_text(encoding=_ENCODING):
            found = bool(text.strip())
            yield text
    except UnicodeDecodeError as error:
        raise MinitronError(f"{path} is not UTF-8 text ({error}); convert it first.") from None
    if not found:
        raise MinitronError(f"{path} holds no text; give another file.")


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise MinitronError(f"{path} line {number} is not JSON ({error}); fix or remove it.") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise MinitronError(f"{path} line {number} has no string field `text`; fix or remove it.")
    return str(record["text"])


def token_blocks(
    tokenizer: PreTrainedTokenizerBase, path: Path, *, sequence_length: int, samples: int | None = None
) -> NDArray[np.int64]:
    """[N, T] token ids: the documents of `path`, each followed by the end-of-text token, packed without padding.

    N is as many whole blocks of T = `sequence_length` as the text holds, at most `samples`.  Blocks are spread evenly
    over the text, so that a few samples see all of it and not only its beginning.  Raises MinitronError where the text
    is too short for one block."""
    import numpy as np

    separator = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids: list[int] = []
    for text in documents(path):
        # verbose=False: a text longer than the model's context is no mistake here, it is cut into blocks.
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + separator
    whole = len(ids) // sequence_length
    if whole == 0:
        raise MinitronError(
            f"{path} holds {len(ids)} tokens, less than one sequence of {sequence_length}; "
            "give more text or a smaller --sequence-length."
        )
    blocks = np.asarray(ids[: whole * sequence_length], dtype=np.int64).reshape(whole, sequence_length)
    if samples is not None and samples < whole:
        blocks = blocks[np.linspace(0, whole - 1, samples).round().astype(np.int64)]
    return blocks


def text_hash(path: Path) -> str:
    """The SHA-256 of a file, by which scores and runs name the text they were made from."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
