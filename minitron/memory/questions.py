"""Questions to the planner: whether a model fits, what would make it fit, and the largest workload that fits.

Every answer is the forward question asked again: an inverse answer is the largest (or smallest) value for which the
footprint stays within the budget, found by bisection, as every footprint grows with context and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.caches import keeps_states
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS, GGUF_OF, STORED
from minitron.memory.gpus import GPUS, Gpu
from minitron.memory.precision import precision_of, tally_of
from minitron.memory.prices import price
from minitron.memory.stored import doubts_of
from minitron.memory.workload import Workload, casts_to_half
from minitron.model.quantised.quantisation import Quantisation
from minitron.model.spec import ModelSpec
from minitron.units import format_bytes

UNLIMITED: Final = 2**40
"""The answer where nothing that grows fills the memory: beyond this none is looked for."""

Limit = Callable[[Gpu], Budget]
"""GPU -> the budget that it gives."""


def total_of(spec: ModelSpec, workload: Workload, budget: Budget) -> int:
    """Bytes of the model under the workload."""
    return int(footprint(spec, workload, budget.workspace).total)


def fits(spec: ModelSpec, workload: Workload, budget: Budget) -> bool:
    """Whether the model's footprint stays within the budget."""
    return total_of(spec, workload, budget) <= budget.available


def largest(good: Callable[[int], bool]) -> int:
    """The largest whole number for which `good` holds, where it holds up to some number and no further; 0 where it
    does not hold for 1, and UNLIMITED where it always holds."""
    if not good(1):
        return 0
    high = 2
    while high < UNLIMITED and good(high):
        high *= 2
    if high >= UNLIMITED:
        return UNLIMITED
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def largest_context(spec: ModelSpec, workload: Workload, budget: Budget) -> int:
    """Tokens of the longest sequences that fit, 0 where none does."""
    return largest(lambda context: fits(spec, replace(workload, context=context), budget))


def largest_batch(spec: ModelSpec, workload: Workload, budget: Budget) -> int:
    """The most sequences that fit, 0 where none does."""
    return largest(lambda batch: fits(spec, replace(workload, batch=batch), budget))


def smallest_gpu(spec: ModelSpec, workload: Workload, limit: Limit) -> Gpu | None:
    """The GPU of the table with the least memory on which it fits, None where there is none."""
    found = (gpu for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.usable) if _fits_on(spec, workload, limit, gpu))
    return next(found, None)


def _fits_on(spec: ModelSpec, workload: Workload, limit: Limit, gpu: Gpu) -> bool:
    try:
        return fits(spec, workload, limit(gpu))
    except MinitronError:  # the reserve alone is more than such a GPU has
        return False


def mildest_weights(spec: ModelSpec, workload: Workload, budget: Budget) -> str | None:
    """The weight format of highest precision in which it fits; None if there is none."""
    names = mildest_first(gguf=in_gguf(workload))
    return next((name for name in names if fits(spec, replace(workload, weights=name), budget)), None)


def in_gguf(workload: Workload) -> bool:
    """Whether the weights are those of a GGUF file."""
    return workload.weights != STORED and bool(FORMATS[workload.weights].gguf)


