"""Configs of fp8, fbgemm_fp8, mxfp4, compressed-tensors, modelopt and quark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from minitron.model.matrix_layout import Layout, Scheme
from minitron.model.quantised.integers import HEAD, NO_BITS, ignored
from minitron.model.quantised.modules import EXPERTS, PROJECTIONS, is_class
from minitron.model.quantised.quantisation import CAST, Group, Quantisation, Section, entries, number, table, text
from minitron.model.quantised.schemes import (
    FP16_BYTES,
    FP32_BYTES,
    fp8_of_blocks,
    fp8_of_matrix,
    fp8_of_rows,
    guess,
    mx,
    nvfp4,
)


def read_fp8(section: Section) -> Quantisation:
    """transformers' fp8: one scale for every block of `weight_block_size`, or for the matrix."""
    static = FP32_BYTES if text(section, "activation_scheme") == "static" else 0
    block = section.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == 2 and all(isinstance(size, int) and size for size in block):
        scheme = fp8_of_blocks(block[0], block[1], matrix_bytes=static)
    else:
        scheme = fp8_of_matrix(FP32_BYTES + static)
    return Quantisation("fp8", (*ignored(section), Group((PROJECTIONS,), scheme)))


def read_cast(section: Section) -> Quantisation:
    """Every matrix in E4M3 without a scale."""
    return Quantisation(CAST, (Group(("re:.*",), Scheme("fp8", Layout(bits=8))),))


def read_fbgemm(section: Section) -> Quantisation:
    """fbgemm: one scale a row, and an upper bound of the inputs' scales."""
    return Quantisation("fbgemm_fp8", (*ignored(section), Group((PROJECTIONS,), fp8_of_rows(FP32_BYTES, FP32_BYTES))))


def read_mxfp4(section: Section) -> Quantisation:
    """MXFP4 as gpt-oss is released: the routed experts, whatever stands in the list of what is not converted."""
    return Quantisation("mxfp4", (*ignored(section), Group((EXPERTS,), mx(4))))


def read_mxfp8(section: Section) -> Quantisation:
    """MXFP8: every linear inside a block."""
    return Quantisation("mxfp8", (*ignored(section), Group((PROJECTIONS,), mx(8))))


# --- compressed-tensors ---------------------------------------------------------------------------------------------

_DENSE: Final = ("dense",)
_SCALE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHAPE_BYTES: Final = 16
"""weight_shape: two numbers of eight bytes beside packed weights."""


def read_compressed_tensors(section: Section) -> Quantisation:
    """compressed-tensors: `config_groups` with targets, each with its own weights and perhaps its own format."""
    method = "compressed-tensors"
    layout = text(section, "format", "quant_format")
    groups: list[Group] = list(ignored(section))
    found = table(section, "config_groups")
    for name, own in found.items():
        if isinstance(own, dict):
            targets = entries(own, "targets") or ("Linear",)
            scheme = _weights(own, text(own, "format") or layout)
            groups.append(Group(targets, scheme))
        elif isinstance(own, list):
            scheme = _preset(name)
            groups.append(Group(tuple(map(str, own)), scheme))
    doubts: tuple[str, ...] = ()
    if not found and layout not in _DENSE:
        scheme = {"float-quantized": fp8_of_rows(FP16_BYTES), "nvfp4-pack-quantized": nvfp4(16, inputs=True)}.get(
            layout
        )
        doubts = ("its config has no config_groups, which say how the weights are kept",)
        groups += [Group((PROJECTIONS,), scheme)] if scheme else []
    kv, kv_bytes = kv_of(section)
    return Quantisation(method, tuple(groups), doubts, kv, kv_bytes)


def _preset(name: str) -> Scheme | None:
    """The scheme that a preset's name stands for, where a group is a list of targets."""
    upper = name.upper()
    if upper.startswith("FP8_BLOCK"):
        return fp8_of_blocks(128, 128, FP16_BYTES)
    if upper.startswith("FP8_DYNAMIC"):
        return fp8_of_rows(FP16_BYTES)
    if upper.startswith("FP8"):
        return fp8_of_matrix(2 * FP16_BYTES)
    if upper.startswith("NVFP4"):
        return nvfp4(16, inputs=upper == "NVFP4")
    if upper.startswith("W4A"):
        return packed(4, 128)
    return Scheme("int8", Layout(bits=8, row_bytes=FP16_BYTES)) if upper.startswith("W8A8") else None


def packed(bits: int, group: int, *, zeros: bool = False, indices: bool = False) -> Scheme:
    """Integers packed into words of 32 bits, a scale of two bytes a group or a row, and the matrix's shape."""
    layout = Layout(
        bits=bits,
        group=group,
        group_bytes=FP16_BYTES if group else 0,
        row_bytes=0 if group else FP16_BYTES,
        zero_bits=bits if zeros and group else 0,
        column_bytes=4 if indices else 0,
        matrix_bytes=_SHAPE_BYTES,
        word=32,
    )
    return Scheme(f"int{bits}", layout)


