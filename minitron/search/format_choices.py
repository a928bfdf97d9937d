"""Formats of a model's parts as a dimension of the lattice: which assignments are worth a try.

A checkpoint's parts (attention, Mamba, MLP, routed experts ...) may each be kept in a format of their own, as far as
one config can name them together.  Of all assignments only those near the front of (bytes, damage) are tried, with the
damage of a part that is kept in a format told by a prior, or by what was measured of it.

The prior is a rate-distortion law: the outputs of a linear err by the mean square by which its weights do, and KL grows
with that mean square, as it grows with the share cut to the power EXPONENT.  So numbers of the relative error D
(minitron.memory.formats.Format.relative_error) cost what cutting a share SENSITIVITY * D^(1 / EXPONENT) of them would.
What parts lose adds up, each weighed by the numbers that a token uses of it: of routed experts those it is sent to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.arrays import spread
from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS, STORED, Format, formats_for, ggml_format, gguf_format
from minitron.memory.ggml import MIXTURES, TYPES
from minitron.memory.gguf import PARTS
from minitron.memory.gpus import Gpu
from minitron.memory.questions import in_gguf, keeps_kv
from minitron.memory.workload import Engine, Workload
from minitron.model.spec import ModelSpec
from minitron.model.tensors import Parameters, is_mtp
from minitron.quantise.wanted import KV_FORMATS

EXPONENT: Final = 1.5
"""A loss grows as this power of the share cut: axes of the built-in model have 1.4 to 1.8."""

SENSITIVITY: Final = 1.4
"""What int4 with feedback cost SmolLM2-135M (KL 0.105) and the built-in model (0.0047) beside a cut to 80 % of their
bytes (0.40 and 0.05) gives 0.9 to 1.9 (benchmarks/RESULTS.md)."""

GGML: Final = ("bf16", "q8_0", "q6_k", "q5_k", "q4_k", "iq3_xxs", "iq2_s", "iq2_xxs")
"""The types of ggml that are tried unless others are named: of each number of bits one."""

KV: Final = "kv"
"""Stands for keys and values beside the components whose formats vary."""

STATE: Final = "state"
"""Stands for recurrent states among the formats of a plan."""

MOST: Final = 512
"""How many assignments are in a lattice."""

FIRST: Final = 24
"""How many of them, spread over their bytes, are tried with every architecture; the others with the best ones."""

NEAR: Final = 1.15
"""An assignment that costs at most so many times what the best of no more bytes does is worth a try."""


def form_of(name: str) -> Format:
    """The format of a part: a name in FORMATS, or a type of ggml."""
    return FORMATS[name] if name in FORMATS else ggml_format(name)


def share_lost(error: Any) -> Any:
    """What keeping numbers with a relative error costs, as the share of them whose cut would cost as much."""
    return np.minimum(SENSITIVITY * error ** (1.0 / EXPONENT), 1.0)


@dataclass(frozen=True)
class Formats:
    """The formats of one model's parts."""

    weights: str
    """As Workload.weights: the format that most quantised numbers have, else that of activations."""

    parts: tuple[tuple[str, str], ...] = ()
    """(component, format) of every component that may be quantised."""

    kv: str = ""
    """As Workload.kv; empty for what was asked for."""

    fixed: tuple[tuple[str, str], ...] = ()
    """The same of what is not searched: what somebody keeps, and projections that cannot be quantised."""

    state: str = ""
    """As Workload.ssm_state; empty for what was asked for."""

    def on(self, workload: Workload, left: ModelSpec | None = None) -> Workload:
        """A workload with these formats; of a model that is `left` after a cut only those of what it has."""
        # What is in the workload's own format need not be named, unless a published mixture would name it otherwise.
        own = {} if self.weights == workload.weights else dict(self.parts + self.fixed)
        if left is not None:
            has = {rule.component for rules in left.rules.values() for rule in rules}
            own = {part: form for part, form in own.items() if part in has}
        kept = replace(workload, weights=self.weights, keep={**workload.keep, **own})
        kept = replace(kept, kv=self.kv) if self.kv else kept
        return replace(kept, ssm_state=self.state) if self.state else kept

    @property
    def of(self) -> dict[str, str]:
        """What is kept -> its format: every component that may be quantised, and keys and values where they vary."""
        return dict(self.parts) | ({KV: self.kv} if self.kv else {})

    @property
    def quantised(self) -> bool:
        """Whether something is kept in fewer than 16 bits."""
        return any(form_of(form).quantised for form in self.of.values())

    def to_json(self) -> dict[str, str]:
        """What is kept -> its format, of all that a plan must say: `of`, states, and what cannot be quantised."""
        return dict(self.fixed) | self.told

    @property
    def told(self) -> dict[str, str]:
        """`of`, and states where their format is not the one that was asked for."""
        return self.of | ({STATE: self.state} if self.state else {})