@dataclass(frozen=True)
class Answer:
    """The answer to an inverse question."""

    question: str
    """context, batch, gpu or weights."""

    value: int | str | None
    """None where memory sets no limit: what a model keeps has stopped growing."""

    workload: Workload
    """The workload with the answer in it; where there is no limit, the one that was asked about."""

    budget: Budget
    total: int
    """Bytes of the footprint then."""

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object, bytes as whole numbers."""
        return {
            "question": self.question,
            "value": self.value,
            "total_bytes": self.total,
            "available_bytes": self.budget.available,
            "spare_bytes": self.budget.available - self.total,
        }


def solve(question: str, spec: ModelSpec, workload: Workload, budget: Budget, limit: Limit) -> Answer:
    """The answer to `question`, a name in QUESTIONS; raises MinitronError where there is none."""
    if question not in QUESTIONS:
        raise MinitronError(f"{question!r} cannot be solved for; choose {', '.join(QUESTIONS)}.")
    if question == "gpu":
        gpu = smallest_gpu(spec, workload, limit)
        budget = budget if gpu is None else limit(gpu)
        value: int | str | None = None if gpu is None else gpu.name
    else:
        value = {"context": largest_context, "batch": largest_batch, "weights": mildest_weights}[question](
            spec, workload, budget
        )
        if value == UNLIMITED:
            return Answer(question, None, workload, budget, total_of(spec, workload, budget))
        answer: dict[str, Any] = {question: value}
        workload = replace(workload, **answer) if value else workload
    if not value:
        raise MinitronError(
            f"no {QUESTIONS[question]} fits: {format_bytes(total_of(spec, workload, budget))} are "
            f"needed at {workload.context:,} tokens x {workload.batch:,}, but there are only "
            f"{format_bytes(budget.available)}; reduce the workload, quantise or prune."
        )
    return Answer(question, value, workload, budget, total_of(spec, workload, budget))


QUESTIONS: Final = {
    "context": "context length",
    "batch": "batch",
    "gpu": "GPU in the table",
    "weights": "weight format",
}
"""What can be solved for -> how it is called."""


@dataclass(frozen=True)
class Remedy:
    """One change after which it fits."""

    change: str
    """What to do, in words."""

    flags: str
    """The options that do it, empty where another command or device does."""

    total: int
    """Bytes then."""

    available: int
    price: str = ""
    """The KL divergence in nats that it cost the models on which it was measured (minitron.memory.prices); empty where
    it was not, or costs nothing."""

    def to_json(self) -> dict[str, Any]:
        """The remedy as a JSON object."""
        return {
            "change": self.change,
            "flags": self.flags,
            "total_bytes": self.total,
            "available_bytes": self.available,
            "spare_bytes": self.available - self.total,
            "price": self.price,
        }


def remedies(spec: ModelSpec, workload: Workload, budget: Budget, limit: Limit | None = None) -> tuple[Remedy, ...]:
    """What would make a model fit that does not, each alone; where no change of numbers alone is enough, two together.

    In this order: smaller number formats, then a smaller workload, then a larger GPU (where `limit` gives its
    budget).  Pruning is the search's part."""
    narrower = [change for change in _narrower(spec, workload, budget.gpu) if fits(spec, change[2], budget)]
    if not narrower:
        changes = list(_narrower(spec, workload, budget.gpu))
        pairs = ((a, b) for place, a in enumerate(changes) for b in changes[place + 1 :])
        narrower = [both for a, b in pairs if (both := _joined(workload, a, b)) and fits(spec, both[2], budget)][:2]
    found = [
        Remedy(text, flags, total_of(spec, load, budget), budget.available, _price(workload, load))
        for text, flags, load in narrower
    ]
    found += _less(spec, workload, budget)
    if limit is not None and (gpu := smallest_gpu(spec, workload, limit)):
        other = limit(gpu)
        found.append(
            Remedy(f"a larger GPU: {gpu.name}", f"--gpu '{gpu.name}'", total_of(spec, workload, other), other.available)
        )
    return tuple(found)


def _price(before: Workload, after: Workload) -> str:
    """What is known of the changes, each behind its format where there are several."""
    formats = {field: getattr(after, field) for field in ("ssm_state", "kv")}
    changed = {field: form for field, form in formats.items() if form != getattr(before, field)}
    told = {form: found for field, form in changed.items() if (found := price(field, form))}
    return next(iter(told.values()), "") if len(told) < 2 else "; ".join(f"{form} {kl}" for form, kl in told.items())


def state_format(spec: ModelSpec, workload: Workload) -> str:
    """fp16 where recurrent states are in fp32 and the workload's engine keeps them in it, else empty: that costs a
    millionth of what other formats do (minitron.memory.prices).  Of the two with 16 bits it has more for the fraction,
    and is the less costly by far."""
    states = ENGINES[workload.engine.name].states
    narrower = keeps_states(spec) and workload.ssm_state == "fp32" and (states is None or "fp16" in states)
    return "fp16" if narrower else ""


_Change = tuple[str, str, Workload]


def _narrower(spec: ModelSpec, workload: Workload, gpu: Gpu | None) -> Iterator[_Change]:
    """Numbers kept in fewer bits, one change at a time."""
    bits = {name: form.bits for name, form in FORMATS.items()}
    main = spec.quantisation.main if workload.weights == STORED and spec.quantisation is not None else None
    bits[STORED] = 16 if main is None else main.layout.bits
    if narrower := state_format(spec, workload):
        yield f"Mamba states in {narrower}", f"--ssm-state {narrower}", replace(workload, ssm_state=narrower)
    # Of ggml's blocks where the others are not kept.
    narrow = [name for name in ("fp8", "int8") if keeps_kv(workload, name, gpu)] or ["q8_0"]
    for name in narrow:
        if workload.kv in ("fp32", "bf16", "fp16") and keeps_kv(workload, name, gpu):
            told = "" if ENGINES[workload.engine.name].kv else _emulated(name, gpu)
            yield f"keys and values in {name.upper()}{told}", f"--kv {name}", replace(workload, kv=name)
    for name in ("q8_0", "q4_k_m") if in_gguf(workload) else ("fp8", "nvfp4"):
        if bits[name] < bits[workload.weights]:
            told = f"weights in {name.upper()}{_emulated(name, gpu)}"
            yield told, f"--weights {name}", replace(workload, weights=name)


def keeps_kv(workload: Workload, kv: str, gpu: Gpu | None) -> bool:
    """Whether the workload's engine keeps keys and values in a format, on the GPU where there is one."""
    engine = ENGINES[workload.engine.name]
    if engine.kv is not None and kv not in engine.kv:
        return False
    known = gpu is None or gpu.capability is None or kv not in engine.kv_on
    return known or (gpu is not None and gpu.capability is not None and gpu.capability[0] in engine.kv_on[kv])