def _weights(group: Section, layout: str) -> Scheme | None:
    """How the weights of a config group are kept; None where only its inputs are quantised."""
    weights = table(group, "weights")
    if not weights or layout in _DENSE:
        return None
    bits, kind = number(weights, "num_bits", default=8) or 8, text(weights, "type") or "int"
    size = max(number(weights, "group_size", default=0) or 0, 0)
    inputs = table(group, "input_activations")
    scale = _SCALE_BYTES.get(text(weights, "scale_dtype").removeprefix("torch."), FP16_BYTES)
    static = scale if inputs and not inputs.get("dynamic") else 0
    if kind == "float" and bits == 4:
        return mx(4) if size == 32 or "mxfp4" in layout else nvfp4(size or 16, inputs=bool(inputs))
    if kind == "float" and "mxfp8" in layout:
        return mx(8)
    if kind == "float":
        return _float8(weights, size, scale, static)
    if "pack" in layout:
        zeros, ordered = weights.get("symmetric") is False, text(weights, "actorder") in ("group", "true")
        return packed(bits, size, zeros=zeros, indices=ordered)
    if "marlin" in layout:
        # Of four weights two stay, each with two bits that say which.
        return Scheme(f"int{bits} 2:4", guess(bits // 2 + 1, size, zeros=False).layout, known=False)
    zero = 1 if weights.get("symmetric") is False else 0
    if text(weights, "strategy") == "tensor":
        return Scheme("int8", Layout(bits=8, matrix_bytes=scale + zero + static), known=bits == 8)
    grouped = Layout(bits=8, group=size, group_bytes=scale + zero, matrix_bytes=static)
    rows = Layout(bits=8, row_bytes=scale + zero, matrix_bytes=static)
    return Scheme(f"int{bits}", grouped if size else rows, known=bits == 8)


def _float8(weights: Section, size: int, scale: int, static: int) -> Scheme:
    block = weights.get("block_structure")
    if isinstance(block, str):
        block = [int(part) for part in block.split("x") if part.isdigit()]
    strategy = text(weights, "strategy") or ("group" if size else "tensor")
    if strategy == "block":
        rows, columns = block if isinstance(block, list) and len(block) == 2 else (128, 128)
        return fp8_of_blocks(rows, columns, scale, static)
    if strategy == "group" and size:
        return Scheme("fp8", Layout(bits=8, group=size, group_bytes=scale, matrix_bytes=static))
    return fp8_of_matrix(scale + static) if strategy == "tensor" else fp8_of_rows(scale, static)


def kv_of(section: Section) -> tuple[str, int]:
    """(format, bytes of scales a layer) of the keys and values that a checkpoint was made for; ("", 0) for none."""
    scheme = section.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        bits = number(scheme, "num_bits", default=8)
        name = {("float", 8): "fp8", ("int", 8): "int8", ("float", 4): "nvfp4"}.get(
            (text(scheme, "type"), bits or 0), ""
        )
        if scheme.get("dynamic"):
            return name, 0
        if "quant_algo" in section:
            # modelopt leaves scales of one out of some of its checkpoints, and no config says of which.
            return name, 2 * FP32_BYTES if text(table(section, "producer"), "name") == "minitron" else 0
        return name, 2 * FP16_BYTES
    named = text(section, "kv_cache_quant_algo") or (scheme.lower() if isinstance(scheme, str) else "")
    return (named if named in ("fp8", "int8", "nvfp4") else ""), 0


# --- modelopt -------------------------------------------------------------------------------------------------------

_ALGORITHMS: Final[Mapping[str, Callable[[int], Scheme]]] = {
    "fp8": lambda group: fp8_of_matrix(2 * FP32_BYTES),
    "fp8_per_channel_per_token": lambda group: fp8_of_rows(FP32_BYTES),
    "fp8_pc_pt": lambda group: fp8_of_rows(FP32_BYTES),
    "fp8_pb_wo": lambda group: fp8_of_blocks(group or 128, group or 128),
    "fp8_pb_real": lambda group: fp8_of_blocks(group or 128, group or 128),
    "nvfp4": lambda group: nvfp4(group or 16, inputs=True),
    "w4a16_nvfp4": lambda group: nvfp4(group or 16, inputs=False),
    "w4a8_nvfp4_fp8": lambda group: nvfp4(group or 16, inputs=True),
    "nvfp4_awq": lambda group: nvfp4(group or 16, inputs=True, column_bytes=FP16_BYTES),
    "mxfp4": lambda group: mx(4, group or 32),
    "w4a8_mxfp4_fp8": lambda group: mx(4, group or 32),
    "mxfp8": lambda group: mx(8, group or 32),
    "w4a16_awq": lambda group: guess(4, group or 128, zeros=False),
    "int4_awq": lambda group: guess(4, group or 128, zeros=False),
    "w4a8_awq": lambda group: guess(4, group or 128, zeros=False),
    "w8a16": lambda group: guess(8, zeros=False),
    "w8a8_sq_per_channel": lambda group: guess(8),
    "int8_sq": lambda group: guess(8),
}
"""modelopt's quant_algo in small letters -> how a group size, 0 for its own, lays weights out."""


def _algorithm(section: Section, group: int) -> Scheme | None:
    found = _ALGORITHMS.get(text(section, "quant_algo"))
    return None if found is None else found(number(section, "group_size", "awq_block_size", default=group) or 0)


def read_modelopt(section: Section) -> Quantisation:
    """modelopt: one `quant_algo`, or `quantized_layers` with one each where that is MIXED_PRECISION."""
    groups, group = list(ignored(section)), number(section, "group_size", default=0) or 0
    has_list = any(isinstance(section.get(key), list) for key in ("ignore", "exclude_modules"))
    configured, silent = table(section, "config_groups"), False
    layers = table(section, "quantized_layers")
    if layers:
        groups += [Group((name,), _algorithm(own, group)) for name, own in layers.items() if isinstance(own, dict)]
    elif (whole := _algorithm(section, group)) is not None:
        groups.append(Group((PROJECTIONS, HEAD) if has_list else (PROJECTIONS,), whole))
        silent = not has_list
    elif configured:
        for own in configured.values():
            weights = table(own, "weights") if isinstance(own, dict) else {}
            targets = (entries(own, "targets") or ("Linear",)) if isinstance(own, dict) else ()
            if weights:
                groups.append(Group(_not_routers(targets), _like_modelopt(own, weights)))
    elif text(section, "quant_algo") == "mixed_precision":
        silent = True
    known = any(one.scheme for one in groups)
    algorithm = text(section, "quant_algo")
    doubts = () if known or silent else (f"Minitron does not know modelopt's quant_algo {algorithm or 'none'}",)
    if silent and not known:
        doubts = ("its config does not say which modules are kept in which format",)
    return Quantisation("modelopt", tuple(groups), doubts, *kv_of(section), silent=silent)


def _not_routers(targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets with the class of linears as modelopt means it: routers are never quantised."""
    return tuple(name for target in targets for name in ((PROJECTIONS, HEAD) if is_class(target) else (target,)))


def _like_modelopt(group: Section, weights: Section) -> Scheme | None:
    bits, size = number(weights, "num_bits", default=8), number(weights, "group_size", default=0) or 0
    kind, inputs = text(weights, "type"), bool(table(group, "input_activations"))
    name = {("float", 8): "fp8", ("float", 4): "nvfp4" if inputs else "w4a16_nvfp4"}.get((kind, bits or 0))
    if kind == "float" and bits == 8 and text(weights, "strategy") == "channel":
        name = "fp8_per_channel_per_token"
    if kind == "int":
        name = "w4a16_awq" if bits == 4 else "w8a16"
    return None if name is None else _ALGORITHMS[name](size)


# --- quark ----------------------------------------------------------------------------------------------------------


def read_quark(section: Section) -> Quantisation:
    """Quark: `global_quant_config`, and `layer_quant_config` for some modules."""
    main = _quark(table(section, "global_quant_config"))
    groups = [
        *ignored(section),
        *(Group((name,), _quark(own)) for name, own in table(section, "layer_quant_config").items()),
        *([] if main is None else [Group((PROJECTIONS, HEAD), main)]),
    ]
    doubts = () if any(group.scheme for group in groups) else (NO_BITS,)
    keys = table(section, "kv_cache_quant_config", "kv_cache_group")
    return Quantisation("quark", tuple(groups), doubts, "fp8" if keys else "")


def _quark(own: Any) -> Scheme | None:
    weight = own.get("weight") if isinstance(own, Mapping) else None
    if isinstance(weight, list):
        weight = weight[-1] if weight else None
    if not isinstance(weight, Mapping):
        return None
    kind, how = text(weight, "dtype"), text(weight, "qscheme")
    size = max(number(weight, "group_size", default=0) or 0, 0)
    inputs = own.get("input_tensors") or {}
    if kind.startswith("fp8") and how == "per_tensor":
        static = isinstance(inputs, Mapping) and bool(inputs) and not inputs.get("is_dynamic")
        return Scheme("fp8", fp8_of_matrix(FP32_BYTES * (1 + static)).layout)
    if kind.startswith("fp8"):
        return fp8_of_rows(FP32_BYTES)
    if kind.startswith(("fp4", "mxfp4", "mx4")) or kind == "mx":
        return mx(4, size or 32)
    if kind.startswith(("fp6", "mxfp6", "mx6")):
        return Scheme("mxfp6", mx(6, size or 32).layout, known=False)
    digits = [letter for letter in kind.removeprefix("uint").removeprefix("int") if letter.isdigit()]
    if "int" in kind and digits:
        return guess(int(digits[0]), size)
    return None
