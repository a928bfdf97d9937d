"""Cuts of tiny checkpoints: which sizes, random scores, units that contribute nothing, logits before and after."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from importance.score.calibrate import score_model
from importance.score.options import ScoringOptions
from minitron.cut.plan import Plan
from minitron.cut.scores import Scores
from minitron.cut.selection import axes_at, kept_rows, layer_of, pick, places
from minitron.model.dims import Word
from minitron.model.families import Rule
from minitron.model.loading import load_model
from minitron.model.spec import ModelSpec, read_spec

HYBRID_CUTS: dict[str, dict[str, int]] = {
    "hidden": {"hidden_size": 24},
    "ffn": {"intermediate_size": 40},
    "query_heads": {"num_attention_heads": 2},
    "kv_heads": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "head_dim": {"head_dim": 8},
    "mamba_heads": {"mamba_num_heads": 4},
    "mamba_head_dim": {"mamba_head_dim": 6},
    "ssm_state": {"ssm_state_size": 8},
    "experts": {"n_routed_experts": 4},
    "expert_ffn": {"moe_intermediate_size": 16},
    "shared_ffn": {"moe_shared_expert_intermediate_size": 24},
}
HYBRID_CUTS["all"] = {key: size for cuts in HYBRID_CUTS.values() for key, size in cuts.items()}
LATENT_CUTS = {"latent": {"moe_latent_size": 8}, "all": HYBRID_CUTS["all"] | {"moe_latent_size": 8}}
LLAMA_CUTS: dict[str, dict[str, int]] = {
    "hidden": {"hidden_size": 24},
    "ffn": {"intermediate_size": 40},
    "query_heads": {"num_attention_heads": 2},
    "kv_heads": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "all": {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1},
}
CASES = [
    *(("tiny_hybrid", name) for name in HYBRID_CUTS),
    *(("tiny_hybrid_latent", name) for name in LATENT_CUTS),
    *(("tiny_llama", name) for name in LLAMA_CUTS),
    *(("tiny_llama_tied", name) for name in ("hidden", "all")),
]
CUTS = {
    "tiny_hybrid": HYBRID_CUTS,
    "tiny_hybrid_latent": LATENT_CUTS,
    "tiny_llama": LLAMA_CUTS,
    "tiny_llama_tied": LLAMA_CUTS,
}


def random_scores(spec: ModelSpec, seed: int = 1) -> Scores:
    """Random importance for every axis of every layer, so that kept indices are scattered."""
    rng = np.random.default_rng(seed)
    importance: dict[Any, np.ndarray] = {("layer", None): rng.random(len(spec.layers))}
    for layer, kind in places(spec):
        # Sorted: a set has another order in every process, and the numbers are drawn in that order.
        for axis in sorted(axes_at(spec, kind) - {"kv_head", "mamba_head", "mamba_head_dim"}):
            sizes = spec.sizes_in(layer)
            shape = (sizes["expert"], sizes[axis]) if axis == "expert_ffn" else (sizes[axis],)
            importance[axis, layer] = rng.random(shape)
        if "mamba_head" in axes_at(spec, kind):
            importance["mamba_channel", layer] = rng.random((spec.sizes["mamba_head"], spec.sizes["mamba_head_dim"]))
    return Scores(importance, {}, spec.fingerprint, "0" * 64, {})


def logits(folder: Path) -> torch.Tensor:
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


def kill_units(folder: Path, spec: ModelSpec, plan: Plan) -> dict[str, np.ndarray]:
    """Make the units that the plan drops contribute nothing, in place; the energies that calibration would then see.

    The norms' epsilon goes to almost zero: against a mean over fewer channels a fixed one weighs differently, which is
    no fault of the cut."""
    config = json.loads((folder / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps")
        part |= {key: 1e-12 for key in names if key in part}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    energy: dict[str, np.ndarray] = {}
    own = {name: tensor for name, tensor in tensors.items() if spec.extra(name) is None}
    for name, tensor in own.items():
        rule, index = spec.find(name)
        layer = layer_of(spec, index)
        if layer is not None and layer not in plan.layers:
            # A number that multiplies the stream leaves it as it is.
            tensors[name] = torch.zeros_like(tensor) if rule.axes else torch.ones_like(tensor)
            continue
        alive = alive_entries(spec, plan, rule, index, tensor)
        tensors[name] = tensor * alive
        if rule.norm:
            energy[rule.pattern.format(index)] = alive.reshape(-1, tensor.shape[-1])[0].numpy().astype(np.float64)
        if rule.router and not rule.is_linear and rule.norm is None:
            # A zero router row still wins tokens; a bias keeps them away.
            tensors[name] = tensor - 1e4 * (1 - alive)
    if any(axis == "expert" for axis, _ in plan.keep):
        keep_tokens_away({name: tensors[name] for name in own}, spec, plan)
    norms = (rule for rules in spec.rules.values() for rule in rules if rule.dims == (Word("hidden"),))
    if any(rule.norm is not None and rule.norm.kind == "layer" for rule in norms):
        centre_the_stream({name: tensors[name] for name in own}, spec, plan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return energy


def alive_entries(spec: ModelSpec, plan: Plan, rule: Rule, index: dict[str, int], tensor: torch.Tensor) -> torch.Tensor:
    """1 where a tensor's entry belongs to units that stay, else 0; of a tensor of all experts each by its own."""
    layer = layer_of(spec, index)
    if rule.is_stacked:
        kept = pick(plan.keep, "expert", layer, None)
        rows = [
            alive_matrix(spec, plan, rule, layer, expert, tensor[expert]) * (kept is None or expert in kept)
            for expert in range(len(tensor))
        ]
        return torch.stack(rows)
    return alive_matrix(spec, plan, rule, layer, index.get("expert"), tensor)


