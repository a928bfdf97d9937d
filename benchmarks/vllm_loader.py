"""What vLLM's own loader makes of checkpoint folders; benchmarks/loading.py runs this in .venv-vllm.

    .venv-vllm/bin/python benchmarks/vllm_loader.py FOLDER ... > read.json

vLLM builds the model of each folder with its quantisation config, and its load_weights reads every tensor of the files
into it.  Told of each: the config's class, how many linears and experts have which method, the tensors read, the
parameters that were not filled to the last number, and the copies that changed a dtype or a shape.  No kernel runs:
those that the CPU build has not got are replaced by nothing, and what it refuses for want of them is let through.
Imports nothing of Minitron.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_model_parallel,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe import config as moe_config
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_moe
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16 as wna16
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype


class Copies(TorchDispatchMode):
    """Numbers that were written to each storage, and copies that changed what they copied."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Counter[int] = Counter()
        self.changed: list[str] = []
        self.reading = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.copy_.default:
            into, what = args[:2]
            self.written[into.untyped_storage()._cdata] += into.numel()
            # Scales of keys and values vLLM reads in the model's dtype.
            narrower = torch.promote_types(what.dtype, into.dtype) != into.dtype
            if (narrower and not self.reading.endswith(("k_scale", "v_scale"))) or into.numel() != what.numel():
                told = [f"{one.dtype} {list(one.shape)}".removeprefix("torch.") for one in (what, into)]
                self.changed.append(f"{self.reading}: {' as '.join(told)}")
        return function(*args, **(kwargs or {}))


def tensors(folder: Path, copies: Copies) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in list(file.keys()):
                copies.reading = name
                yield name, file.get_tensor(name)


def made_by(module: torch.nn.Module) -> Any:
    """The method by which vLLM makes a module's weights; None for none."""
    return getattr(module, "quant_method", None)


def settings(folder: Path) -> VllmConfig:
    """vLLM's settings for a folder."""
    return EngineArgs(
        model=str(folder),
        dtype="bfloat16",
        max_model_len=512,
        skip_tokenizer_init=True,
        enforce_eager=True,
        # Of a folder to which benchmarks/served_models.py added the class of its config.
        trust_remote_code=any(folder.glob("configuration_*.py")),
    ).create_engine_config()


def without_kernels() -> None:
    """Let models be built whose kernels this build has not got."""
    kernel = SimpleNamespace(input_quant_key=lambda: None)
    modelopt.select_linear_kernel = lambda *rest, **more: kernel
    wna16.choose_mp_linear_kernel = lambda settings: lambda *rest, **more: kernel
    for scheme in ("w8a8_int8", "w8a8_fp8", "wna16"):
        importlib.import_module(f"{compressed_tensors_moe.__name__}.compressed_tensors_moe_{scheme}")
    for module in [module for name, module in sys.modules.items() if name.startswith("vllm.model_executor.layers")]:
        for name in dir(module):
            if name.startswith("select_") and name.endswith("_moe_backend"):
                setattr(module, name, lambda *rest, **more: (None, None))
    platform = moe_config.current_platform
    moe_config.current_platform = SimpleNamespace(is_cuda_alike=lambda: True, fp8_dtype=platform.fp8_dtype)


@contextlib.contextmanager
def groups() -> Iterator[None]:
    """The process groups of one process, which depend on whether the model is a mixture."""
    if not torch.distributed.is_initialized():
        with tempfile.NamedTemporaryFile(delete=False) as rendezvous:
            init_distributed_environment(1, 0, f"file://{rendezvous.name}-groups", 0, "gloo")
    ensure_model_parallel_initialized(1, 1)
    try:
        yield
    finally:
        destroy_model_parallel()


def read(folder: Path) -> dict[str, Any]:
    """What vLLM makes of a folder."""
    config, copies = settings(folder), Copies()
    with set_current_vllm_config(config), torch.inference_mode(), set_default_torch_dtype(torch.bfloat16), groups():
        model = initialize_model(vllm_config=config)
        parameters = dict(model.named_parameters())
        with copies:
            model.load_weights(tensors(folder, copies))
    attention = [name for name, one in model.named_modules() if isinstance(made_by(one), BaseKVCacheMethod)]
    weights_alone = getattr(config.quant_config, "quant_method", "") == "W4A16_NVFP4"
    unfilled = []
    for name, one in parameters.items():
        written, (module, _, last) = copies.written[one.untyped_storage()._cdata], name.rpartition(".")
        # Scales of keys and values need not be there, and of weights alone vLLM drops the scales of inputs.
        if not written and (module in attention or (weights_alone and last.endswith("input_scale"))):
            continue
        # Several times: of linears that are joined each writes the one shape, and some numbers are made of others.
        if not written or written % one.numel():
            unfilled.append(f"{name}: {written:,} of {one.numel():,}")
    methods: Counter[str] = Counter()
    for module in model.modules():
        method = made_by(module)
        if isinstance(method, QuantizeMethodBase) and not isinstance(method, BaseKVCacheMethod):
            methods[type(getattr(module, "scheme", None) or method).__name__] += 1
    return {
        "config": type(config.quant_config).__name__ if config.quant_config else "",
        "model": type(model).__name__,
        "methods": dict(sorted(methods.items())),
        "tensors": sum(len(safe_open(path, "pt").keys()) for path in folder.glob("*.safetensors")),
        "parameters": len(parameters),
        "unfilled": unfilled,
        "changed": copies.changed,
    }


def main() -> None:
    """Read all folders."""
    without_kernels()
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for folder in sys.argv[1:]:
            try:
                found[folder] = read(Path(folder))
            except (ValueError, RuntimeError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
                found[folder] = {"error": f"{type(error).__name__}: {error}"}
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
