"""What a cache in fewer bits costs: a model that decodes, with keys, values and states rounded as they are stored.

Keys and values are rounded once, when a token adds them, after their rotation.  A recurrent state is written again at
every token, and rounded each time, while the output of that token is made of the state before it is stored: as in the
kernels of engines.  A model is therefore decoded token by token where states are rounded, its first token apart; that
is the hardest case, for engines read a prompt in one scan and store the state once at its end.  Where keys and values
alone are rounded one pass over a sequence gives the same numbers.

The model that it is compared with runs in the same way, with its cache as it is and states in fp32.  So the difference
is that of the rounding alone, and none is exactly none.

Shapes: B sequences a batch, T tokens a sequence, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from minitron.errors import MinitronError
from minitron.measure.cache_options import CacheOptions
from minitron.measure.quality import Quality, Teacher, measure_quality
from minitron.memory.formats import FORMATS
from minitron.model.backbone import backbone
from minitron.model.checkpoint import Checkpoint
from minitron.model.dims import numel
from minitron.model.output_layer import as_read
from minitron.model.spec import ModelSpec
from minitron.progress import Advance
from minitron.quantise.rows import How, rounded

AT_ONCE: Final = 32
"""Sequences that are decoded at a time, at least: a step of one token takes hardly longer for many."""

_STATES: Final = "recurrent_states"
"""Where transformers' caches of linear attention have them."""