def alive_matrix(
    spec: ModelSpec, plan: Plan, rule: Rule, layer: int | None, expert: int | None, tensor: torch.Tensor
) -> torch.Tensor:
    alive = torch.ones_like(tensor)
    for place, dim in enumerate(rule.matrix):
        mask = torch.zeros(tensor.shape[place])
        mask[torch.from_numpy(kept_rows(spec, plan.keep, dim, layer, expert))] = 1
        alive = alive * mask.reshape([-1 if other == place else 1 for other in range(tensor.ndim)])
    return alive


def centre_the_stream(tensors: dict[str, torch.Tensor], spec: ModelSpec, plan: Plan) -> None:
    """Where norms subtract a mean: what is written to the stream has a mean of zero over the channels that stay, and so
    over all of them.  A mean that is another one over fewer channels is no fault of the cut."""
    for name, tensor in tensors.items():
        rule, _ = spec.find(name)
        writes = rule.dims[-1] if rule.component == "embedding" else rule.writes or rule.dims[0]
        if rule.component in ("norm", "lm_head") or writes != Word("hidden"):
            continue
        kept = plan.keep.get(("hidden", None), np.arange(spec.sizes["hidden"]))
        place = tensor.ndim - 1 if rule.component == "embedding" else 0
        live = tensor.index_select(place, torch.from_numpy(np.asarray(kept)))
        tensor.index_copy_(place, torch.from_numpy(np.asarray(kept)), live - live.mean(place, keepdim=True))


def keep_tokens_away(tensors: dict[str, torch.Tensor], spec: ModelSpec, plan: Plan) -> None:
    """Where a router has no bias: one channel of the stream is the same for all tokens, for only the embedding writes
    to it, and by it the routers' rows of experts that go fall below all others."""
    channels = plan.keep.get(("hidden", None))
    channel = 0 if channels is None else int(channels[0])
    for name, tensor in tensors.items():
        rule, index = spec.find(name)
        layer = layer_of(spec, index)
        if rule.component == "embedding":
            tensor[:, channel] = 1.0
        elif rule.norm is not None and rule.dims == (Word("hidden"),):
            # A mean that is subtracted differs from token to token: there a bias says what the channel is.
            bias = tensors.get(f"{name.removesuffix('weight')}bias")
            tensor[channel] = (1.0 if bias is None else 0.0) - rule.norm.offset
            if bias is not None:
                bias[channel] = 1.0
        elif rule.component == "norm":
            continue
        elif layer is not None and not rule.router:
            for place, dim in enumerate(rule.dims):
                if (
                    dim == Word("hidden")
                    and (rule.writes in (None, dim))
                    and (rule.writes is None or dim is rule.writes)
                ):
                    tensor.select(place, channel).zero_()
        elif rule.router and rule.is_linear and layer in plan.layers:
            kept = pick(plan.keep, "expert", layer, None)
            tensor[:, channel] = -1e4
            tensor[kept, channel] = 0.0


def add_mtp(folder: Path, spec_sizes: dict[str, int]) -> None:
    """Append a multi-token-prediction block, which transformers does not build, by hand."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_nextn_predict_layers": 1, "mtp_layers_block_type": ["full_attention", "moe"]}
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for tensor in spec.expected():
        if tensor.name.startswith("mtp."):
            tensors[tensor.name] = torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def scored(folder: Path, estimator: str = "surgeon", refit: bool = True) -> tuple[ModelSpec, Scores]:
    spec = read_spec(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    blocks = np.random.default_rng(0).integers(0, 300, (16, 32))
    return spec, score_model(model, spec, blocks, ScoringOptions(estimator=estimator, refit=refit, layers="none"))
