"""The tables in the documents, made from the tables in the code: `make docs-tables`.

Two comments mark the place of a table in a document; the text between them is replaced:

    <!-- table: estimators -->
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from cli.old_names import OLD_NAMES
from distill.losses.divergences import DEFAULT_LOSS, DIVERGENCES
from distill.run.recipe_file import bundled, read_recipe
from importance.score.estimators import DEFAULTS, ESTIMATORS, FALLBACK
from minitron.cut.rotation import binding_norm
from minitron.engines.table import ENGINES, ServingEngine
from minitron.files import write_text
from minitron.memory.formats import FORMATS, HEAD_ENGINES
from minitron.memory.ggml import MIXTURES, TYPES
from minitron.memory.gguf_families import RUN, SEEN
from minitron.memory.gpus import GPUS
from minitron.model.axes import AXES, EXPERT, Axis
from minitron.model.families import FAMILIES, UNSUPPORTED, WRAPPERS
from minitron.model.matrix_layout import Layout

ROOT: Final = Path(__file__).parent.parent
FACTS: Final = ROOT / "tests/reference/families_facts.json"
"""Published models, counted with transformers on the meta device."""

BLOCK: Final = re.compile(r"^<!-- table: (.*?) -->\n(.*?)^(<!-- (?:end|table: .*?) -->|\Z)", re.DOTALL | re.MULTILINE)

Rows = Iterator[tuple[str, ...]]
"""Cells, the first row the heads of the columns; a head that ends in `:` is of a column of numbers."""


def _code(name: str) -> str:
    return f"`{name}`"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _estimators() -> Rows:
    yield "name", "a channel is scored by", "source", "`best` uses it for"
    for name, estimator in ESTIMATORS.items():
        axes = [_code(axis) for axis, default in sorted(DEFAULTS.items()) if default is estimator]
        taken = "every other axis" if name == FALLBACK else ", ".join(axes)
        yield _code(name), estimator.summary, estimator.source, taken


def _losses() -> Rows:
    yield "`--loss`", "minimises", "source"
    for name, entry in DIVERGENCES.items():
        typed = _code(name) if entry.parameter is None else f"`{name}:{entry.letter}` ({entry.parameter:g})"
        yield typed + (" (default)" if name == DEFAULT_LOSS else ""), entry.summary, entry.source


def _recipes() -> Rows:
    yield "`--recipe`", "stages", "learning rate"
    for name in bundled():
        stages = [stage.recipe for stage in read_recipe(Path(name))]
        told = ", then ".join(
            f"{stage.total_tokens / 1e9:,.3g} B tokens in sequences of {stage.sequence_length:,}"
            + (f" (`--train {stage.train}`)" if stage.train != "all" else "")
            for stage in stages
        )
        yield _code(name), told, ", ".join(f"{stage.learning_rate:g}" for stage in stages)


_USES: Final = {"kv": "keys and values", "state": "states", "conv": "inputs of convolutions"}


def _formats() -> Rows:
    yield "name", "bits:", "with the scales of groups:", "may keep", "layout", "origin", "source"
    for name, form in FORMATS.items():
        if form.gguf:
            continue
        uses = ", ".join(_USES.get(use, use) for use in form.uses)
        bits = (_number(form.bits), _number(float(form.bits_with_scales)))
        yield _code(name), *bits, uses, form.note, form.origin, form.source


def _kept() -> Rows:
    yield "name", "keys and values: bytes of a head of 128", "their scales", "a state's channel of 128", "engines"
    for name, form in FORMATS.items():
        if "kv" in form.uses or "state" in form.uses:
            kv, state = form.kept("kv"), form.kept("state")
            kept = [
                _number(layout.rows(1, 128)) if use in form.uses else "-"
                for use, layout in (("kv", kv), ("state", state))
            ]
            engines = [
                f"{engine.title}: {_engine_keeps(engine, name)}" for engine in ENGINES.values() if engine.kv is not None
            ]
            yield _code(name), kept[0], _scale(kv), kept[1], "; ".join(engines)


def _engine_keeps(engine: ServingEngine, name: str) -> str:
    kv, states = name in (engine.kv or {}), name in (engine.states or {})
    majors = engine.kv_on.get(name)
    on = "" if majors is None else f" (compute capability {', '.join(map(str, majors))})"
    told = [f"keys and values{on}"] * kv + ["states"] * states
    return " and ".join(told) or "neither"


_SCALES: Final = {1: "E4M3", 2: "fp16", 4: "fp16 and a minimum in fp16"}
"""Bytes that a group shares -> what they are."""


def _scale(layout: Layout) -> str:
    told = ["fp32 a head and token"] * bool(layout.row_bytes) + [
        f"{_SCALES.get(layout.group_bytes)} for {layout.group}"
    ] * bool(layout.group)
    return ", ".join([*told, *(["fp32 a layer, in the checkpoint"] * bool(layout.matrix_bytes))]) or "-"


def _written() -> Rows:
    yield (
        "`--format`",
        "layout of",
        "inputs of linears",
        "tensor cores of",
        "unpacked to 16 bits on",
        "refused on",
    )
    inputs = {"": "stay in 16 bits", "static": "one scale from `--data`", "token": "scaled token by token"}
    for name, form in FORMATS.items():
        if form.written:
            sides: list[list[str]] = [[], [], []]
            for gpu in GPUS.values():
                if gpu.capability is not None:
                    native = form.native is not None and gpu.capability >= form.native
                    runs = form.least is not None and gpu.capability >= form.least
                    sides[0 if native else 1 if runs else 2].append(gpu.name)
            yield _code(name), form.method, inputs[form.inputs], *map(_shortly, sides)


def _engines() -> Rows:
    columns = ("vLLM", "SGLang", "TensorRT-LLM", "transformers")
    words = {"run": "run here", "loaded": "files read here", "read": "code read", "told": "documented"}
    yield "`--format`", *columns, "an output layer in it"
    for name, form in FORMATS.items():
        if form.written:
            seen = dict(form.engines)
            heads = ", ".join(f"{engine}: {words[known]}" for engine, known in HEAD_ENGINES[form.method])
            yield _code(name), *(words[seen[engine]] if engine in seen else "no" for engine in columns), heads


def _shortly(names: list[str]) -> str:
    """All of some GPUs' names, or none."""
    known = sum(gpu.capability is not None for gpu in GPUS.values())
    return "all" if len(names) == known else ", ".join(names) or "-"