def written_of(formats: Mapping[str, str], counts: Mapping[str, int]) -> tuple[str, dict[str, str]] | None:
    """(format, component -> its format), as `minitron quantize` takes them, of what Formats.to_json gave; `counts` is
    component -> the numbers that it holds, of those that a model has.  None where nothing is quantised.  All components
    are named, those in the format of most numbers too, of which a published mixture would keep some wider."""
    parts = {part: form for part, form in formats.items() if part in counts}
    numbers: dict[str, int] = {}
    for part, form in parts.items():
        if form_of(form).quantised:
            numbers[form] = numbers.get(form, 0) + int(counts[part])
    if not numbers:
        return None
    return max(numbers, key=lambda form: numbers[form]), parts


def types_written(formats: Mapping[str, str], counts: Mapping[str, int]) -> tuple[str, dict[str, str]] | None:
    """(type of the file, component -> its type), as `minitron export` takes them, of what Formats.to_json gave;
    `counts` as in `written_of`.  None where nothing is in a type of ggml."""
    written = written_of(formats, counts)
    return None if written is None or not is_type(written[0]) else (_mixture_of(written[0]), written[1])


def is_type(form: str) -> bool:
    """Whether a format is a type of ggml and none of safetensors."""
    return form in TYPES and bool(TYPES[form].instead)


def _mixture_of(kind: str) -> str:
    """The first mixture whose matrices mostly have a type."""
    return next(name for name, mixture in MIXTURES.items() if mixture.most == kind)


def errors(formats: Sequence[Formats]) -> dict[str, NDArray[np.float64]]:
    """What is kept in formats that vary -> [formats] its relative error."""
    names = dict.fromkeys(name for one in formats for name in one.of)
    return {
        name: np.array([form_of(one.of[name]).relative_error if name in one.of else 0.0 for one in formats])
        for name in names
    }


def errors_of(counts: Parameters, formats: Mapping[str, str]) -> dict[str, float]:
    """What is kept -> its part of the relative error of a model with these parameters, each weighed by the share that a
    token uses of it."""
    return {
        part: float(numbers_of(counts.active_by_component, part) / counts.active * form_of(form).relative_error)
        for part, form in formats.items()
    }


def worth(kept: Any, error: Any) -> Any:
    """What is left of a model of which a share `kept` stays with a relative error of so much: the share to which a cut
    alone would lose as much, by the prior; less than 0 where that is more than all."""
    cut = np.maximum(1.0 - kept, 0.0)
    return 1.0 - (cut**EXPONENT + SENSITIVITY**EXPONENT * error) ** (1.0 / EXPONENT)


def parts_of(spec: ModelSpec, workload: Workload | None = None) -> tuple[str, ...]:
    """The components of which a checkpoint may keep linears in a quantised format: all of their projections are
    matrices with a row an output; of a GGUF file those whose matrices it names."""
    if workload is not None and in_gguf(workload):
        return tuple(sorted(set(_projecting(spec)) & set(PARTS.values())))
    return tuple(sorted(part for part, usual in _projecting(spec).items() if usual))


def _projecting(spec: ModelSpec) -> dict[str, bool]:
    """Component with projections -> whether all of them are usual matrices."""
    found: dict[str, bool] = {}
    for kind, rules in spec.rules.items():
        for rule in rules:
            if rule.is_projection and not is_mtp(kind):
                usual = not rule.is_stacked and not rule.transposed
                found[rule.component] = found.get(rule.component, True) and usual
    return found


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


