"""How llama.cpp is to split text: the name that a GGUF file gives the pre-tokenizer of a byte-level BPE tokenizer.

The converter knows published tokenizers by the tokens of one text.  Any other one has to say in tokenizer.json how it
splits, and is taken where that is what llama.cpp calls by a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json

GPT2: Final = "gpt-2"
"""llama.cpp's name of the split of GPT-2, which `ByteLevel` of tokenizers makes with its own expression."""

_PLAIN: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_ABSENT: Final = {"use_regex": True, "add_prefix_space": True}
"""What tokenizers takes where the file is silent."""


def pre_tokenizer(folder: Path) -> str:
    """llama.cpp's name of how the tokenizer of a checkpoint folder splits text, read off tokenizer.json.

    Raises MinitronError, with what is not understood, where it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MinitronError(
            f"{folder} has a tokenizer that llama.cpp's converter does not know, and no tokenizer.json that says how "
            "it splits text; save the tokenizer with transformers, which writes one."
        )
    document = read_json(path)
    if (why := _unlike_gpt2(document if isinstance(document, dict) else {})) is None:
        return GPT2
    raise MinitronError(
        f"{path}: {why}, which llama.cpp has no name for; Minitron exports tokenizers that llama.cpp's converter knows "
        "and byte-level BPE that splits as GPT-2 does."
    )


def _unlike_gpt2(document: Mapping[str, Any]) -> str | None:
    """What of a tokenizer is not as in GPT-2; None where nothing is."""
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE" or not isinstance(model, dict):
        return f"the model of the tokenizer is {kind!r:.40}, not BPE"
    if model.get("byte_fallback") or model.get("ignore_merges"):
        return "the merges are not applied as in GPT-2 (byte_fallback or ignore_merges)"
    if document.get("normalizer") is not None:
        return f"the text is normalised first ({_kind(document['normalizer'])})"
    splits = document.get("pre_tokenizer")
    found = splits if isinstance(splits, dict) else {}
    given = {key: found.get(key, _ABSENT.get(key)) for key in _PLAIN}
    return None if given == _PLAIN else f"the text is split by {_kind(splits)} {_settings(found)}".strip()


def _kind(part: Any) -> str:
    return str(part.get("type"))[:40] if isinstance(part, dict) else "nothing"


def _settings(part: Mapping[str, Any]) -> str:
    """What differs of a ByteLevel, or what a sequence is made of."""
    if part.get("type") == "Sequence" and isinstance(part.get("pretokenizers"), list):
        return "of " + ", ".join(_kind(one) for one in part["pretokenizers"][:5])
    differing = [key for key in ("add_prefix_space", "use_regex") if part.get(key, _ABSENT[key]) != _PLAIN[key]]
    return " with ".join(["", *(f"{key}={part.get(key, _ABSENT[key])!r:.10}" for key in differing)]).strip()


def adds_start(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers puts its start token in front of a text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def adds_end(tokenizer: Any) -> bool:
    """Whether it puts its end token behind a text."""
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
