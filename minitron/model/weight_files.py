"""Which files of a folder hold the model's weights, for all who read them; the choice is that of transformers.

    model.safetensors                     read first, whatever stands beside it
    model.safetensors.index.json          else the shards that it names
    config.json: transformers_weights     the file or index that it names, before both

What is passed over is told (`notes`); what is no such folder is said for what it is (`what_it_is`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_EXPLICIT: Final = "transformers_weights"
ADAPTER: Final = "adapter_config.json"

SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".npz")
"""How the names of files end that hold weights, or what a training left beside them."""

_OTHERS: Final = {
    r".+\.gguf": "GGUF weights",
    r"(pytorch_model|model).*\.bin": "PyTorch's pickled weights (.bin)",
    r"consolidated.*\.(pth|safetensors)": "weights in the format of their makers (consolidated)",
    r"(flax_model|tf_model).*": "weights of another framework (TensorFlow or Flax)",
    r".+\.(pt|pth|ckpt)": "PyTorch's pickled weights (.pt, .pth)",
    r".+\.bin": "PyTorch's pickled weights (.bin)",
    r".+\.(h5|msgpack|onnx|npz)": "weights of another framework (ONNX, TensorFlow, Flax or MLX)",
}
"""A regular expression of file names -> what they are; the first that is there is told."""

_UNREAD: Final = {
    r"model-\d+-of-\d+\.safetensors": f"but shards without their index; copy {INDEX} too",
    r".+\.safetensors": f"but safetensors files of other names; call the one to read {SINGLE}",
}
"""The same of safetensors files -> what they are and what to do."""


def first_file(names: Collection[str], explicit: str | None = None) -> str | None:
    """The file with which reading begins, of the files of those names: SINGLE, or an index of shards; None where there
    is none.  `explicit` is what config.json gives as transformers_weights."""
    return next((name for name in (explicit, SINGLE, INDEX) if name in names and name is not None), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder.  Raises MinitronError where it holds none, an adapter stands beside
    them, or an index names a file outside the folder."""
    refuse_adapter(folder)
    names, explicit = names_in(folder), explicit_file(folder)
    if explicit is not None and explicit not in names:
        raise MinitronError(
            f"{folder / 'config.json'} names {explicit} as its {_EXPLICIT}, which is not in the folder; copy it, or "
            "remove the key."
        )
    first = first_file(names, explicit)
    if first is None:
        raise MinitronError(f"{folder} holds neither {SINGLE} nor {INDEX}{what_it_is(folder)}.")
    if first.endswith(".json"):
        return [folder / name for name in shards(read_json(folder / first), folder / first)]
    return [folder / first]


def is_complete(folder: Path) -> bool:
    """Whether all the files that hold a folder's weights are there."""
    try:
        return all(file.is_file() for file in weight_files(folder))
    except MinitronError:
        return False


def names_in(folder: Path) -> list[str]:
    """The names of a folder's files and folders."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def shards(index: object, path: Path | str) -> list[str]:
    """The files that an index of shards names.  Raises MinitronError where it names none, or one outside the folder:
    an index comes from elsewhere, and must not make us read, and later write, beyond its folder."""
    document = index if isinstance(index, dict) else {}
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MinitronError(f"{path} has no weight_map; copy the checkpoint again.")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise MinitronError(f"{path} names {file!r}, a file outside the folder; do not use this checkpoint.")
    if not isinstance(document.get("metadata"), dict):
        raise MinitronError(f'{path} has no metadata, which transformers reads; add "metadata": {{}} to it.')
    return sorted(set(weight_map.values()))


def refuse_adapter(folder: Path) -> None:
    """Raise MinitronError where a folder with weights holds an adapter too: transformers would put it onto them where
    peft is installed, and pass it over where it is not."""
    names = names_in(folder)
    if ADAPTER in names and first_file(names) is not None:
        raise MinitronError(
            f"{folder} holds an adapter ({ADAPTER}) beside the model's weights; merge the two (merge_and_unload of "
            f"peft), or move {ADAPTER} elsewhere to use the weights alone."
        )


def notes(folder: Path) -> list[str]:
    """What is passed over in a checkpoint folder, a sentence each: other sets of weights than the one that is read."""
    names = names_in(folder)
    try:
        read = {file.name for file in weight_files(folder)}
    except MinitronError:
        return []
    first = first_file(names, explicit_file(folder))
    rest = [name for name in names if name.endswith((".safetensors", ".bin", ".gguf", ".pth")) and name not in read]
    sets = [_set(name) for name in rest if not name.startswith(("training_args", "optimizer", "scheduler", "rng_"))]
    if not sets:
        return []
    return [
        f"{folder} holds more than one set of weights: {first} is read, as transformers does, and "
        f"{', '.join(dict.fromkeys(sets))} passed over."
    ]


def _set(name: str) -> str:
    """model-00001-of-00006.safetensors -> model-*.safetensors."""
    return re.sub(r"-?\d+-of-\d+", "-*", name)


def what_it_is(folder: Path) -> str:
    """How a sentence ends on a folder that is no checkpoint with safetensors: what it is, and what to do."""
    names = names_in(folder)
    if ADAPTER in names:
        base = _base_model(folder / ADAPTER)
        return f": it is an adapter of {base}; merge it into that model (merge_and_unload of peft) and give the result"
    if folder.name.startswith("models--"):
        return (
            f": it is the hub's cache of {cached_name(folder)}; give that name, or one of the folders in its snapshots"
        )
    if folder.parent.name == "snapshots":
        name = cached_name(folder.parent.parent)
        return f": the hub's cache has only a part of {name} here; give that name, and the rest is fetched"
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        return (
            f": it is the hub's cache, of {len(cached)} models; give the name of one, such as "
            f"{cached_name(Path(cached[0]))}"
        )
    inside = [name for name in names if (folder / name / "config.json").is_file() and not name.startswith(".")]
    if inside:
        which = f"the model is in {folder / inside[0]}; give that" if len(inside) == 1 else "give one of its folders"
        return f": {which}" if len(inside) == 1 else f": it holds {', '.join(inside[:3])}; {which}"
    if first_file(names) is not None and "config.json" not in names:
        return "; copy it from the original model"
    return what_files_are(names)


def what_files_are(names: Iterable[str]) -> str:
    """The same from the names of files."""
    names = list(names)
    for pattern, what in _UNREAD.items():
        if any(re.fullmatch(pattern, name) and not name.startswith("consolidated") for name in names):
            return f", {what}"
    for pattern, what in _OTHERS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            return f", but {what}; give the same model in safetensors (save_pretrained of transformers writes them)"
    return "; give a Hugging Face checkpoint folder with safetensors weights"


def cached_name(place: Path) -> str:
    """models--org--name -> org/name."""
    return place.name.removeprefix("models--").replace("--", "/")


def written(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as an output has it: its weights are in SINGLE or behind INDEX whatever the source's were in, and
    the model's own code, which `auto_map` names, is not copied."""
    return {key: value for key, value in config.items() if key not in (_EXPLICIT, "auto_map")}


def explicit_file(folder: Path) -> str | None:
    """The file that config.json gives as transformers_weights; None where it gives none.

    Raises MinitronError where that is no name."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    name = config.get(_EXPLICIT) if isinstance(config, dict) else None
    if not isinstance(name, str | None):
        raise MinitronError(f"{path}: {_EXPLICIT} is {name!r:.40}; give the name of a file, or remove the key.")
    return name


def _base_model(path: Path) -> str:
    config = read_json(path)
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return str(name) if name else "another model"
