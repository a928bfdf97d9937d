"""The memory law of one model as data: every line of its footprint as an expression over what is asked.

    document = law(spec, workload_of(spec, 8192))
    read(document, "vllm", {"context": 131072, "batch": 4, "gpus": 1, "step_tokens": 2048, "weights": "fp8", ...})

The expressions are what the functions of the law return when they are given expressions
(minitron.memory.expressions): there is no second law.  What is asked is the context, the batch, the GPUs among which
tensors are split, the tokens of a step, and the formats of weights, keys and values, recurrent states and convolution
states; all else is as in the workload.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Final

from minitron.engines.keeping import Kept
from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.caches import keeps_states, kept, require_whole_blocks
from minitron.memory.expressions import Expression, Writer, choice, value, variable
from minitron.memory.footprint import Counted, Footprint, kv_scales, lines_of, model_weights
from minitron.memory.formats import FORMATS, STORED, formats_for
from minitron.memory.parallel import per_gpu, splits
from minitron.memory.precision import gguf_tally, is_even, precision_of, shaped_tally
from minitron.memory.serve_line import vllm_template
from minitron.memory.workload import Workload, workload_of
from minitron.model.spec import ModelSpec

NUMBERS: Final = ("context", "batch", "gpus", "step_tokens")
"""What is asked as a whole number."""

WORDS: Final = ("weights", "kv", "ssm_state", "conv_state")
"""What is asked as a format: fields of Workload."""

SPLITS: Final = (1, 2, 4, 8, 16)
"""GPUs among which a page offers to split a model."""


def law(
    spec: ModelSpec,
    workload: Workload,
    workspace: int | None = None,
    model: str = "MODEL",
    shape: Shape | None = None,
) -> dict[str, Any]:
    """The law under every engine that reads the model, and which formats may be asked for, with those that are meant
    where nobody says otherwise; and the command with which vLLM serves `model`.

    `workspace`: bytes, or None for the engine's estimate.  With a `shape` it is the law of all models of its sizes."""
    writer, opened, engines = Writer(), _Open(spec, workload, shape), {}
    gpus = [count for count in SPLITS if shape is not None or splits(spec, spec.sizes, count)]
    for name in ENGINES if shape is None else _SHAPED:
        try:
            offered = _offered(spec, workload, name)
        except MinitronError:
            continue
        if shape is not None:
            offered = _shaped(spec, offered)
        lines = opened.lines(offered, workspace)
        engines[name] = {
            "lines_index": {line: writer.write(found) for line, found in lines.items()},
            "numbers_index": {"max_num_seqs": writer.write(opened.of(offered.start).max_num_seqs)},
            "asked": _words(offered.start),
            "formats": {word: list(forms) for word, forms in offered.formats.items()},
            "computed": {form: _computed(spec, offered.start, form) for form in offered.formats["weights"]},
            "one_gpu": [form for form in offered.formats["weights"] if _is_gguf(form)],
            "serve": vllm_template(model, spec, offered.start, offered.formats, gpus) if name == "vllm" else [],
        }
    return {
        "nodes": writer.nodes,
        "engines": engines,
        "split_gpus": gpus,
        **opened.splits(writer),
    }


def read(document: Mapping[str, Any], engine: str, asked: Mapping[str, Any]) -> dict[str, int]:
    """The lines of the footprint where `asked` is what is asked: NUMBERS and WORDS by name."""
    lines = document["engines"][engine]["lines_index"]
    return {name: value(document["nodes"], place, asked) for name, place in lines.items()}


@dataclass(frozen=True)
class _Offered:
    """What may be asked of one engine."""

    start: Workload
    """What is asked at first."""

    formats: Mapping[str, tuple[str, ...]]
    """word -> the formats."""


def _words(workload: Workload) -> dict[str, str]:
    return {word: getattr(workload, word) for word in WORDS}