def format_choices(
    spec: ModelSpec,
    workload: Workload,
    names: Sequence[str],
    kv: Sequence[str] = (),
    *,
    state: str = "",
    damage: Mapping[tuple[str, str], float] | None = None,
    most: int = MOST,
) -> tuple[Formats, ...]:
    """The assignments to try, the most bytes first.

    `names` are formats of weights (`require_runnable`), none where those of the workload stay, and `kv` those of keys
    and values.  `damage` is what a component, or `kv`, in a format has been measured to cost; without it the prior
    says.  `state` is that of recurrent states in all of them.  `workload` names the format of what cannot be quantised.
    Raises MinitronError where none can be used."""
    if not in_gguf(workload):
        # What is not quantised stays in the numbers that the model has.
        names = list(dict.fromkeys(name if form_of(name).quantised else workload.weights for name in names))
    parts = tuple(part for part in parts_of(spec, workload) if names and part not in workload.keep)
    fixed = dict(workload.keep) if names else {}
    if names and not in_gguf(workload):
        fixed = {part: workload.weights for part, usual in _projecting(spec).items() if not usual} | fixed
    counts = spec.parameters()
    bytes_of = _Bytes(spec, workload)
    found: dict[Formats, tuple[int, float]] = {}
    for forms in _together(names):
        rows = [[(part, form) for form in forms] for part in parts]
        rows += [[(KV, form) for form in kv]] if kv else []
        if not rows:
            break
        cost = np.array([0.0])
        size = np.array([0], dtype=np.int64)
        for row in rows:
            costs = [
                float(numbers_of(counts.active_by_component, part)) * form_of(form).relative_error
                if damage is None
                else damage[part, form]
                for part, form in row
            ]
            sizes = [bytes_of.added(part, form) for part, form in row]
            cost = np.add.outer(cost, costs).reshape(-1)
            size = np.add.outer(size, sizes).reshape(-1)
        for place in _near_front(size, cost, most).tolist():
            one = replace(
                _formats(workload, counts.by_component, _row(rows, place)), fixed=tuple(fixed.items()), state=state
            )
            found.setdefault(one, (int(size[place]), float(cost[place])))
    if not found:
        raise MinitronError(f"no part of this model can be kept in {', '.join(names)}; drop --formats, or name others.")
    order = sorted(found, key=lambda one: (-found[one][0], found[one][1]))
    return tuple(order[place] for place in spread(len(order), most).tolist())


def _row(rows: Sequence[Sequence[tuple[str, str]]], place: int) -> tuple[tuple[str, str], ...]:
    """The assignment at a place, as the last row runs fastest."""
    found = []
    for row in reversed(rows):
        place, own = divmod(place, len(row))
        found.append(row[own])
    return tuple(reversed(found))


def _together(names: Sequence[str]) -> Iterator[list[str]]:
    """The formats that one config can name together: plain ones, and those of one method."""
    plain = [name for name in names if not form_of(name).quantised]
    methods = dict.fromkeys(form_of(name).method for name in names if form_of(name).quantised)
    for method in methods or ("",):
        yield plain + [name for name in names if form_of(name).quantised and form_of(name).method == method]


def numbers_of(counts: Mapping[str, Any], part: str) -> Any:
    """The numbers that a format of a part bears upon, of component -> numbers: of keys and values those of attention;
    none of what a cut has left nothing of."""
    return counts.get("attention" if part == KV else part, 0)


def _near_front(size: NDArray[np.int64], cost: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Places of the assignments that cost at most NEAR times what the best of no more bytes does: those that none
    beats, and at most `most` of the others, spread over their bytes."""
    order = np.lexsort((cost, size))
    best = np.minimum.accumulate(cost[order])
    beaten = np.concatenate([[False], cost[order][1:] >= best[:-1]])
    near = order[beaten & (cost[order] <= NEAR * best + 1e-12)]
    return np.sort(np.concatenate([order[~beaten], near[spread(len(near), most)]]))


def _formats(workload: Workload, counts: Mapping[str, Any], chosen: Sequence[tuple[str, str]]) -> Formats:
    parts = tuple((part, form) for part, form in chosen if part != KV)
    written = written_of(dict(parts), counts)
    main = workload.weights if written is None else written[0]
    if in_gguf(workload) and written is not None:
        # Of the mixture whose matrices mostly have this type, the embedding and the output layer take theirs.
        main = gguf_format(_mixture_of(main))
    return Formats(main, parts, dict(chosen).get(KV, ""))


@dataclass(frozen=True)
class _Bytes:
    """Bytes that a part takes in a format beyond those in the workload's own, in the whole model."""

    spec: ModelSpec
    workload: Workload

    @cached_property
    def whole(self) -> int:
        """Of the model in the workload's own formats."""
        return int(footprint(self.spec, self.workload).total)

    def added(self, part: str, form: str) -> int:
        """Of one part."""
        own = {"kv": form} if part == KV else {"keep": {**self.workload.keep, part: form}}
        return int(footprint(self.spec, replace(self.workload, **own)).total) - self.whole
