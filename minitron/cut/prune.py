"""Prune: a plan and a checkpoint in, a smaller checkpoint out, some rows of a tensor at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron.allocator import keep_freed_memory
from minitron.cut.companions import RECORD, companions, copy_companions
from minitron.cut.cutter import Cutter, Made
from minitron.cut.plan import Plan
from minitron.cut.stream_map import KEY, stream_maps, write_stream_maps
from minitron.escapes import code, markdown
from minitron.files import new_folder, refuse_existing, write_json, write_text
from minitron.model.by_layer import write_sizes
from minitron.model.checkpoint import Checkpoint
from minitron.model.dequantised import open_plain
from minitron.model.families import Extra
from minitron.model.shards import SHARD_BYTES, Entry, ShardWriter
from minitron.model.slabs import Slab, fetching, read_ahead
from minitron.model.sources import title
from minitron.model.weight_files import written
from minitron.progress import Advance, Progress, silent
from minitron.units import format_bytes, format_parameters


@dataclass(frozen=True)
class Pruned:
    """What a cut promised and wrote."""

    parameters: int
    """Numbers written, the multi-token-prediction block's among them."""

    weight_bytes: int
    """Bytes of all tensors written."""

    source_parameters: int
    source_weight_bytes: int

    extras: Mapping[str, str]
    """What became of the tensors beside the model's own: `left out` or `copied as they are` -> how many of what."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return dict(vars(self))


def prune(
    model: Path,
    plan: Plan,
    output: Path,
    *,
    overwrite: bool = False,
    dequantise: bool = False,
    shard_bytes: int = SHARD_BYTES,
    note: Mapping[str, Any] | None = None,
    done: Callable[[Pruned], None] = lambda result: None,
    progress: Progress = silent,
) -> Pruned:
    """Write to `output` what `plan` leaves of the checkpoint `model`; `note` goes into the record and the model card.
    `done` is told the result when the folder is whole and has not got its name yet.

    With `dequantise` the checkpoint is a quantised one, whose tensors are turned into bf16 one by one as they are read.
    Holds some megabytes of a tensor at a time, or one tensor where its rows are projected, beside as much read ahead
    and not written yet.  Raises MinitronError, with nothing written, where the checkpoint is not understood whole, the
    plan is another model's, or what was written is not what was promised."""
    refuse_existing(output, overwrite=overwrite, inputs=[model])
    companions(model)
    keep_freed_memory()
    spec, checkpoint, undone = open_plain(model, dequantise=dequantise)
    checkpoint.check(spec)
    names = checkpoint.stored_names(spec)
    cutter = Cutter(spec, plan, lambda name: checkpoint.tensor(names[name]))
    made = promise(checkpoint, cutter)
    promised = [entry for entries in made.values() for entry, _ in entries]
    with new_folder(output, overwrite=overwrite) as folder:
        # JSON as people write it, not ours: a config keeps the order of its keys.
        write_text(folder / "config.json", json.dumps(written(cutter.target.config), indent=2) + "\n")
        # Before anything is cut: what transformers does not build is no result.
        with fetching(checkpoint.headers[name] for name, entries in made.items() if entries):
            from minitron.model.loading import require_buildable

            require_buildable(folder, cutter.target)
        with (
            ShardWriter(folder, promised, shard_bytes=shard_bytes) as writer,
            progress("cutting", checkpoint.weight_bytes, "B") as advance,
        ):
            _write(checkpoint, cutter, made, writer, advance)
        extras = _told(checkpoint.extras(spec))
        result = Pruned(
            parameters=writer.num_parameters,
            weight_bytes=writer.weight_bytes,
            source_parameters=checkpoint.num_parameters,
            source_weight_bytes=checkpoint.stored_bytes,
            extras=extras,
        )
        Checkpoint(folder).check(cutter.target)
        told = {"parameters": result.parameters, "weight_bytes": result.weight_bytes}
        _write_rest(model, folder, cutter, told, {**(note or {}), **undone, **extras})
        done(result)
    return result


Promised = Mapping[str, "tuple[tuple[Entry, Made | None], ...]"]
"""A tensor's name -> what will be written of it, with what it is made of; None for one that is copied."""


