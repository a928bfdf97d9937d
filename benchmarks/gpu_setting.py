"""What the parts of gpu.py share: where they run, how they time, and the rows that they hand on."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Row:
    """One number, or the reason why there is none."""

    what: str
    value: float | int | str | None
    unit: str = ""
    """`s`, `B`, `tokens/s`, ...; empty for a ratio or a word."""

    note: str = ""


@dataclass(frozen=True)
class Setting:
    """Where the parts run, and at which sizes."""

    device: str
    tiny: bool
    work: Path
    """A folder for checkpoints, which is removed at the end."""

    tests: Path
    """The folder of the `gpu` tests."""

    @property
    def place(self) -> torch.device:
        """The device."""
        import torch

        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether torch.cuda measures here."""
        return self.device.startswith("cuda")


def clock(place: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if place.type == "cuda":
        import torch

        torch.cuda.synchronize(place)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any], place: torch.device, repeats: int) -> float:
    """Median of the repeats, after one that does not count."""
    found = []
    for _ in range(repeats + 1):
        started = clock(place)
        work()
        found.append(clock(place) - started)
    return median(found[1:])


def allocated(place: torch.device) -> int:
    """Bytes that torch.cuda holds for tensors that are alive; 0 on a CPU."""
    if place.type != "cuda":
        return 0
    import torch

    gc.collect()
    torch.cuda.synchronize(place)
    return torch.cuda.memory_allocated(place)


def peak_of(work: Callable[[], Any], place: torch.device) -> int | None:
    """Bytes at the highest point of `work` above what there was before, as torch.cuda counts; None on a CPU."""
    if place.type != "cuda":
        work()
        return None
    import torch

    before = allocated(place)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(place)
    work()
    torch.cuda.synchronize(place)
    return torch.cuda.max_memory_allocated(place) - before


def bytes_row(what: str, value: int | None, note: str = "") -> Row:
    """A row of memory that only torch.cuda can count."""
    return Row(what, value, "B", note) if value is not None else Row(what, None, "B", NEEDS_GPU)


def forget(place: torch.device) -> None:
    """Give back the memory of tensors that nothing refers to any longer."""
    gc.collect()
    if place.type == "cuda":
        import torch

        torch.cuda.empty_cache()


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A dense model, but for its sizes."""

HYBRID: dict[str, Any] = {
    "model_type": "nemotron_h",
    "architectures": ["NemotronHForCausalLM"],
    "conv_kernel": 4,
    "chunk_size": 128,
    "use_conv_bias": True,
    "use_bias": False,
    "mlp_bias": False,
    "attention_bias": False,
    "mamba_proj_bias": False,
    "tie_word_embeddings": False,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "dtype": "bfloat16",
    "max_position_embeddings": 131_072,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""A hybrid, but for its sizes."""


def llama(hidden: int, ffn: int, layers: int, heads: tuple[int, int, int], vocab: int) -> dict[str, Any]:
    """A config; `heads` are those of queries, of keys and values, and the width of each."""
    queries, keys, width = heads
    return LLAMA | {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "head_dim": width,
        "vocab_size": vocab,
    }


def hybrid(
    pattern: str, hidden: int, ffn: int, mamba: tuple[int, int, int, int], heads: tuple[int, int, int], vocab: int
) -> dict[str, Any]:
    """A config; `mamba` are heads, their width, groups and states, `heads` as for `llama`."""
    mamba_heads, mamba_width, groups, states = mamba
    queries, keys, width = heads
    return HYBRID | {
        "hybrid_override_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "mamba_num_heads": mamba_heads,
        "mamba_head_dim": mamba_width,
        "n_groups": groups,
        "ssm_state_size": states,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "head_dim": width,
        "vocab_size": vocab,
    }


def built(folder: Path, config: dict[str, Any], place: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights, made on the device, in eval mode; its config.json lies in `folder`."""
    import torch

    from minitron.files import write_json
    from minitron.model.loading import build_model

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    torch.manual_seed(0)
    with place:
        model = build_model(folder, dtype=dtype)
    return model.to(place).requires_grad_(False).eval()
