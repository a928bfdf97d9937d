"""A checkpoint folder as llama.cpp's converter is to see it: the weights linked, config.json in the dialect that it
reads, and nothing that could be run.

The converter asks transformers for the config, which fills in what a config leaves out, the routing of experts among
it: a dense Nemotron-H then passes for a mixture.  A config that says no `model_type` it reads as it stands."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from minitron.cut.companions import companions
from minitron.files import read_json, write_json
from minitron.locks import resolved
from minitron.model.families.nemotron_h import EXPERT_KEYS
from minitron.model.spec import ModelSpec
from minitron.model.weight_files import INDEX, SINGLE, weight_files

_CODE: Final = ("auto_map", "trust_remote_code")
"""Keys that name code to be run."""

_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_MORE: Final = ("tokenizer.model", "added_tokens.json", "chat_template.jinja", "generation_config.json")

EXPERTS: Final = "moe"


def _same(spec: ModelSpec, config: dict[str, Any]) -> dict[str, Any]:
    return config


def _nemotron_h(spec: ModelSpec, config: dict[str, Any]) -> dict[str, Any]:
    """The layers as a string of letters, every size written out, what it says of experts where there are some alone,
    and no `model_type`."""
    routed = EXPERTS in spec.layers
    dropped = {"model_type", "layers_block_type", "layer_types", *(() if routed else EXPERT_KEYS)}
    named = {**spec.named_sizes, **(_ROUTING if routed else {}), **config}
    return {
        **{key: value for key, value in named.items() if key not in dropped},
        "hybrid_override_pattern": spec.letters,
        "num_hidden_layers": len(spec.layers),
        # Of a Mamba head, which is held against the width of all of them and taken for 64 where it is not said so.
        "d_head": spec.sizes["mamba_head_dim"],
    }


_ROUTING: Final = {
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
"""What transformers takes where the config of a mixture is silent."""

_DIALECTS: Final[dict[str, Callable[[ModelSpec, dict[str, Any]], dict[str, Any]]]] = {"nemotron_h": _nemotron_h}
"""family -> what its config becomes, where the converter needs another than transformers has."""


def stage(model: Path, spec: ModelSpec, folder: Path) -> None:
    """Fill `folder` with what the converter reads of the checkpoint `model`."""
    folder.mkdir()
    config = _without_code(copy.deepcopy(dict(spec.config)))
    write_json(folder / "config.json", _DIALECTS.get(spec.family.name, _same)(spec, config))
    files = weight_files(model)
    # Under the names that the converter looks for, whatever config.json calls them.
    names = [SINGLE] if len(files) == 1 else [file.name for file in files]
    for name, file in zip(names, files, strict=True):
        (folder / name).symlink_to(resolved(file))
    if len(files) > 1:
        write_json(folder / INDEX, read_json(model / INDEX))
    for file in companions(model):
        if file.name in (*_TOKENIZER, *_MORE) and file.suffix == ".json" and file.name != "tokenizer.json":
            document = read_json(file)
            write_json(folder / file.name, _without_code(document) if isinstance(document, dict) else document)
        elif file.name in (*_TOKENIZER, *_MORE):
            shutil.copyfile(file, folder / file.name)


def _without_code(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in _CODE}