@dataclass(frozen=True)
class CacheQuality:
    """What a cache in other formats does to a model."""

    kv: str | None
    ssm_state: str | None

    rounding: How
    """Of states."""

    quality: Quality
    """The KL divergence and the agreement are those with the same model and its cache as it is."""

    plain: Quality
    """Of the same model, read in the same way with its cache as it is."""

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over that of the cache as it is."""
        return self.quality.perplexity / self.plain.perplexity

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return {
            "kv": self.kv,
            "ssm_state": self.ssm_state,
            "rounding": self.rounding,
            "kl": self.quality.kl_to_teacher,
            "top1_agreement": self.quality.top1_agreement,
            "perplexity": self.quality.perplexity,
            "plain_perplexity": self.plain.perplexity,
            "perplexity_ratio": self.perplexity_ratio,
        }


@dataclass
class Simulated:
    """A model that is read with a cache in the formats of `options`."""

    spec: ModelSpec
    scales: Mapping[int, tuple[float, float]]
    """Layer -> the scales of its keys and of its values, as the checkpoint has them; 1 for the others."""

    options: CacheOptions
    stepwise: bool
    """Whether token by token."""

    noise: torch.Generator | None = None
    """What stochastic rounding of states draws from."""

    _numbers: dict[int, int] = field(default_factory=dict, repr=False)
    """Layer -> keys and values that a token adds there, by the family's table."""

    def read(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """[B, T, H]: what the output layer reads, for the token ids [B, T]."""
        cache, module = _RoundedCache(self, model), backbone(model)
        named = (
            "past_key_values" if "past_key_values" in inspect.signature(module.forward).parameters else "cache_params"
        )
        ids = ids.to(model.device)
        found = []
        for part in torch.split(ids, 1 if self.stepwise else ids.shape[1], dim=1):
            try:
                found.append(module(input_ids=part, use_cache=True, **{named: cache}).last_hidden_state)
            except ValueError as error:
                # A hybrid without an attention layer has nothing that counts the tokens of the cache.
                raise MinitronError(f"transformers cannot run {model.name_or_path} with its cache ({error}).") from None
            self._store_states(cache)
        return as_read(torch.cat(found, 1), model.get_output_embeddings().weight)

    def keys_and_values(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of new tokens [B, heads, T, width] as the cache keeps them."""
        if self.options.kv is None:
            return keys, values
        self._require_numbers(layer, keys.shape[1] * keys.shape[-1] + values.shape[1] * values.shape[-1])
        scales = self.scales.get(layer, (1.0, 1.0))
        form = FORMATS[self.options.kv]
        found = (
            _finite(rounded(one, form, "kv", scale=scale), form.name, "--kv")
            for one, scale in zip((keys, values), scales, strict=True)
        )
        new_keys, new_values = (new.to(old.dtype) for new, old in zip(found, (keys, values), strict=True))
        return new_keys, new_values

    def _require_numbers(self, layer: int, found: int) -> None:
        """Raise MinitronError where transformers caches something else than engines do, of which rounding says nothing
        of theirs: keys and values of all heads instead of the latent that they are made of."""
        if layer not in self._numbers:
            kind = self.spec.layers[layer]
            cache = self.spec.cache(kind)
            dim = None if cache is None else cache.dim("keys_values")
            self._numbers[layer] = 0 if dim is None else int(numel(dim, self.spec.at(kind, self.spec.sizes)))
        if found != self._numbers[layer]:
            raise MinitronError(
                f"{self.spec.family.name} models cannot be read with --kv: transformers caches {found:,} numbers of a "
                f"token in layer {layer}, where engines keep {self._numbers[layer]:,}."
            )

    def _store_states(self, cache: DynamicCache) -> None:
        """Round every recurrent state; one that transformers keeps in fewer bits is in fp32 from then on."""
        for layer in cache.layers:
            states: dict[int, Tensor | None] = getattr(layer, _STATES, {})
            for place, state in states.items():
                if state is not None:
                    kept = state if self.options.ssm_state is None else self._rounded(state)
                    states[place] = kept.float()

    def _rounded(self, state: Tensor) -> Tensor:
        form = FORMATS[self.options.ssm_state or "fp32"]
        return _finite(rounded(state, form, "state", noise=self.noise), form.name, "--ssm-state")


def _finite(numbers: Tensor, form: str, flag: str) -> Tensor:
    """Raise MinitronError where a number is larger than the format holds: an engine would go on with infinities."""
    if not bool(numbers.isfinite().all()):
        raise MinitronError(f"numbers of this cache are larger than {form} holds; choose {flag} bf16.")
    return numbers


class _RoundedCache(DynamicCache):  # type: ignore[misc]
    """A cache that stores keys and values as `simulated` says."""

    def __init__(self, simulated: Simulated, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self._simulated = simulated

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._simulated.keys_and_values(layer_idx, key_states, value_states)
        found: tuple[Tensor, Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        return found


def require_kept(folder: Path, spec: ModelSpec | None, options: CacheOptions) -> ModelSpec:
    """The model's description; raises MinitronError where there is none, or nothing that a format is asked for."""
    if spec is None:
        raise MinitronError(f"{folder}: Minitron has no table of such models, which --kv and --ssm-state need.")
    caches = [cache for kind in dict.fromkeys(spec.layers) if (cache := spec.cache(kind)) is not None]
    asked = {"--kv": (options.kv, "keys_values", "keys and values")}
    asked["--ssm-state"] = (options.ssm_state, "state", "recurrent states")
    for flag, (form, part, called) in asked.items():
        if form is not None and not any(cache.dim(part) for cache in caches):
            raise MinitronError(f"{folder} keeps no {called}; leave out {flag}.")
    return spec


def checkpoint_scales(folder: Path) -> dict[int, tuple[float, float]]:
    """Layer -> the scales of keys and of values in a folder's files; empty where there are none."""
    checkpoint = Checkpoint(folder)
    found: dict[int, dict[str, float]] = {}
    for name in checkpoint.headers:
        part = name.rpartition(".")[2]
        if part in ("k_scale", "v_scale"):
            layer = next(int(word) for word in name.split(".") if word.isdigit())
            found.setdefault(layer, {})[part] = float(checkpoint.tensor(name).float().reshape(-1)[0])
    return {layer: (scales.get("k_scale", 1.0), scales.get("v_scale", 1.0)) for layer, scales in found.items()}


@torch.no_grad()
def measure_caches(
    model: PreTrainedModel,
    folder: Path,
    spec: ModelSpec,
    blocks: NDArray[np.int64],
    options: CacheOptions,
    *,
    batch_size: int = 1,
    advance: Advance | None = None,
) -> Iterator[CacheQuality]:
    """The model with its cache in the formats of `options`, in every way of rounding, on the sequences [S, T].

    `advance` is told of the tokens that were read, of which there are S x T for the cache as it is and for every way
    of rounding."""
    stepwise = options.ssm_state is not None
    batch = max(batch_size, AT_ONCE) if stepwise else batch_size
    scales = checkpoint_scales(folder) if options.kv is not None else {}
    plain = Simulated(spec, scales, CacheOptions(), stepwise)
    teacher = Teacher(model, read=plain.read)
    before = measure_quality(
        model, blocks, batch_size=batch, advance=advance, read=lambda _, ids: teacher.hidden_states(ids)
    )
    for how in options.ways:
        noise = torch.Generator().manual_seed(options.seed) if how == "stochastic" else None
        simulated = Simulated(spec, scales, options, stepwise, noise)
        quality = measure_quality(
            model, blocks, teacher=teacher, batch_size=batch, advance=advance, read=simulated.read
        )
        yield CacheQuality(options.kv, options.ssm_state, how, quality, before)
