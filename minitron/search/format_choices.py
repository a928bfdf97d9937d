"""Formats of a model's parts as a dimension of the lattice: which assignments are worth a try.

A checkpoint's parts (attention, Mamba, MLP, routed experts ...) may each be kept in a format of their own, as far as
one config can name them together.  Of all assignments only those near the front of (bytes, damage) are tried, with the
damage of a part that is kept in a format told by a prior, or by what was measured of it.

The prior is a rate-distortion law: the outputs of a linear err by the mean square by which its weights do, and KL grows
with that mean square, as it grows with the share cut to the power EXPONENT.  So numbers of the relative error D
(minitron.memory.formats.Format.relative_error) cost what cutting a share SENSITIVITY * D^(1 / EXPONENT) of them would.
What parts lose adds up, each weighed by the numbers that a token uses of it: of routed experts those it is sent to.
Errors of the output layer are errors of all logits, and those of the embedding of all that the first layer reads,
however many numbers there are: each weighs as a share of all numbers that a token uses (OUTSIDE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.arrays import spread
from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.formats import gguf_format
from minitron.memory.ggml import MIXTURES, TYPES
from minitron.memory.questions import in_gguf
from minitron.memory.workload import Workload
from minitron.model.spec import ModelSpec
from minitron.model.tensors import Parameters
from minitron.search.offered_formats import EMBEDDING, HEAD, form_of, forms_for, parts_of, projecting

EXPONENT: Final = 1.5
"""A loss grows as this power of the share cut: axes of the built-in model have 1.4 to 1.8."""

SENSITIVITY: Final = 1.4
"""What int4 with feedback cost SmolLM2-135M (KL 0.105) and the built-in model (0.0047) beside a cut to 80 % of their
bytes (0.40 and 0.05) gives 0.9 to 1.9 (benchmarks/RESULTS.md)."""

OUTSIDE: Final[Mapping[str, float]] = {HEAD: 0.7, EMBEDDING: 0.35}
"""Part outside layers -> the share of all numbers that a token uses as which it counts.  Of the built-in model they
lost 0.58 to 0.76, and 0.27 to 0.35, of what all parts in layers lost together in one type (benchmarks/outside.py)."""

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

MANY: Final = 2**16
"""So many assignments of some parts are looked at; of more those near the front."""


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
    kept = [one.of for one in formats]
    return {
        name: np.array([form_of(one[name]).relative_error if name in one else 0.0 for one in kept])
        for name in dict.fromkeys(name for one in kept for name in one)
    }


def errors_of(counts: Parameters, formats: Mapping[str, str]) -> dict[str, float]:
    """What is kept -> its part of the relative error of a model with these parameters, each weighed by the share that a
    token uses of it."""
    return {
        part: float(weight_of(counts, part) / counts.active * form_of(form).relative_error)
        for part, form in formats.items()
    }


def worth(kept: Any, error: Any) -> Any:
    """What is left of a model of which a share `kept` stays with a relative error of so much: the share to which a cut
    alone would lose as much, by the prior; less than 0 where that is more than all."""
    cut = np.maximum(1.0 - kept, 0.0)
    return 1.0 - (cut**EXPONENT + SENSITIVITY**EXPONENT * error) ** (1.0 / EXPONENT)


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
        fixed = {part: workload.weights for part, usual in projecting(spec).items() if not usual} | fixed
    counts, bytes_of = spec.parameters(), _Bytes(spec, workload)

    def cost_of(part: str, form: str) -> float:
        if damage is not None:
            return damage[part, form]
        return float(weight_of(counts, part)) * form_of(form).relative_error

    found: dict[Formats, tuple[int, float]] = {}
    for forms in _together(names):
        rows = [[(part, form) for form in forms_for(part, forms, workload)] for part in parts]
        rows += [[(KV, form) for form in kv]] if kv else []
        if not rows:
            break
        front = _front(rows, bytes_of.added, cost_of, most)
        for chosen, size, cost in front:
            one = replace(_formats(workload, counts.by_component, chosen), fixed=tuple(fixed.items()), state=state)
            found.setdefault(one, (size, cost))
    if not found:
        raise MinitronError(f"no part of this model can be kept in {', '.join(names)}; drop --formats, or name others.")
    order = sorted(found, key=lambda one: (-found[one][0], found[one][1]))
    return tuple(order[place] for place in spread(len(order), most).tolist())


def _front(
    rows: Sequence[Sequence[tuple[str, str]]],
    bytes_of: Callable[[str, str], int],
    cost_of: Callable[[str, str], float],
    most: int,
) -> Iterator[tuple[tuple[tuple[str, str], ...], int, float]]:
    """(assignment, bytes, damage) near the front, of all that take one (part, format) of each row.

    Bytes and damage add up, so that of what a few rows come to only what is near the front can be near it in the end:
    the others go as soon as there are many."""
    size, cost = np.array([0], dtype=np.int64), np.array([0.0])
    places: NDArray[np.int64] = np.zeros((1, 0), dtype=np.int64)
    for row in rows:
        size = np.add.outer(size, [bytes_of(*pair) for pair in row]).reshape(-1)
        cost = np.add.outer(cost, [cost_of(*pair) for pair in row]).reshape(-1)
        own = np.tile(np.arange(len(row)), len(places))
        places = np.concatenate([np.repeat(places, len(row), axis=0), own[:, None]], axis=1)
        if len(size) > MANY:
            near = _near_front(size, cost, MANY // 4)
            size, cost, places = size[near], cost[near], places[near]
    for place in _near_front(size, cost, most).tolist():
        chosen = tuple(row[own] for row, own in zip(rows, places[place].tolist(), strict=True))
        yield chosen, int(size[place]), float(cost[place])


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


def weight_of(counts: Parameters, part: str) -> Any:
    """The numbers by which the prior weighs what a part loses: those that a token uses of it, and of what is outside
    layers its share of all; of an embedding that is the output layer too both shares.  None of what a cut has left."""
    if part not in OUTSIDE:
        return numbers_of(counts.active_by_component, part)
    both = part == EMBEDDING and HEAD not in counts.active_by_component
    return counts.active * (OUTSIDE[EMBEDDING] + OUTSIDE[HEAD] if both else OUTSIDE[part])


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
