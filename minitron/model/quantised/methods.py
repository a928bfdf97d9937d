"""quant_method -> how its config is read; and the quantisation of a config or a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.files import read_json
from minitron.model.quantised import floats, integers
from minitron.model.quantised.quantisation import CAST, KEYS, Quantisation, Section, section_of

METHODS: Final[Mapping[str, Callable[[Section], Quantisation]]] = {
    "auto-round": integers.read_auto_round,
    "awq": integers.read_awq,
    "bitnet": integers.read_bitnet,
    "bitsandbytes": integers.read_bitsandbytes,
    CAST: floats.read_cast,
    "compressed-tensors": floats.read_compressed_tensors,
    "eetq": integers.read_eetq,
    "fbgemm-fp8": floats.read_fbgemm,
    "fp8": floats.read_fp8,
    "gptq": integers.read_gptq,
    "hqq": integers.read_hqq,
    "modelopt": floats.read_modelopt,
    "mxfp4": floats.read_mxfp4,
    "mxfp8": floats.read_mxfp8,
    "quanto": integers.read_quanto,
    "quark": floats.read_quark,
    "torchao": integers.read_torchao,
}
"""The methods whose configs Minitron reads."""

_ALIASES: Final = {
    "intel/auto-round": "auto-round",
    "awq-marlin": "awq",
    "gptq-marlin": "gptq",
    "gptqmodel": "gptq",
    "bits-and-bytes": "bitsandbytes",
    "bnb": "bitsandbytes",
    "gpt-oss-mxfp4": "mxfp4",
    "modelopt-fp4": "modelopt",
    "modelopt-fp8": "modelopt",
    "modelopt-mixed": "modelopt",
}

_SIGNS: Final = {
    "config_groups": "compressed-tensors",
    "quant_algo": "modelopt",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "w_bit": "awq",
    "global_quant_config": "quark",
    "quant_type": "torchao",
    "desc_act": "gptq",
    "zero_point": "awq",
}
"""A key -> the method whose configs have it, for a config that names none."""

_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "hf_quant_config.json": ("modelopt", "quantization"),
    "quantize_config.json": ("gptq", ""),
    "quant_config.json": ("awq", ""),
}
"""A file beside config.json in which some checkpoints say how they are quantised -> (the method, the key of the object
that says it, empty for the whole file)."""

COMPANIONS: Final = tuple(_FILES)


def quantisation_of(config: Mapping[str, Any]) -> Quantisation | None:
    """What a config says of its quantisation; None for a model in plain numbers."""
    section = section_of(config)
    if section is None or (section.get("quant_method") is None and set(section) <= {"sparsity_config"}):
        return None
    named = str(section.get("quant_method") or "").lower().replace("_", "-")
    named = _ALIASES.get(named, named)
    if not named:
        named = next((method for key, method in _SIGNS.items() if key in section), "")
    if named in METHODS:
        found = METHODS[named](section)
        # A format with nothing in it, such as one for sparsity alone.
        return found if found.schemes or found.doubts else None
    return integers.read_other(section, named or "the method, which config.json does not name")


def with_companions(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config in `path` with what the files beside it say of its quantisation, where it does not say it itself."""
    if path.name != "config.json" or section_of(config) is not None:
        return config
    for name, (method, key) in _FILES.items():
        file = path.with_name(name)
        if file.is_file():
            whole = read_json(file)
            found = (whole.get(key) or {}) if key and isinstance(whole, dict) else whole
            if not isinstance(found, dict):
                where = f" under {key}" if key and isinstance(whole, dict) else ""
                raise MinitronError(f"{file} holds no JSON object{where}; copy it again or remove it.")
            section = {"quant_method": method, **found}
            if len(section) > 1 and section.get("quant_algo", "") is not None:
                return {**config, KEYS[0]: section}
    return config


def as_cast(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint whose weights are floats of eight bits without scales."""
    return {**config, KEYS[0]: {"quant_method": CAST}}