def _gguf() -> Rows:
    yield "`--format`", "most matrices", "bits a weight there:", "others", "needs an importance matrix"
    for name, mixture in MIXTURES.items():
        form = TYPES[mixture.most]
        others = dict.fromkeys(one.type for one in mixture.choices if one.type != mixture.most)
        needs = "where rows are whole blocks" if mixture.calibrated else ""
        bits = _number(8 * form.block_bytes / form.block)
        yield _code(name), _code(mixture.most), bits, ", ".join(map(_code, others)), needs


def _gguf_families() -> Rows:
    yield "family", "run here", "refused where it has", "else refused, because"
    for name in sorted({family.name for family in FAMILIES.values()}):
        limits = RUN.get(name)
        if limits is None:
            yield _code(name), "no", "", SEEN.get(name, "it was not tried")
        else:
            yield _code(name), "yes", "; ".join(limit.told for limit in limits) or "-", ""


def _gpus() -> Rows:
    yield "name", "usable, GiB:", "GB/s:", "BF16, TFLOP/s:", "FP8:", "NVFP4:", "compute capability:", "source"
    for name, gpu in GPUS.items():
        numbers = map(_number, (gpu.usable_GiB, gpu.bandwidth, gpu.bf16, gpu.fp8, gpu.nvfp4))
        capability = "" if gpu.capability is None else ".".join(map(str, gpu.capability))
        shared = "; memory shared with the CPU" if gpu.unified else ""
        yield name, *numbers, capability, gpu.source + shared


def _families() -> Rows:
    yield "family", "`model_type`", "layers (models)"
    for family in {family.name: family for family in FAMILIES.values()}.values():
        yield _code(family.name), ", ".join(map(_code, family.model_types)), family.summary
    for wrapper in WRAPPERS.values():
        yield _code(wrapper.model_type), _code(wrapper.model_type), f"a language model inside ({wrapper.summary})"


def _kinds() -> Rows:
    yield "kind", "`model_type`"
    found: dict[str, list[str]] = {}
    for model_type, family in FAMILIES.items():
        keeps_state = any(cache.keeps_state for cache in family.cache.values())
        attends = any(cache.keys_values for cache in family.cache.values())
        kind = (
            "hybrids of attention and state spaces, delta nets or convolutions"
            if keeps_state and attends
            else "state spaces alone"
            if keeps_state
            else "decoders with mixtures of experts"
            if EXPERT in family.axes
            else "dense decoders"
        )
        found.setdefault(kind, []).append(_code(model_type))
    found["models that also see or hear: the language model inside"] = [_code(name) for name in WRAPPERS]
    for kind, types in found.items():
        yield kind, ", ".join(types)


def _cuts() -> Rows:
    yield "`model_type`", "can be cut", "cut along", "fixed", "hidden", "refused", "published models, exact"
    published: dict[str, list[str]] = {}
    for name, facts in json.loads(FACTS.read_text(encoding="utf-8")).items():
        published.setdefault(facts["model_type"], []).append(name)
    for model_type, family in sorted(FAMILIES.items()):
        axes = family.axes.values()
        yield (
            _code(model_type),
            _labels(axis for axis in axes if axis.name not in family.fixed),
            _labels(axis for axis in axes if axis.follows),
            _labels(axis for axis in axes if axis.fixed),
            "selected" if binding_norm(family.rules) else "rotated",
            ", ".join(map(_code, family.refused)),
            ", ".join(published.get(model_type, [])),
        )


