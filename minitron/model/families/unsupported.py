"""Model types that transformers knows and no table can say: what it would take, for the refusal and the documents."""

from typing import Final

UNSUPPORTED: Final[dict[str, str]] = {
    "afmoe": "an embedding that enters the stream times sqrt(hidden) only where the config says so",
    "axk1": "a correction bias that released checkpoints leave out, beside norms that transformers passes over",
    "dbrx": "experts that stand one below the other in one matrix, sizes in two objects of the config",
    "deepseek_v4": "several residual streams that are mixed, keys of blocks of tokens, experts chosen by a table",
    "gemma3n": "embeddings of each layer, and layers that use the keys and values of another",
    "jetmoe": "query heads that belong to experts",
    "longcat_flash": "two layers of attention in one layer, and experts that have no tensors",
    "minimax_m3_vl": "an indexer of groups of keys",
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        "several residual streams that are mixed, embeddings of hashed n-grams, an indexer beside attention",
    ),
    "recurrent_gemma": "an embedding times sqrt(hidden) without norms behind blocks, gates of a square block a head",
}
"""model_type -> the part of the model that cannot be said."""
