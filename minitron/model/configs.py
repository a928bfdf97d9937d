"""transformers' config of a checkpoint folder: of the model that its weights are, as minitron.model.spec reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.model.families import FAMILIES
from minitron.model.sources import config_path
from minitron.model.spec import ModelSpec, read_spec


def spec_if_known(folder: Path) -> ModelSpec | None:
    """The spec of the model in `folder`; None for a model type that no family reads."""
    config = read_json(config_path(folder))
    known = isinstance(config, dict) and config.get("model_type") in FAMILIES
    return read_spec(folder) if known else None


def transformers_config(folder: Path, spec: ModelSpec | None) -> PreTrainedConfig:
    """The config from which transformers builds the model of `folder`, whose spec is `spec`, if it has one: the file's
    own, save for what the spec knows better, such as an output layer that the weights say is not tied."""
    if spec is None or dict(spec.config) == read_json(folder / "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
        return config
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[spec.config["model_type"]]
    return config_class.from_dict(as_transformers_reads(spec.config))


def as_transformers_reads(config: Mapping[str, Any]) -> Any:
    """A document of config.json with the objects in it that stand for numbers as numbers."""
    return json.loads(json.dumps(dict(config)), object_hook=_number)


def _number(found: dict[str, Any]) -> Any:
    """An object of config.json as transformers reads it: `{"__float__": "Infinity"}` is a number."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def require_head(spec: ModelSpec, folder: Path) -> None:
    """Raise MinitronError for a model without an output layer: nothing that compares predictions can be done to it."""
    if not spec.has_head:
        named = ", ".join(map(str, spec.config["architectures"]))
        raise MinitronError(
            f"{folder} holds a {named}, which has no output layer over the vocabulary; Minitron inspects and plans such"
            " models, but scores, cuts, distils and evaluates language models alone; give the one it was made from."
        )