def _lattice() -> Rows:
    yield "axis", "name", "multiples of:", "or less, so that a size holds:", "pruned at most:", "because"
    searched = [axis for axis in AXES.values() if axis.step.most and not axis.fixed]
    for label, step in dict.fromkeys((axis.label, axis.step) for axis in searched):
        names = ", ".join(_code(axis.name) for axis in searched if axis.label == label)
        halved = _number(step.fewest) if step.multiple > step.smallest else ""
        yield label, names, _number(step.multiple), halved, f"{step.most:.0%}", step.reason


def _inside() -> Rows:
    yield "`model_type`", "language model inside", "carried as it is", "cut with hidden", "hidden", "refused"
    for model_type, wrapper in sorted(WRAPPERS.items()):
        family = FAMILIES[wrapper.families.get(wrapper.text, wrapper.text)]
        # The first of the dialects that a name has, in memory.
        written = [re.sub(r"\(([^|)]*)\|[^)]*\)", r"\1", rule.name) for rule in wrapper.projector]
        yield (
            _code(model_type),
            _code(wrapper.text),
            ", ".join(map(_code, wrapper.carried)),
            ", ".join(_code(name.removeprefix("model.")) for name in written),
            "selected" if binding_norm(family.rules) else "rotated",
            ", ".join(map(_code, wrapper.refused)),
        )


def _labels(axes: Iterable[Axis]) -> str:
    return ", ".join(dict.fromkeys(axis.label for axis in axes))


def _fixed() -> Rows:
    yield "fixed", "why", "in"
    found: dict[tuple[str, str], list[str]] = {}
    for model_type, family in sorted(FAMILIES.items()):
        for axis in family.axes.values():
            if axis.fixed:
                found.setdefault((axis.label, axis.fixed), []).append(_code(model_type))
    for (label, why), types in found.items():
        yield label, why, "all" if len(types) == len(FAMILIES) else ", ".join(types)


def _refused() -> Rows:
    yield "config key", "set to a true value means", "refused in"
    found: dict[tuple[str, str], list[str]] = {}
    for model_type, family in sorted(FAMILIES.items()):
        for key, why in family.refused.items():
            found.setdefault((key, why), []).append(_code(model_type))
    for (key, why), types in found.items():
        yield _code(key), why, ", ".join(types)


def _unsupported() -> Rows:
    yield "`model_type`", "what no table can say of it"
    for model_type, why in UNSUPPORTED.items():
        yield _code(model_type), why


def _old_names() -> Rows:
    yield "before", "now", "in"
    found: dict[tuple[str, str], list[str]] = {}
    for command, names in OLD_NAMES.items():
        for old, new in names.items():
            found.setdefault((old, new), []).append(_code(command))
    for (old, new), commands in found.items():
        yield _code(old), _code(new), ", ".join(commands)


TABLES: Final[dict[str, Callable[[], Rows]]] = {
    "estimators": _estimators,
    "losses": _losses,
    "recipes": _recipes,
    "formats": _formats,
    "kept": _kept,
    "written": _written,
    "engines": _engines,
    "gguf": _gguf,
    "gguf-families": _gguf_families,
    "gpus": _gpus,
    "kinds": _kinds,
    "families": _families,
    "cuts": _cuts,
    "inside": _inside,
    "lattice": _lattice,
    "fixed": _fixed,
    "refused": _refused,
    "unsupported": _unsupported,
    "old-names": _old_names,
}
"""name in a marker -> its rows."""


def table(name: str) -> str:
    """A table in Markdown."""
    heads, *rows = TABLES[name]()
    rule = "".join("|--:" if head.endswith(":") else "|---" for head in heads) + "|"
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    first, *rest = (f"| {' | '.join(row)} |" for row in ([head.removesuffix(":") for head in heads], *cells))
    return "\n".join([first, rule, *rest, ""])


def filled(text: str, document: str) -> str:
    """`text` with every marked block written anew; raises ValueError where a marker names no table or has no end."""

    def fill(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise ValueError(f"{document}: no table is called {found[1]!r}; choose {', '.join(TABLES)}")
        if found[3] != "<!-- end -->":
            raise ValueError(f"{document}: the table {found[1]} has no <!-- end -->")
        return f"<!-- table: {found[1]} -->\n{table(found[1])}<!-- end -->"

    return BLOCK.sub(fill, text)


def documents() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Write every document whose tables are stale."""
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := filled(text, path.name)) != text:
            write_text(path, new)


if __name__ == "__main__":
    main()
