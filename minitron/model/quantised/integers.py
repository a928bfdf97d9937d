"""Configs of weight-only quantisers: gptq, awq, auto-round, bitsandbytes, hqq, torchao, quanto and the like."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.model.matrix_layout import Layout, Scheme
from minitron.model.quantised.modules import PROJECTIONS
from minitron.model.quantised.quantisation import Group, Quantisation, Section, entries, number, table, text
from minitron.model.quantised.schemes import (
    awq,
    bnb_4bit,
    bnb_8bit,
    fp8_of_matrix,
    fp8_of_rows,
    gptq,
    guess,
    mx,
)

HEAD: Final = "lm_head"
NO_BITS: Final = "its config does not say in how many bits"
_IGNORED: Final = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude", "exclude_modules", "skip_modules")


def ignored(section: Section, *more: str) -> tuple[Group, ...]:
    """The modules that stay as they are, under any of the names by which configs call their list."""
    found = entries(section, *_IGNORED, *more)
    return (Group(found, None),) if found else ()


def _group_of(section: Section, default: int = 128) -> int:
    """The size of a group; 0 where a whole column shares its scale."""
    found = number(section, "group_size", "q_group_size", default=default)
    return max(found or 0, 0)


_BITS: Final = ("bits", "w_bit", "nbits", "weight_bits", "num_bits", "wbits")


def _bits_of(section: Section) -> int | None:
    found = number(section, *_BITS)
    if found is not None and not 1 <= found <= 32:
        raise MinitronError(
            f"config.json: quantization_config gives weights {found} bits, not 1 to 32; copy config.json from the "
            "checkpoint again."
        )
    return found


def read_gptq(section: Section) -> Quantisation:
    """GPTQ: `dynamic` says of single modules that they are kept otherwise, or not quantised."""
    bits, group = _bits_of(section), _group_of(section)
    if bits is None:
        return Quantisation("gptq", (), (NO_BITS,))
    groups = list(ignored(section))
    for pattern, own in table(section, "dynamic").items():
        entry = f"re:{pattern.removeprefix('-:').removeprefix('+:')}"
        scheme = None
        if not pattern.startswith("-:"):
            other = own if isinstance(own, dict) else {}
            scheme = gptq(_bits_of(other) or bits, _group_of(other, group))
        groups.append(Group((entry,), scheme))
    if section.get("lm_head"):
        groups.append(Group((HEAD,), gptq(bits, group)))
    only = section.get("modules_in_block_to_quantize")
    if only:
        flat = [name for names in only for name in ([names] if isinstance(names, str) else names)]
        groups += [Group(tuple(flat), gptq(bits, group)), Group((PROJECTIONS,), None)]
    return Quantisation("gptq", (*groups, Group((PROJECTIONS,), gptq(bits, group))))


def read_awq(section: Section) -> Quantisation:
    """AWQ, in the words of AutoAWQ (`bits`, `group_size`) or of llm-awq (`w_bit`, `q_group_size`)."""
    bits, group = _bits_of(section), _group_of(section)
    if bits is None:
        return Quantisation("awq", (), (NO_BITS,))
    return Quantisation("awq", (*ignored(section), Group((PROJECTIONS,), awq(bits, group))))


def read_auto_round(section: Section) -> Quantisation:
    """AutoRound: `packing_format` says whose layout, `extra_config` what single modules are kept in."""
    packing = text(section, "packing_format", "backend")
    layout = awq if "awq" in packing else gptq

    def scheme(own: Section) -> Scheme | None:
        bits = _bits_of(own) or _bits_of(section)
        if bits is None or bits >= 16:
            return None
        kind, group = text(own, "data_type") or text(section, "data_type"), _group_of(own, _group_of(section))
        if kind.startswith(("mx_fp", "mx")):
            return mx(bits)
        if kind.startswith("fp") and bits == 8:
            return fp8_of_rows(2)
        found = layout(bits, group)
        # AutoRound's own packing leaves out what the sum of groups says already.
        return Scheme(found.name, found.layout, known=bool(packing))

    groups = [
        Group((f"re:{name}" if re.search(r"[\\^$*|]", name) else name,), scheme(own))
        for name, own in table(section, "extra_config").items()
        if isinstance(own, dict)
    ]
    main = scheme({})
    if main is None:
        return Quantisation("auto-round", tuple(groups), (NO_BITS,))
    return Quantisation("auto-round", (*ignored(section), *groups, Group((PROJECTIONS,), main)))


def read_bitsandbytes(section: Section) -> Quantisation:
    """bitsandbytes: LLM.int8(), or four bits."""
    four = section.get("load_in_4bit") or section.get("_load_in_4bit")
    eight = section.get("load_in_8bit") or section.get("_load_in_8bit")
    if not four and not eight:
        return Quantisation("bitsandbytes", (), (NO_BITS,))
    kind, double = text(section, "bnb_4bit_quant_type"), bool(section.get("bnb_4bit_use_double_quant"))
    scheme = bnb_4bit(kind, double=double) if four else bnb_8bit()
    kept = ignored(section, "llm_int8_skip_modules")
    return Quantisation("bitsandbytes", (*kept, Group((PROJECTIONS,), scheme)))


def read_hqq(section: Section) -> Quantisation:
    """HQQ: one `quant_config`, or one for each of some linears by their names in a layer."""
    found = table(section, "quant_config") or section

    def scheme(own: Section) -> Scheme | None:
        inner = table(own, "weight_quant_params") or own
        bits = _bits_of(inner)
        return None if bits is None else guess(bits, _group_of(inner, 64))

    whole = scheme(found)
    if whole is not None:
        return Quantisation("hqq", (*ignored(section), Group((PROJECTIONS,), whole)))
    groups = [Group((name,), scheme(own)) for name, own in found.items() if isinstance(own, dict)]
    doubts = () if any(group.scheme for group in groups) else (NO_BITS,)
    return Quantisation("hqq", (*ignored(section), *groups), doubts)


def _torchao(kind: str, data: Section) -> Scheme | None:
    """The scheme that a config class of torchao, or its older name in small letters, stands for."""
    name = kind.lower().replace("_", "")
    group = max(number(data, "group_size", default=0) or 0, 0)
    if name.startswith("float8"):
        return Scheme("fp8", fp8_of_rows(4).layout, known=False)
    if name.startswith(("mx", "nvfp4")):
        return Scheme("mxfp4", mx(8 if "8" in name[2:] else 4).layout, known=False)
    if "int8weight" in name or "int8dynamicactivationint8" in name:
        return guess(8, group, zeros=False)
    if "int4weight" in name or name.startswith("int4"):
        return guess(4, group or (32 if "dynamic" in name else 128))
    dtype = data.get("weight_dtype", data.get("dtype"))
    digits = re.search(r"int(\d)", str(dtype))
    return guess(int(digits[1]), group) if digits else None


def read_torchao(section: Section) -> Quantisation:
    """torchao: a class by name or as {"_type", "_data"}, or a table of modules with a class each."""
    kind = section.get("quant_type")
    if isinstance(kind, dict) and isinstance(kind.get("default"), dict):
        kind = kind["default"]
    if isinstance(kind, str):
        scheme = _torchao(kind, table(section, "quant_type_kwargs"))
        return _torchao_groups(section, {"_default": scheme})
    if not isinstance(kind, dict):
        return Quantisation("torchao", (), (NO_BITS,))
    data = table(kind, "_data")
    modules = table(data, "module_fqn_to_config", "fqn_to_config")
    if not modules:
        return _torchao_groups(section, {"_default": _torchao(str(kind.get("_type")), data)})
    return _torchao_groups(
        section,
        {
            name: _torchao(str(own.get("_type")), table(own, "_data")) if isinstance(own, dict) else None
            for name, own in modules.items()
        },
    )


def _torchao_groups(section: Section, schemes: dict[str, Scheme | None]) -> Quantisation:
    default = schemes.pop("_default", None)
    groups = [*ignored(section), *(Group((name,), scheme) for name, scheme in schemes.items())]
    if section.get("include_input_output_embeddings"):
        groups.append(Group((HEAD, "Embedding"), default))
    if default is not None:
        groups.append(Group((PROJECTIONS,), default))
    return Quantisation("torchao", tuple(groups), () if any(group.scheme for group in groups) else (NO_BITS,))


def read_eetq(section: Section) -> Quantisation:
    """EETQ: int8 with an fp16 scale a row."""
    return Quantisation("eetq", (*ignored(section), Group((PROJECTIONS,), guess(8, zeros=False))))


def read_quanto(section: Section) -> Quantisation:
    """Quanto: `weights` names the type."""
    kind = text(section, "weights")
    digits = re.search(r"int(\d)", kind)
    if digits:
        scheme: Scheme = guess(int(digits[1]), 0 if digits[1] == "8" else 128)
    elif "float8" in kind:
        scheme = Scheme("fp8", fp8_of_matrix(4).layout, known=False)
    else:
        return Quantisation("quanto", (), (NO_BITS,))
    return Quantisation("quanto", (*ignored(section), Group((PROJECTIONS,), scheme)))


def read_bitnet(section: Section) -> Quantisation:
    """BitNet: ternary weights, four a byte, with one scale."""
    return Quantisation("bitnet", (*ignored(section), Group((PROJECTIONS,), guess(2, zeros=False))))


def read_other(section: Section, method: str) -> Quantisation:
    """A method that Minitron does not know: what its config says of bits is the best guess there is."""
    doubts: list[Any] = [f"Minitron does not know the layout of {method}"]
    average = next((section[key] for key in _BITS if isinstance(section.get(key), float)), None)
    if average is not None and 1 <= average < 16:
        # A share of a bit: so many thousandths of a number's bits in bytes of eight thousand.
        layout = Layout(bits=math.ceil(average), measured=(round(1000 * average), 8000))
        scheme = Scheme(f"{average:g} bits", layout, known=False)
        return Quantisation(method, (*ignored(section), Group((PROJECTIONS,), scheme)), tuple(doubts))
    bits = None if average is not None else _bits_of(section)
    if bits is None or bits >= 16:
        return Quantisation(method, (), (*doubts, NO_BITS))
    groups = (*ignored(section), Group((PROJECTIONS,), guess(bits, _group_of(section))))
    return Quantisation(method, groups, tuple(doubts))