def promise(checkpoint: Checkpoint, cutter: Cutter) -> Promised:
    """What a cut will write, from headers alone, in the order in which tensors are read."""
    extras = checkpoint.extras(cutter.spec)
    found: dict[str, tuple[tuple[Entry, Made | None], ...]] = {}
    for name in checkpoint.in_order():
        header = checkpoint.headers[name]
        if name not in extras:
            found[name] = tuple(
                (Entry(made.name, header.dtype, cutter.shape(made)), made) for made in cutter.makes(name)
            )
        else:
            found[name] = ((Entry.of(name, header), None),) if extras[name].carried else ()
    return found


def _write(checkpoint: Checkpoint, cutter: Cutter, promised: Promised, writer: ShardWriter, advance: Advance) -> None:
    """Cut and write, slab by slab; what goes is not read."""

    def slabs() -> Iterator[Slab]:
        for name, entries in promised.items():
            if entries:
                in_runs = all(made is None or cutter.in_runs(made) for _, made in entries)
                yield from checkpoint.slabs(name, whole=not in_runs)

    with closing(read_ahead(slabs())) as ahead:
        for slab, rows in ahead:
            for entry, made in promised[slab.name]:
                writer.add(entry.name, rows if made is None else cutter.cut_rows(made, rows, slab.start))
            advance(slab.num_bytes)
    advance(sum(checkpoint.headers[name].num_bytes for name, entries in promised.items() if not entries))


def _told(extras: Mapping[str, Extra]) -> dict[str, str]:
    """What became of the tensors beside the model's own, for the record and the model card."""
    found = {}
    for key, carried in (("left out", False), ("copied as they are", True)):
        counts = Counter(extra.what for extra in extras.values() if extra.carried == carried)
        if counts:
            found[key] = "; ".join(f"{count} x {what}" for what, count in counts.items())
    return found


def _write_rest(
    model: Path, folder: Path, cutter: Cutter, promised: Mapping[str, int], note: Mapping[str, Any]
) -> None:
    copy_companions(model, folder)
    plan = cutter.plan
    write_json(
        folder / RECORD,
        {
            "made_by": "minitron prune",
            "source": {"name": title(model), "config": cutter.spec.fingerprint},
            "promised": dict(promised),
            "sizes": dict(plan.sizes),
            **({"by_layer": write_sizes(plan.by_layer)} if plan.by_layer else {}),
            "layers": list(plan.layers),
            KEY: write_stream_maps(stream_maps(plan, cutter.spec, model), folder),
            "scores": plan.scores,
            "note": dict(note),
        },
    )
    write_text(folder / "README.md", model_card(model, cutter, promised, note))


def _sizes(own: Mapping[int, int]) -> str:
    return ", ".join(f"{size:,} in {layer}" for layer, size in sorted(own.items()))


def model_card(model: Path, cutter: Cutter, promised: Mapping[str, int], note: Mapping[str, Any]) -> str:
    """The README.md of a pruned checkpoint: what was done to what."""
    old, new = cutter.spec, cutter.target
    rows = [
        f"| {markdown(key)} | {size:,} | {new.named_sizes[key]:,} |"
        for key, size in old.named_sizes.items()
        if new.named_sizes.get(key, size) != size
    ]
    dropped = [layer for layer in range(len(old.layers)) if layer not in cutter.plan.layers]
    lines = [
        "---",
        "tags: [minitron, pruned]",
        "---",
        f"# {markdown(title(model))}, pruned",
        "",
        f"Cut from {code(title(model))} by Minitron. "
        f"{format_parameters(promised['parameters'])} parameters, {format_bytes(promised['weight_bytes'])} of weights. "
        "Not trained since: distil it from its parent before use (`minitron distill`).",
        "",
        "| size | parent | this model |",
        "|---|---|---|",
        *(rows or ["| (none changed) | | |"]),
        "",
        *(f"{code(key)} by layer of the parent: {_sizes(own)}.\n" for key, own in cutter.plan.by_layer.items()),
        f"Layers: {code(old.letters)} to {code(new.letters)}; dropped: {', '.join(map(str, dropped)) or 'none'}.",
        "",
    ]
    if plan_scores := cutter.plan.scores:
        lines.append(
            f"Chosen by activation importance on calibration text (SHA-256 {code(str(plan_scores['data'])[:16])}...)."
        )
    lines += [markdown(f"{key}: {value}") for key, value in note.items()]
    return "\n".join(lines) + "\n"