def _no_kernels(workload: Workload, gpu: Gpu) -> str:
    engine = ENGINES[workload.engine.name]
    others = [name for name in engine.kv or {} if FORMATS[name].quantised and keeps_kv(workload, name, gpu)]
    version = ".".join(map(str, gpu.capability or ()))
    return (
        f"{engine.title} has no kernels for keys and values in {workload.kv.upper()} on {gpu.name} (compute capability "
        f"{version}); choose --kv {' or '.join([*others, 'bf16'])}."
    )


def _emulated(name: str, gpu: Gpu | None) -> str:
    """A warning where the GPU's tensor cores do not know the format."""
    native = FORMATS[name].native
    known = gpu is None or gpu.capability is None or native is None or gpu.capability >= native
    return "" if known else " (not native)"


def _joined(workload: Workload, one: _Change, other: _Change) -> _Change | None:
    """Both changes at once; None where both change the same number."""
    first, second = ({k: v for k, v in vars(c[2]).items() if v != getattr(workload, k)} for c in (one, other))
    if set(first) & set(second):
        return None
    return f"{one[0]} and {other[0]}", f"{one[1]} {other[1]}", replace(workload, **first, **second)


def _less(spec: ModelSpec, workload: Workload, budget: Budget) -> Iterator[Remedy]:
    if batch := min(largest_batch(spec, workload, budget), workload.batch - 1):
        load = replace(workload, batch=batch)
        yield Remedy(
            f"a smaller batch: {batch:,}", f"--concurrency {batch}", total_of(spec, load, budget), budget.available
        )
    if context := min(largest_context(spec, workload, budget), workload.context - 1):
        load = replace(workload, context=context)
        yield Remedy(
            f"less context: {context:,} tokens", f"--context {context}", total_of(spec, load, budget), budget.available
        )


def _quantised(spec: ModelSpec, found: Quantisation) -> Iterator[str]:
    """What a person should know of a checkpoint that is quantised already."""
    doubts = doubts_of(spec, found)
    if doubts:
        yield f"the model is quantised ({found.told}), but {'; '.join(doubts)}: its bytes are an estimate."
    cut = "cut it with `minitron prune --dequantise`" if found.can_be_undone else "cut what it was quantised from"
    yield (
        f"the model is quantised ({found.told}), and smaller ones are counted as if quantised the same way; {cut}, "
        "which writes bf16 (--weights bf16 counts that)."
    )
    if found.kv:
        yield f"it was made for keys and values in {found.kv}; --kv {found.kv} counts them so."


def cautions(spec: ModelSpec, workload: Workload, gpu: Gpu | None) -> tuple[str, ...]:
    """What a person should know of the device: dtypes that its tensor cores do not have, memory that is shared."""
    found = [gpu.note] if gpu is not None and gpu.note else []
    if casts_to_half(spec.stated, workload):
        title = ENGINES[workload.engine.name].title
        found.append(
            f"config.json gives float32, and {title} is told to compute in {workload.weights}, as it would by itself: "
            "weights and keys and values are counted so; give --weights fp32 to keep them in fp32."
        )
    if gpu is not None and gpu.unified:
        found.append(
            f"{gpu.name} shares its memory with the CPU, where the system and its page cache need part of it too."
        )
    if gpu is not None and gpu.capability is not None:
        precision = precision_of(spec, workload.weights, workload.keep)
        named = {*(clause.form for clause in precision.mixture.clauses), workload.weights} - {STORED}
        if ENGINES[workload.engine.name].kv is None:
            named.add(workload.kv)
        elif not keeps_kv(workload, workload.kv, gpu):
            found.append(_no_kernels(workload, gpu))
        used = {name: FORMATS[name].native for name in named}
        used |= {part.form.name: part.form.native for part in tally_of(spec, precision).parts if precision.stored}
        for name, native in sorted(used.items()):
            if native is not None and gpu.capability < native:
                have, want = (".".join(map(str, version)) for version in (gpu.capability, native))
                found.append(
                    f"{gpu.name} has no native {name.upper()} (compute capability {have}, {want} is "
                    "needed): the memory is right, but matmuls are emulated or refused."
                )
    if workload.weights == STORED and spec.quantisation is not None:
        found += _quantised(spec, spec.quantisation)
    longest = spec.value("max_position_embeddings")
    if isinstance(longest, int) and workload.context > longest:
        found.append(
            f"{workload.context:,} tokens are more than the {longest:,} that the config gives as the longest context."
        )
    return tuple(found)


def mildest_first(*, gguf: bool = False) -> tuple[str, ...]:
    """bf16 and the quantised weight formats, highest precision first: by bits with scales.  Those of GGUF files, or the
    others."""
    weights = [form for form in FORMATS.values() if "weights" in form.uses and bool(form.gguf) == gguf]
    found = sorted((form for form in weights if form.quantised), key=lambda form: -form.bits_with_scales)
    return (GGUF_OF["bf16"] if gguf else "bf16", *(form.name for form in found))
