"""The pool of blocks that vLLM's own functions make for a config; benchmarks/engine.py runs this in .venv-vllm.

    .venv-vllm/bin/python benchmarks/vllm_pool.py < cases.json > pools.json

A case names a folder with a config.json, the context, whether prefixes are cached, the format of keys and values, the
tokens of a step and the bytes for the pool.  The engine's settings are built from the folder by vLLM; block sizes are
aligned for a GPU's attention (kernels of 16 tokens), layers are grouped, and the pool is made of the bytes by vLLM.
Imports nothing of Minitron.
"""

import contextlib
import json
import os
import sys
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.models import ModelRegistry
from vllm.platforms import current_platform
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec, get_kv_quant_mode

FULL, SLIDING, STATE = "full", "sliding", "state"
WORDS = {
    "attention": FULL,
    "full_attention": FULL,
    "sliding_attention": SLIDING,
    "mamba": STATE,
    "linear_attention": STATE,
    "mlp": None,
    "moe": None,
}
"""A config's word for a layer -> what it keeps."""


class GpuAttention:
    """What vLLM asks of an attention backend to align blocks: kernels that work on 16 tokens, as its CUDA ones do."""

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[MultipleOf]:
        return [MultipleOf(16)]

    @staticmethod
    def customize_spec(spec: FullAttentionSpec) -> FullAttentionSpec:
        return spec


def settings(case: dict[str, Any]) -> VllmConfig:
    """vLLM's settings for a case, with the block size and the overlapping steps that they have on a GPU."""
    found = EngineArgs(
        model=case["folder"],
        dtype="bfloat16",
        max_model_len=case["context"],
        max_num_seqs=case["batch"],
        max_num_batched_tokens=case["step"],
        enable_prefix_caching=case["prefix_caching"],
        mamba_ssm_cache_dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        trust_remote_code=False,
    ).create_engine_config()
    found.cache_config.block_size = 16
    found.cache_config.cache_dtype = case["kv"]
    found.cache_config.mamba_ssm_cache_dtype = "float32"
    found.cache_config.mamba_page_size_padded = None
    found.cache_config.kv_cache_layout = "LBNHC"
    found.scheduler_config.async_scheduling = True
    return found


def layer_kinds(config: VllmConfig) -> list[str]:
    """What each layer that keeps something keeps; raises KeyError for a word that is not in WORDS."""
    hf = config.model_config.hf_text_config
    words = getattr(hf, "layers_block_type", None) or getattr(hf, "layer_types", None)
    if words is None:
        words = ["sliding_attention" if getattr(hf, "sliding_window", None) else "attention"] * hf.num_hidden_layers
    return [kind for word in words if (kind := WORDS[word]) is not None]


def specs(config: VllmConfig) -> dict[str, Any]:
    """Layer -> what vLLM keeps for it."""
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    common = {
        "block_size": cache.block_size,
        "num_kv_heads": model.get_num_kv_heads(parallel),
        "head_size": model.get_head_size(),
        "dtype": model.dtype if cache.cache_dtype == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache.cache_dtype],
        "kv_quant_mode": get_kv_quant_mode(cache.cache_dtype),
    }
    made = {
        FULL: lambda: FullAttentionSpec(**common),
        SLIDING: lambda: SlidingWindowSpec(**common, sliding_window=model.hf_text_config.sliding_window),
        STATE: lambda: state(config),
    }
    return {f"layers.{place}.{kind}": made[kind]() for place, kind in enumerate(layer_kinds(config))}


def state(config: VllmConfig) -> MambaSpec:
    """What vLLM keeps for a Mamba layer, as the mixer of the model's own class says it."""
    made, _ = ModelRegistry.resolve_model_cls(config.model_config.architecture, model_config=config.model_config)
    (mixer,) = {
        one
        for one in vars(sys.modules[made.__module__]).values()
        if isinstance(one, type) and issubclass(one, MambaBase) and one is not MambaBase
    }

    class Mixer(mixer):
        """One without weights."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def get_state_shape(self) -> Any:
            return made.get_mamba_state_shape_from_config(config)

        def get_state_dtype(self) -> Any:
            return made.get_mamba_state_dtype_from_config(config)

    config.cache_config.mamba_block_size = config.cache_config.mamba_block_size or config.cache_config.block_size
    return Mixer().get_kv_cache_spec(config)


def pool(case: dict[str, Any]) -> dict[str, int]:
    """The pool, in the words of `minitron plan --engine vllm`."""
    config = settings(case)
    if config.model_config.is_hybrid:
        platform = type(current_platform)
        platform._find_non_ssm_backends = classmethod(lambda cls, config: [GpuAttention])
        platform._align_hybrid_block_size(config, GpuAttention)
    groups = kv_cache_utils.get_kv_cache_groups(config, specs(config))
    made = kv_cache_utils.get_kv_cache_config_from_groups(config, groups, case["room"])
    tokens, _ = kv_cache_utils.get_kv_cache_capacity(config, made)
    pages = {group.kv_cache_spec.page_size_bytes for group in groups}
    needed = sum(-(-g.kv_cache_spec.max_memory_usage_bytes(config) // g.kv_cache_spec.page_size_bytes) for g in groups)
    return {
        "block_size_tokens": config.cache_config.block_size,
        "page_bytes": max(pages),
        "groups": len(groups),
        "block_bytes": kv_cache_utils._pool_bytes_per_block(config, groups),
        "sequence_blocks": needed,
        "budget_blocks": made.num_blocks,
        "pool_tokens": tokens,
    }


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = [pool(case) for case in cases]
    json.dump(found, sys.stdout)
