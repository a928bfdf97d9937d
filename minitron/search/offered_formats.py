"""Which parts of a model may be kept in which formats: what the engine reads, the GPU runs and Minitron writes.

Inside layers a part is all linears of a component.  Outside them an output layer that has its own numbers is one where
the engine reads it so (minitron.memory.formats.HEAD_ENGINES); in a GGUF file, whose every matrix has a type of its own,
the output layer and the embedding are, and of a model that ties them the one matrix that is both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, HEAD_ENGINES, STORED, Format, formats_for, ggml_format
from minitron.memory.ggml import TYPES
from minitron.memory.gguf import PARTS, is_matrix
from minitron.memory.gpus import Gpu
from minitron.memory.questions import in_gguf, keeps_kv
from minitron.memory.workload import Engine, Workload
from minitron.model.spec import ModelSpec
from minitron.model.tensors import is_mtp
from minitron.quantise.wanted import KV_FORMATS

HEAD: Final = "lm_head"
"""The component of the output layer."""

EMBEDDING: Final = "embedding"

GGML: Final = ("bf16", "q8_0", "q6_k", "q5_k", "q4_k", "iq3_xxs", "iq2_s", "iq2_xxs")
"""The types of ggml that are tried unless others are named: of each number of bits one."""


def form_of(name: str) -> Format:
    """The format of a part: a name in FORMATS, or a type of ggml."""
    return FORMATS[name] if name in FORMATS else ggml_format(name)


def parts_of(spec: ModelSpec, workload: Workload | None = None) -> tuple[str, ...]:
    """The components that may be kept in a quantised format: those with linears in layers that are all matrices with a
    row an output, and where the engine of the workload reads it so the output layer; of a GGUF file those whose
    matrices it names, the embedding among them."""
    if workload is not None and in_gguf(workload):
        rules = (rule for kind, own in spec.rules.items() if not is_mtp(kind) for rule in own)
        return tuple(sorted({rule.component for rule in rules if is_matrix(rule)} & set(PARTS.values())))
    head = [HEAD] if workload is not None and _reads_head(spec, workload) else []
    return tuple(sorted([part for part, usual in projecting(spec).items() if usual] + head))


def projecting(spec: ModelSpec) -> dict[str, bool]:
    """Component with projections -> whether all of them are usual matrices."""
    found: dict[str, bool] = {}
    for kind, rules in spec.rules.items():
        for rule in rules:
            if rule.is_projection and not is_mtp(kind):
                usual = not rule.is_stacked and not rule.transposed
                found[rule.component] = found.get(rule.component, True) and usual
    return found


def _reads_head(spec: ModelSpec, workload: Workload) -> bool:
    """Whether the engine reads the output layer of such a model in fewer bits, in some format."""
    has_own = any(rule.is_linear and rule.tied_to for rule in spec.rules["model"])
    return has_own and not (spec.family.plain_head and workload.engine.name != Engine.name)


def forms_for(part: str, names: Sequence[str], workload: Workload) -> list[str]:
    """Those of some formats in which the workload's engine reads a part; of an output layer its own too, for that is
    what others keep it in."""
    if part != HEAD or in_gguf(workload):
        return list(names)
    title = ENGINES[workload.engine.name].title
    engines = {name: dict(HEAD_ENGINES.get(FORMATS[name].method, ())) for name in names}
    read = [name for name in names if engines[name] and (workload.engine.name == Engine.name or title in engines[name])]
    plain = [name for name in names if not FORMATS[name].quantised] or [workload.weights]
    return list(dict.fromkeys([*plain, *read]))


def require_runnable(spec: ModelSpec, workload: Workload, names: Sequence[str], gpu: Gpu | None) -> None:
    """Raise MinitronError for a name that is no format of weights that is written, or of plain numbers (for llama.cpp
    no type of ggml), for one that the GPU does not run at all, and for a model that is quantised already."""
    if names and spec.quantisation is not None and workload.weights == STORED:
        raise MinitronError(
            f"the model is quantised already ({spec.quantisation.told}), and --formats are those of a model in plain "
            "numbers; drop --formats, or give the model that it was quantised from."
        )
    known = _known(workload)
    for name in names:
        if name not in known:
            what = "type of ggml" if in_gguf(workload) else "format that Minitron writes"
            raise MinitronError(f"--formats names {name!r:.40}, which is no {what}; choose of {', '.join(known)}.")
        least = form_of(name).least
        if least is not None and gpu is not None and gpu.capability is not None and gpu.capability < least:
            have, want = (".".join(map(str, version)) for version in (gpu.capability, least))
            raise MinitronError(
                f"{gpu.name} does not run {name} (compute capability {have}, {want} is needed); choose --formats of "
                f"{', '.join(runnable(workload, gpu))}."
            )


def _known(workload: Workload) -> list[str]:
    """The formats in which parts may be kept."""
    if in_gguf(workload):
        return list(TYPES)
    weights = [FORMATS[name] for name in formats_for("weights")]
    return [form.name for form in weights if (form.written or not form.quantised) and not form.gguf]


def runnable(workload: Workload, gpu: Gpu | None) -> list[str]:
    """The formats of weights that the workload's engine reads and the GPU runs: those that its tensor cores know, and
    those whose inputs stay in 16 bits; of a GPU of which only the memory is known, all."""
    if in_gguf(workload):
        return list(GGML)
    title = ENGINES[workload.engine.name].title
    found = [workload.weights]
    for name in formats_for("weights"):
        form = FORMATS[name]
        read = workload.engine.name == Engine.name or title in dict(form.engines)
        least = form.least if not form.inputs else form.native
        runs = gpu is None or gpu.capability is None or (least is not None and gpu.capability >= least)
        if form.written and read and runs:
            found.append(name)
    return found


def kv_formats(workload: Workload, gpu: Gpu | None) -> list[str]:
    """The formats of keys and values that the workload's engine keeps on the GPU, those apart that need scales in the
    checkpoint which Minitron does not write."""
    quantised = [FORMATS[name] for name in formats_for("kv") if FORMATS[name].quantised]
    able = [form.name for form in quantised if form.name in KV_FORMATS or not form.kept("kv").matrix_bytes]
    own = [name for name in able if bool(FORMATS[name].gguf) == in_gguf(workload)]
    return [workload.kv, *(name for name in own if keeps_kv(workload, name, gpu))]