def _is_gguf(form: str) -> bool:
    return form != STORED and bool(FORMATS[form].gguf)


def _offered(spec: ModelSpec, workload: Workload, name: str) -> _Offered:
    """What may be asked of an engine; raises MinitronError where it does not read such a model."""
    start = _start(spec, workload, name)
    known = {
        "weights": (*formats_for("weights"), *((STORED,) if spec.quantisation is not None else ())),
        "kv": formats_for("kv") if _attends(spec) else (start.kv,),
        "ssm_state": formats_for("state") if keeps_states(spec) else (start.ssm_state,),
        "conv_state": formats_for("conv"),
    }
    works = {word: tuple(form for form in known[word] if _works(spec, start, word, form)) for word in WORDS}
    return _Offered(start, works)


def _shaped(spec: ModelSpec, offered: _Offered) -> _Offered:
    """Without formats of which some layers of a kind have one and others another, and files of GGUF."""

    def even(form: str) -> bool:
        precision = precision_of(spec, form)
        return not _is_gguf(form) and (precision.uniform is not None or is_even(spec, precision))

    weights = tuple(form for form in offered.formats["weights"] if form != STORED and even(form))
    return replace(offered, formats={**offered.formats, "weights": weights})


def _attends(spec: ModelSpec) -> bool:
    return any(cache is not None and cache.keys_values for cache in map(spec.cache, dict.fromkeys(spec.layers)))


def _start(spec: ModelSpec, workload: Workload, name: str) -> Workload:
    """The same workload of another engine, in the formats that the config decides there."""
    if workload.engine.name == name:
        return workload
    engine = replace(workload.engine, name=name)
    more: dict[str, Any] = {"vision_encoder": workload.vision_encoder, "keep": workload.keep}
    if ENGINES[name].files == "gguf":
        engine = replace(engine, max_num_seqs=None, max_num_batched_tokens=ENGINES[name].step_tokens or 1)
    else:
        more |= {field: getattr(workload, field) for field in ("speculative_tokens", "lora_rank", "loras")}
    found = workload_of(spec, workload.context, workload.batch, engine=engine, **more)
    precision_of(spec, found.weights, found.keep)
    require_whole_blocks(spec, found)
    return found


def _computed(spec: ModelSpec, start: Workload, weights: str) -> dict[str, str]:
    """The formats of keys and values and of convolution states that go with one of weights."""
    found = workload_of(spec, 1, weights=weights, engine=start.engine)
    return {"kv": found.kv, "conv_state": found.conv_state}


def _works(spec: ModelSpec, start: Workload, word: str, form: str) -> bool:
    try:
        changed = replace(start, tensor_parallel=1, **{word: form})  # type: ignore[arg-type]
        precision_of(spec, changed.weights, changed.keep)
        require_whole_blocks(spec, changed)
    except MinitronError:
        return False
    return True


@dataclass(frozen=True)
class Shape:
    """Sizes and counts that are asked too: the law is then that of every model with the same tensors."""

    sizes: Mapping[str, Any]
    """axis -> an expression, or a whole number."""

    counts: Mapping[str, Any]
    """kind -> layers, likewise."""


_SHAPED: Final = ("plain", "vllm")
"""The engines whose law does not ask which layer stands where."""


