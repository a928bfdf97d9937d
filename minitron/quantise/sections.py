"""What config.json and a file beside it say of a quantised checkpoint, as modelopt or compressed-tensors would.

Sources: modelopt 0.47's export (hf_quant_config.json, and convert_hf_config for config.json); compressed-tensors'
QuantizationConfig; how vLLM reads both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import minitron
from minitron.errors import MinitronError
from minitron.memory.formats import Format
from minitron.quantise.assigned import Assigned, Matrix

_PRODUCER: Final = {"name": "minitron", "version": minitron.__version__}

_ALGORITHMS: Final = {"fp8": "FP8", "nvfp4": "NVFP4", "nvfp4a16": "W4A16_NVFP4"}
"""Format -> modelopt's quant_algo."""

_LAYOUTS: Final = {"fp8-dynamic": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}
"""Format -> the format of a group in compressed-tensors."""

HF_QUANT_CONFIG: Final = "hf_quant_config.json"


def sections(assigned: Assigned) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(quantization_config, file name -> document beside config.json) of a checkpoint.

    Raises MinitronError for formats that no one config can name together."""
    methods: dict[str, str] = {}
    for matrix in assigned.matrices:
        methods.setdefault(matrix.form.method, matrix.form.name)
    if len(methods) > 1:
        one, other = methods.values()
        raise MinitronError(
            f"{one} and {other} cannot stand in one checkpoint: {' and '.join(methods)} describe them, and config.json "
            "has room for one; choose formats of one of the two."
        )
    (method,) = methods
    return _METHODS[method](assigned)


# --- modelopt -------------------------------------------------------------------------------------------------------


def _modelopt(assigned: Assigned) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    forms = list(dict.fromkeys(matrix.form for matrix in assigned.matrices))
    kv = "FP8" if assigned.attention else None
    told: dict[str, Any] = {"quant_algo": _ALGORITHMS[forms[0].name], "kv_cache_quant_algo": kv}
    groups: dict[str, Any] = {}
    if len(forms) == 1:
        told |= _group_size(forms[0])
        groups["group_0"] = _modelopt_group(forms[0]) | {"targets": ["Linear"]}
    else:
        told["quant_algo"] = "MIXED_PRECISION"
        told["quantized_layers"] = {
            matrix.module: {"quant_algo": _ALGORITHMS[matrix.form.name]} | _group_size(matrix.form)
            for matrix in assigned.matrices
        }
        for number, form in enumerate(forms):
            names = sorted(matrix.module for matrix in assigned.matrices if matrix.form == form)
            groups[f"group_{number}"] = _modelopt_group(form) | {"targets": names}
    ignored = _wildcards(assigned.ignored, "*")
    section: dict[str, Any] = {"config_groups": groups}
    if len(forms) > 1:
        section["quantized_layers"] = told["quantized_layers"]
    section |= {"ignore": ignored, "quant_algo": told["quant_algo"]}
    if kv:
        section["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    section |= {"producer": _PRODUCER, "quant_method": "modelopt"}
    beside = {"producer": _PRODUCER, "quantization": told | {"exclude_modules": ignored}}
    return section, {HF_QUANT_CONFIG: beside}


def _group_size(form: Format) -> dict[str, int]:
    return {"group_size": form.group} if form.group else {}


def _modelopt_group(form: Format) -> dict[str, Any]:
    one = {"dynamic": False, "num_bits": form.bits, "type": "float"} | _group_size(form)
    return ({"input_activations": one} if form.inputs else {}) | {"weights": dict(one)}


# --- compressed-tensors ---------------------------------------------------------------------------------------------

_NEUTRAL: Final = {"actorder": None, "block_structure": None}


def _compressed_tensors(assigned: Assigned) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    counts: dict[Format, list[Matrix]] = {}
    for matrix in assigned.matrices:
        counts.setdefault(matrix.form, []).append(matrix)
    # The one that most matrices have is told by their class; names stand before classes.
    *named, main = sorted(counts, key=lambda form: len(counts[form]))
    # vLLM's output layer is of a class of its own, and SGLang takes names of it alone.
    heads = [matrix for matrix in counts[main] if matrix.layer is None]
    groups = [(form, _expressions(counts[form])) for form in named] + [(main, ["Linear", *_expressions(heads)])]
    layouts = {_LAYOUTS[form.name] for form in counts}
    return {
        "config_groups": {f"group_{number}": _group(form, names) for number, (form, names) in enumerate(groups)},
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": _wildcards(assigned.ignored, ".*", "re:"),
        "kv_cache_scheme": _kv_scheme() if assigned.attention else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }, {}


def _group(form: Format, targets: list[str]) -> dict[str, Any]:
    kind = "float" if form.numbers == "e4m3" else "int"
    one = {"num_bits": form.bits, "type": kind, "symmetric": True, "dynamic": False}
    size = {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
    inputs = one | {"strategy": "token", "dynamic": True} if form.inputs == "token" else None
    return {
        "targets": targets,
        "weights": one | size | _NEUTRAL,
        "input_activations": inputs,
        "output_activations": None,
        "format": _LAYOUTS[form.name],
    }


def _kv_scheme() -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def _expressions(matrices: Iterable[Matrix]) -> list[str]:
    """Regular expressions that mean the modules of these matrices and no others, whatever stands before their layers'
    number: engines rename the front of a name."""
    layers: dict[str, dict[int | None, None]] = {}
    for matrix in matrices:
        name = re.escape(matrix.module)
        if matrix.layer is not None:
            front, _, behind = name.partition(rf"\.{matrix.layer}\.")
            last = front.rpartition(r"\.")[2]
            name = rf"{last}\.{{layer}}\.{behind}"
        if matrix.expert is not None:
            name = re.sub(rf"\\\.{matrix.expert}\\\.", r"\\.\\d+\\.", name)
        layers.setdefault(name, {})[matrix.layer] = None
    return [
        f"re:.*{name.replace('{layer}', '(?:' + '|'.join(map(str, found)) + ')')}$" for name, found in layers.items()
    ]


_EXPERTS: Final = re.compile(r"^(.*\.experts)\.\d+\..*$")


def _wildcards(modules: Iterable[str], end: str, mark: str = "") -> list[str]:
    """The modules by name; those of a layer's routed experts, which are many, by what their names begin with."""
    found: dict[str, None] = {}
    for module in modules:
        inside = _EXPERTS.match(module)
        if inside is None:
            found[module] = None
        else:
            found[f"{mark}{re.escape(inside[1]) if mark else inside[1]}{end}"] = None
    return list(found)


_METHODS: Final[Mapping[str, Callable[[Assigned], tuple[dict[str, Any], dict[str, dict[str, Any]]]]]] = {
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
}
"""A word in minitron.memory.formats.Method -> what writes its section."""
