"""A model whose weights are read when they are needed and let go afterwards; what is not in memory is on meta."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from minitron.errors import MinitronError
from minitron.model.configs import CORRECT_IT, refusals, require_head, transformers_config
from minitron.model.dequantised import open_as_plain
from minitron.model.dims import Name
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import Held, held, module_name, tied_names
from minitron.model.tensors import Expected

EMBEDDING: Final = "embedding"
OUTPUT: Final = "output"
"""The final norm and the output layer."""

Part = int | str
"""What is in memory at one time: a layer by its number, EMBEDDING or OUTPUT."""


def layers_module(spec: ModelSpec) -> str:
    """The module that holds the layers in a row."""
    rule = spec.rules[spec.layers[0]][0]
    return Name((rule.memory or rule.name).partition(".{layer}")[0]).format({})


def final_norm_module(spec: ModelSpec) -> str:
    """The norm between the last layer and the output layer."""
    return module_name(next(rule for rule in spec.rules["model"] if rule.norm is not None), None)


class LayerwiseModel:
    """The model of a checkpoint folder, part by part in memory."""

    def __init__(self, folder: Path, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        """No weight is read yet.  A quantised checkpoint is read as if it were in bf16.  Raises MinitronError where the
        checkpoint is not one of `spec`."""
        spec, self.checkpoint = open_as_plain(folder, spec)
        self.spec, self.dtype, self.device = spec, dtype, device
        self.checkpoint.check(spec)
        require_head(spec, folder)
        config = transformers_config(folder, spec)
        with refusals(CORRECT_IT.format(folder)), torch.device("meta"), no_init_weights():
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        self.model.requires_grad_(False)
        self.model.eval()
        for name, tensor in self.model.state_dict().items():
            if tensor.dtype != self._dtype(name):
                self._put(name, tensor.to(self._dtype(name)))
        compute_buffers(self.model, self.device)
        self._parts = self._sort()

    def bytes_of(self, part: Part) -> int:
        """The memory that a part takes."""
        whole = self.model.state_dict(keep_vars=True)
        return sum(whole[name].numel() * self._dtype(name).itemsize for name in self._parts[part])

    @contextmanager
    def resident(self, *parts: Part) -> Iterator[None]:
        """Until the block ends the weights of these parts are in memory."""
        names = dict.fromkeys(name for part in parts for name in self._parts[part])
        try:
            for name in names:
                self._put(name, self._read(self._held_of(name)))
            yield
        finally:
            for name in names:
                self._put(name, self._get(name).to("meta"))
            give_back()

    def load(self, placed: Callable[[str], None], last: Iterable[str] = ()) -> None:
        """Put every weight in memory for good, one after the other; `placed` is told each one's name as soon as it is
        there, and may change it before the next one is read.  Of a layer's those named in `last` come at the end."""
        behind = frozenset(last)
        tied = tied_names(self.spec)
        for part in (EMBEDDING, *range(len(self.spec.layers)), OUTPUT):
            for name in sorted(self._parts[part].keys() - tied.keys(), key=lambda name: (name in behind, name)):
                self._put(name, self._read(self._parts[part][name]))
                placed(name)
            give_back()
        self.model.tie_weights()

    def _sort(self) -> dict[Part, dict[str, Held]]:
        """Part -> (name in memory -> what it is made of)."""
        self._stored = self.checkpoint.stored_names(self.spec)
        names = self.model.state_dict().keys()
        embedding = next(name for name, module in self.model.named_modules() if module is self._embeddings())
        parts: dict[Part, dict[str, Held]] = {EMBEDDING: {}, OUTPUT: {}}
        for one in held(self.spec):
            outside: Part = EMBEDDING if one.name.startswith(f"{embedding}.") else OUTPUT
            parts.setdefault(one.expected[0].index.get("layer", outside), {})[one.name] = one
        for name, source in tied_names(self.spec).items():
            parts[OUTPUT][name] = parts[EMBEDDING][source]
        if missing := names - {name for part in parts.values() for name in part}:
            raise MinitronError(
                f"{self.checkpoint.folder} holds no tensor for {sorted(missing)[0]}, so it cannot be loaded layer by "
                "layer; score it without --offload, and as a teacher keep it in bf16."
            )
        return parts

    def _held_of(self, name: str) -> Held:
        return next(part[name] for part in self._parts.values() if name in part)

    def _embeddings(self) -> nn.Module:
        module: nn.Module = self.model.get_input_embeddings()
        return module

    def _read(self, one: Held) -> Tensor:
        dtype = self._dtype(one.name)

        def stored(expected: Expected) -> Tensor:
            return self.checkpoint.tensor(self._stored[expected.name])

        if len(one.expected) == 1:
            return stored(one.expected[0]).to(self.device, dtype)
        return one.assemble(stored, dtype=dtype, device=self.device)

    def _dtype(self, name: str) -> torch.dtype:
        """As transformers loads it: some parameters stay in fp32 whatever is asked for."""
        kept: Iterable[str] = self.model._keep_in_fp32_modules_strict or ()
        return torch.float32 if any(word in name for word in kept) else self.dtype

    def _get(self, name: str) -> Tensor:
        module, attribute = self._place(name)
        found: Tensor = getattr(module, attribute)
        return found

    def _put(self, name: str, tensor: Tensor) -> None:
        module, attribute = self._place(name)
        if attribute in module._buffers:
            module._buffers[attribute] = tensor
        else:
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        return self.model.get_submodule(path), attribute


@torch.no_grad()
def compute_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Fill the buffers on meta that no checkpoint holds, such as rotary frequencies: they follow from the config, and
    the model's own initialisation knows how.  What a checkpoint holds is marked as transformers marks what it has
    loaded, so that the initialisation leaves it alone."""
    stored = model.state_dict(keep_vars=True)
    modules: dict[nn.Module, None] = {}
    for name, buffer in list(model.named_buffers()):
        if name not in stored and buffer.is_meta:
            path, _, attribute = name.rpartition(".")
            model.get_submodule(path)._buffers[attribute] = torch.empty_like(buffer, device=device)
            # A module may fill the buffers of those within it.
            while path:
                modules[model.get_submodule(path)] = None
                path = path.rpartition(".")[0]
    for tensor in stored.values():
        tensor._is_hf_initialized = True
    for module in modules:
        model._init_weights(module)


def give_back() -> None:
    """Return to the system what the C library keeps of freed memory, where it can (glibc): it is much after a layer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
