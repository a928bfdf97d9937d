"""Model types that transformers knows and no table can say: what it would take, for the refusal and the documents."""

from typing import Final

UNSUPPORTED: Final[dict[str, str]] = {
    "gemma3n": "embeddings of each layer, and layers that use the keys and values of another",
}
"""model_type -> the part of the model that cannot be said."""
