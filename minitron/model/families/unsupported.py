"""Model types that no table can say, and some that transformers does not know: what it would take, for the refusal and
the documents."""

from typing import Final

UNSUPPORTED: Final[dict[str, str]] = {
    "NemotronH_Nano_Omni_Reasoning_V3": "code that comes with the checkpoint; transformers has the model as "
    "nemotron_h_omni and reads its files where config.json says so and sound_config says no model_type",
    "axk1": "a correction bias that released checkpoints leave out, beside norms that transformers passes over",
    "cohere2_moe": "norms of which the config says whether they are RMSNorm or LayerNorm",
    "dbrx": "experts that stand one below the other in one matrix, sizes in two objects of the config",
    **dict.fromkeys(
        ("deci", "nemotron-nas"),
        "sizes that differ from layer to layer, layers without attention, and transformers has no code for the type",
    ),
    "deepseek_v4": "several residual streams that are mixed, keys of blocks of tokens, experts chosen by a table",
    "gemma3n": "embeddings of each layer, and layers that use the keys and values of another",
    "jetmoe": "query heads that belong to experts",
    "kimi_k2": "transformers has no code for the type; its tensors and config keys are those of deepseek_v3: write "
    "that as model_type",
    "longcat_flash": "two layers of attention in one layer, and experts that have no tensors",
    "mimo_v2_flash": "layers in a sliding window with other numbers of KV heads, and a window one token longer than "
    "the config says",
    **dict.fromkeys(("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"), "an indexer of groups of keys"),
    "qwen3_vl_moe": "experts whose inputs and outputs change places between the file and memory",
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        "several residual streams that are mixed, embeddings of hashed n-grams, an indexer beside attention",
    ),
    "recurrent_gemma": "an embedding times sqrt(hidden) without norms behind blocks, gates of a square block a head",
}
"""model_type -> the part of the model that cannot be said, or what to do."""