@dataclass(frozen=True, eq=False)
class _Open:
    """The parts of a model's law that no engine changes, with what is asked left open."""

    spec: ModelSpec
    workload: Workload
    shape: Shape | None = None

    @property
    def sizes(self) -> Mapping[str, Any]:
        """axis -> size of the whole model."""
        return self.spec.sizes if self.shape is None else self.shape.sizes

    @property
    def counts(self) -> Mapping[str, Any]:
        """kind -> layers."""
        return self.spec.kind_counts() if self.shape is None else self.shape.counts

    def splits(self, writer: Writer) -> dict[str, Any]:
        """Of a shape, whether it can be split among each of SPLITS: the place of a node that is then 1."""
        if self.shape is None:
            return {}
        return {"splits_index": {str(count): writer.write(splits(self.spec, self.sizes, count)) for count in SPLITS}}

    @cached_property
    def opened(self) -> Workload:
        """The workload with expressions in place of its numbers, which it could not check."""
        return self.of(self.workload)

    def of(self, workload: Workload) -> Workload:
        """Another workload, opened likewise."""
        found, engine = copy.copy(workload), copy.copy(workload.engine)
        object.__setattr__(engine, "max_num_batched_tokens", variable("step_tokens"))
        for field in ("context", "batch"):
            object.__setattr__(found, field, variable(field))
        object.__setattr__(found, "tensor_parallel", variable("gpus"))
        object.__setattr__(found, "engine", engine)
        return found

    @cached_property
    def local(self) -> dict[str, Any]:
        """axis -> size on one GPU."""
        return per_gpu(self.spec, self.sizes, variable("gpus"))

    @cache  # noqa: B019
    def kept(self, word: str, form: str) -> Kept:
        """What layers keep where one word is `form`."""
        return kept(self.spec, _with(self.opened, word, form), self.local, self.counts)

    def keep(self, offered: _Offered) -> Kept:
        """What layers keep, each part of it in its own format."""

        def part(place: int, name: str, word: str) -> Any:
            return choice(
                word, {form: getattr(self.kept(word, form).caches[place], name) for form in offered.formats[word]}
            )

        caches = self.kept("kv", offered.start.kv).caches
        return Kept(
            tuple(
                replace(one, **{name: part(place, name, word) for name, word in _PARTS.items()})
                for place, one in enumerate(caches)
            )
        )

    @cache  # noqa: B019
    def weights(self, form: str) -> tuple[Any, Any]:
        """Bytes of the weights in a format, and of the multi-token-prediction block."""
        counts, sizes = self.counts, self.local
        precision = precision_of(self.spec, form, self.workload.keep)
        tally = None
        if self.shape is not None and precision.uniform is None:
            tally = shaped_tally(self.spec, precision, counts)
        if _is_gguf(form):
            # On one GPU.  A tally for all that a search could leave would take ten times as long.
            sizes = dict(self.spec.sizes)
            tally = gguf_tally(self.spec, precision)
        return model_weights(self.spec, _with(self.opened, "weights", form), sizes, counts, tally)

    def scales(self, form: str, offered: _Offered) -> Any:
        """Scales of keys and values that a checkpoint in that format holds."""
        asked = _with(self.opened, "weights", form)
        each = {kv: kv_scales(self.spec, _with(asked, "kv", kv), self.kept("kv", kv)) for kv in offered.formats["kv"]}
        return choice("kv", each)

    def lines(self, offered: _Offered, workspace: int | None) -> dict[str, Any]:
        """The lines that are there at some setting."""
        forms = offered.formats["weights"]
        counted = Counted(
            self.sizes,
            self.local,
            self.counts,
            choice("weights", {form: self.weights(form)[0] + self.scales(form, offered) for form in forms}),
            choice("weights", {form: self.weights(form)[1] for form in forms}),
            self.keep(offered),
        )
        found = lines_of(self.spec, self.of(offered.start), workspace, counted)
        return {name: found[name] for name in Footprint().lines if not _is_zero(found.get(name, 0))}


_PARTS: Final = {"token": "kv", "conv": "conv_state", "state": "ssm_state"}
"""Part of what a layer keeps -> whose format it has."""


def _is_zero(found: Any) -> bool:
    return not isinstance(found, Expression) and int(found) == 0


def _with(opened: Workload, word: str, form: str) -> Workload:
    """The same in another format, unchecked."""
    found = copy.copy(opened)
    object.__setattr__(found, word, form)
    return found


__all__ = ["NUMBERS", "SPLITS", "WORDS", "law", "read"]
