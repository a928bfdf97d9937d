"""transformers' config of a checkpoint folder: of the model that its weights are, as minitron.model.spec reads it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.foreign import told
from minitron.model.axes import AXES, VOCAB
from minitron.model.differing_layers import NemotronHPuzzleConfig
from minitron.model.families import Family, family_of
from minitron.model.families.nesting import TIES
from minitron.model.sources import config_path
from minitron.model.spec import ModelSpec, read_spec

CORRECT_IT: Final = "correct the config.json of {}"
"""What to do about a config that transformers refuses; the place is that of a folder."""

CHOOSE_OTHERS: Final = "choose other sizes"
"""The same for a config that was just written."""


def spec_if_known(folder: Path) -> ModelSpec | None:
    """The spec of the model in `folder`; None for a model type that no family reads."""
    config = read_json(config_path(folder))
    named = isinstance(config, dict) and isinstance(config.get("model_type"), str)
    return None if named and family_of(config) is None else read_spec(folder)


def transformers_config(folder: Path, spec: ModelSpec | None, advice: str = CORRECT_IT) -> PreTrainedConfig:
    """The config from which transformers builds the model of `folder`, whose spec is `spec`, if it has one: the file's
    own, save for what the spec knows better, such as an output layer that the weights say is not tied.  Of a model that
    also sees or hears it is the language model's.

    Raises MinitronError where transformers refuses the config, or builds no model of its family."""
    _refuse_foreign_code(folder)
    with refusals(advice.format(folder)):
        return _transformers_config(folder, spec)


def _refuse_foreign_code(folder: Path) -> None:
    """Raise MinitronError for a config.json by which a model's own code, or code that is fetched, would be run."""
    document = read_json(folder / "config.json")
    if not isinstance(document, dict):
        return  # refused where it is read
    if document.get("auto_map") and str(document.get("model_type")) not in CONFIG_MAPPING:
        raise MinitronError(
            f"{folder / 'config.json'} names Python code of the model's own (auto_map), which Minitron never runs, and "
            f"transformers has no model type {document.get('model_type')!r:.40} itself; choose a model that it has."
        )
    for key, value in _implementations(document):
        if "/" in value:
            raise MinitronError(
                f"{folder / 'config.json'} names code of the hub ({key} is {value!r:.80}), which Minitron never runs; "
                f"remove {key} from it."
            )


_IMPLEMENTATIONS: Final = frozenset({"attn_implementation", "experts_implementation"})
"""Keys of config.json whose value is the name of a kernel of transformers' own, or of one on the hub."""


def _implementations(value: Any) -> Iterator[tuple[str, str]]:
    """(key, name) of every kernel that a document of config.json names, however deep."""
    found = list(value.items()) if isinstance(value, dict) else [("", item) for item in value]
    for key, inside in found:
        named = inside.values() if isinstance(inside, dict) else [inside]
        if key.removeprefix("_") in _IMPLEMENTATIONS:
            yield from ((key, name) for name in named if isinstance(name, str))
        if isinstance(inside, dict | list):
            yield from _implementations(inside)


def _transformers_config(folder: Path, spec: ModelSpec | None) -> PreTrainedConfig:
    # AutoConfig would read a file of the whole model, or of one whose layers are alike.
    own = spec is not None and (spec.is_inside or bool(spec.family.blocks))
    if spec is None or (not own and dict(spec.config) == read_json(folder / "config.json")):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config
    found = config_of(spec)
    found.name_or_path = str(folder)
    return found


def config_of(spec: ModelSpec) -> PreTrainedConfig:
    """transformers' config of the language model that a spec describes."""
    if spec.is_inside:
        return config_inside(spec.family, spec.config)
    # A config of layers that differ may bear the name of the family in which they are alike.
    config_class = NemotronHPuzzleConfig if spec.family.blocks else CONFIG_MAPPING[spec.config["model_type"]]
    found: PreTrainedConfig = config_class.from_dict(as_transformers_reads(spec.config))
    return found


@contextmanager
def refusals(advice: str) -> Iterator[None]:
    """Turn what transformers raises for a config that it cannot build a model of into a MinitronError that ends with
    `advice`."""
    with told("transformers cannot build a model of these sizes and settings", advice):
        yield


def config_inside(family: Family, document: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of the language model in a config.json document of a larger model, of the class of its own."""
    said, nesting = family.text(document), family.nesting
    assert nesting is not None  # it is inside
    whole: PreTrainedConfig = CONFIG_MAPPING[document["model_type"]].from_dict(as_transformers_reads(document))
    found = whole.get_text_config()
    if found.model_type != nesting.model_type:
        own = {key: value for key, value in found.to_dict().items() if key not in nesting.ignored}
        # Positions in time, height and width, which are one for text, are no matter of the language model's own class.
        rotary = own.get("rope_parameters") or {}
        own["rope_parameters"] = {key: value for key, value in rotary.items() if not key.startswith("mrope")}
        found = CONFIG_MAPPING[nesting.model_type].from_dict(own | {"model_type": nesting.model_type})
    if TIES in said:
        found.tie_word_embeddings = said[TIES]
    return found


def whole_model(folder: Path) -> PreTrainedModel:
    """All of the model in `folder` on the meta device, what sees and hears too, of the class that config.json names."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    with torch.device("meta"), no_init_weights():
        if named and named[0] is not None:
            return named[0]._from_config(config)
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def as_transformers_reads(config: Mapping[str, Any]) -> Any:
    """A document of config.json with the objects in it that stand for numbers as numbers."""
    return json.loads(json.dumps(dict(config)), object_hook=_number)


def _number(found: dict[str, Any]) -> Any:
    """An object of config.json as transformers reads it: `{"__float__": "Infinity"}` is a number."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def require_head(spec: ModelSpec, folder: Path) -> None:
    """Raise MinitronError for a model without an output layer: nothing that compares predictions can be done to it."""
    if not spec.has_head:
        named = ", ".join(spec.architectures)
        raise MinitronError(
            f"{folder} holds a {named}, which has no output layer over the vocabulary; Minitron inspects and plans such"
            " models, but scores, cuts, distils and evaluates language models alone; give the one it was made from."
        )


def vocabulary_of(folder: Path) -> int | None:
    """How many tokens the config.json in `folder` says that it knows, of whatever type; None where it does not."""
    document = read_json(folder / "config.json")
    family = family_of(document)
    size = (document if family is None else family.text(document)).get(AXES[VOCAB].keys[0])
    return size if isinstance(size, int) else None
