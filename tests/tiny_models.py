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
from family_sizes.base import HYBRID_SIZES, LAYERS, LLAMA_SIZES, PATTERN, VOCAB_SIZE
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


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


def save_family(
    folder: Path, model_type: str, *, seed: int = 0, save_original_format: bool = True, **sizes: Any
) -> Path:
    """Write a tiny model of any type in fp32 with its tokenizer; without `save_original_format` in the format that
    transformers holds in memory, as some models are released."""
    config = AutoConfig.for_model(model_type, **sizes)
    auto = AutoModelForImageTextToText if "vision_config" in sizes else AutoModelForCausalLM
    return _save(folder, type(auto.from_config(config)), config, seed, save_original_format)


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


def _save(
    folder: Path, architecture: type[PreTrainedModel], config: PreTrainedConfig, seed: int, original: bool = True
) -> Path:
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
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
            elif name.endswith("layer_scalar"):
                buffer.add_(0.1 * torch.randn(buffer.shape))
    model.save_pretrained(folder, save_original_format=original)
    tokenizer().save_pretrained(folder)
    return folder
