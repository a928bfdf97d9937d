"""Tiny checkpoints with random weights, built on the spot: a test reads, cuts and runs them in moments.

Every size differs from every other where it can, so that a mistaken axis shows as a wrong shape.  Norm gains, biases
and the router's correction bias are random too: with transformers' own ones and zeros a wrong cut could pass unseen.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 300

LAYERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
PATTERN = "MEM*-ME*"

HYBRID_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 56,
    "mamba_num_heads": 8,
    "mamba_head_dim": 10,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 256,
}

LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_text(path: Path, *, sentences: int = 200, seed: int = 0) -> Path:
    """A text of plain sentences from a small vocabulary: some 26 bytes a sentence."""
    rng = np.random.default_rng(seed)
    names, verbs = ["Anna", "Ben", "Clara", "The dog", "The king"], ["sees", "finds", "eats", "wants"]
    things = ["a red apple", "the old road", "three birds", "bread and salt"]
    lines = [f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}." for _ in range(sentences)]
    path.write_text(" ".join(lines) + "\n", encoding="utf-8")
    return path


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens; `<pad>`, `<s>` and `</s>` are 0, 1 and 2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the old king sees three birds and Anna wants a red apple, bread and salt; Ben and Clara find the road. "
    bpe.train_from_iterator([words * 4], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_hybrid(folder: Path, *, pattern: str = PATTERN, seed: int = 0, **sizes: Any) -> Path:
    """Write a NemotronH in fp32 with its tokenizer; `sizes` replace those of HYBRID_SIZES, by their config names."""
    config = NemotronHConfig(**HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in pattern]} | sizes)
    return _save(folder, NemotronHForCausalLM, config, seed)


def save_llama(folder: Path, *, tied: bool = False, seed: int = 0, **sizes: Any) -> Path:
    """Write a Llama in fp32 with its tokenizer; `tied` shares the embedding with the output layer."""
    config = LlamaConfig(**LLAMA_SIZES | {"tie_word_embeddings": tied} | sizes)
    return _save(folder, LlamaForCausalLM, config, seed)


_DECODER = {key: value for key, value in LLAMA_SIZES.items() if key != "num_hidden_layers"} | {"num_hidden_layers": 4}
_WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

_DELTA_NETS = {
    "shared_expert_intermediate_size": 28,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "mlp_only_layers": [],
}
_LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_mtp_layers": 0,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "attn_layer_indices": [2],
}


def _without_head_dim(sizes: dict[str, Any]) -> dict[str, Any]:
    """For types whose heads share hidden_size out."""
    return {key: value for key, value in sizes.items() if key != "head_dim"}


FAMILY_SIZES: dict[str, list[dict[str, Any]]] = {
    "nemotron_h": [
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in PATTERN]},
        HYBRID_SIZES | {"layers_block_type": [LAYERS[kind] for kind in "ME*"], "moe_latent_size": 16},
        HYBRID_SIZES
        | {"layers_block_type": [LAYERS[kind] for kind in "M-*E"], "use_bias": True, "mlp_bias": True}
        | {"use_conv_bias": False, "tie_word_embeddings": True},
    ],
    "llama": [_DECODER | {"attention_bias": True, "mlp_bias": True}, _DECODER | {"tie_word_embeddings": True}],
    "mistral": [_DECODER | {"sliding_window": 8}, _DECODER | {"sliding_window": None}],
    # Its tokenizer adds a token of its own.
    "qwen2": [_DECODER | {"vocab_size": 304, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}],
    "qwen3": [_DECODER | {"tie_word_embeddings": True}],
    "qwen3_moe": [_DECODER | _EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True}],
    "qwen3_next": [_DECODER | _EXPERTS | _DELTA_NETS],
    "mixtral": [
        _DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2},
        _DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8, "tie_word_embeddings": True},
    ],
    "gpt_oss": [_DECODER | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24} | _WINDOWS],
    "deepseek_v3": [
        _without_head_dim(_DECODER) | _LATENT,
        _without_head_dim(_DECODER) | _LATENT | {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 1},
    ],
    "phi3": [_without_head_dim(_DECODER) | {"sliding_window": 8}],
    "nemotron": [_DECODER | {"attention_bias": True, "mlp_bias": True}],
    "olmo2": [_without_head_dim(_DECODER)],
    "bamba": [
        _without_head_dim(_DECODER) | _MAMBA,
        _without_head_dim(_DECODER) | _MAMBA | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mlp_bias": True},
    ],
    "gemma3_text": [
        _DECODER | _WINDOWS | {"query_pre_attn_scalar": 12},
        _DECODER | {"query_pre_attn_scalar": 12, "attention_bias": True, "tie_word_embeddings": False},
    ],
}
"""model_type -> tiny configs: what a family's conformance test runs on.  A family is not in before it has some here."""


def save_family(folder: Path, model_type: str, *, seed: int = 0, **sizes: Any) -> Path:
    """Write a tiny model of any type in fp32 with its tokenizer."""
    config = AutoConfig.for_model(model_type, **sizes)
    return _save(folder, type(AutoModelForCausalLM.from_config(config)), config, seed)


def padded_vocabulary(source: Path, folder: Path, rows: int) -> Path:
    """A copy of the checkpoint `source`, untied, whose vocabulary has more rows, of large numbers, than its tokenizer
    has tokens."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += rows
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "embed" in name or "lm_head" in name:
            tensors[name] = torch.cat([tensors[name], torch.full((rows, tensors[name].shape[1]), 3.0)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _save(folder: Path, architecture: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> Path:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = architecture(config)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(0.2 * noise)
            elif name.endswith("A_log"):
                parameter.copy_(0.5 * noise.abs())
            else:
                parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
