"""Prune: a plan and a checkpoint in, a smaller checkpoint out, a tensor at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron.cut.basis import Basis, Cut, cut
from minitron.cut.plan import Plan
from minitron.cut.rotation import norms_read, reads_stream
from minitron.cut.selection import layer_of, norm_groups, pick
from minitron.errors import MinitronError
from minitron.files import new_folder, refuse_existing, refuse_pointer, write_json, write_text
from minitron.model.axes import EXPERT, HIDDEN
from minitron.model.checkpoint import SHARD_BYTES, Checkpoint, ShardWriter
from minitron.model.dequantised import open_plain
from minitron.model.dims import Word, axes_of, numel
from minitron.model.families import PROJECTOR, Extra, Rule
from minitron.model.headers import BITS
from minitron.model.quantised.methods import COMPANIONS
from minitron.model.sources import title
from minitron.model.spec import ModelSpec
from minitron.model.weight_files import SUFFIXES, written
from minitron.progress import Progress, silent
from minitron.units import format_bytes, format_parameters

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Callable[[str], Tensor]
    """A tensor of the model by its name in the family's first dialect."""

RECORD: Final = "minitron.json"
"""The file in which a pruned folder says what was promised of it and what it was made from."""

DISTILLATION: Final = "distillation.json"
"""What a distilled folder holds of its training: `training` of minitron/report.schema.json."""

NOT_COPIED: Final = {
    "config.json": "written anew",
    "README.md": "written anew",
    RECORD: "of the parent",
    DISTILLATION: "of the parent",
    "*.index.json": "of the parent's shards",
    "*.index.*.json": "of the parent's shards",
    "params.json": "the sizes of the parent, in its makers' format",
    "adapter_config.json": "of an adapter, whose weights are not copied",
    "trainer_state.json": "of the parent's training",
    **dict.fromkeys(COMPANIONS, "of the parent's quantisation"),
    **{f"*{suffix}": "weights" for suffix in SUFFIXES},
}
"""Names of files beside the weights that an output does not take over -> why; all others are copied."""


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


class Cutter:
    """Cuts the tensors of one model, in a file or in memory, one at a time."""

    def __init__(self, spec: ModelSpec, plan: Plan, weights: Weights | None = None) -> None:
        """`weights` gives any tensor of the model by its name in the family's first dialect: a rotated model's norms
        have their gains folded into other tensors.  Raises MinitronError where the plan is another model's or does not
        say which indices stay."""
        plan.require(spec)
        if not plan.has_indices:
            raise MinitronError("the plan names sizes but no indices; give --scores or --data to choose them.")
        self.spec, self.plan, self.target = spec, plan, plan.target(spec)
        self.weights = weights
        self._new_layer = {old: new for new, old in enumerate(plan.layers)}
        self._read = {rule: norms for rules in spec.rules.values() for rule, norms in norms_read(rules).items()}

    def place(self, name: str) -> tuple[str, Rule, dict[str, int]] | None:
        """(new name, rule, indices) of a tensor that stays; None for one that goes."""
        rule, index = self.spec.find(name)
        new = dict(index)
        if "layer" in index:
            if index["layer"] not in self._new_layer:
                return None
            new["layer"] = self._new_layer[index["layer"]]
        if EXPERT in index:
            kept = pick(self.plan.keep, EXPERT, layer_of(self.spec, index), None)
            if isinstance(kept, np.ndarray):
                rank = int(np.searchsorted(kept, index[EXPERT]))
                if rank == len(kept) or kept[rank] != index[EXPERT]:
                    return None
                new[EXPERT] = rank
        return rule.pattern.rename(name, new), rule, index

    def shape(self, rule: Rule) -> tuple[int, ...]:
        """The shape that a tensor of this rule has after the cut."""
        return tuple(int(numel(dim, self.target.sizes)) for dim in rule.dims)

    def cut(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """(new name, smaller tensor), or None where the tensor goes.  What is not cut comes back bit for bit."""
        placed = self.place(name)
        if placed is None:
            return None
        new_name, rule, index = placed
        return new_name, self._cut(tensor, rule, index, self._read.get(rule, ()))

    def untied(self, name: str) -> tuple[str, Rule] | None:
        """(name, rule) of the output layer that the cut model has of its own, where `name` is the embedding that it
        shared in the model; None for other tensors and where nothing changes."""
        rule, index = self.spec.find(name)
        for output in self.target.rules["model"]:
            if output.tied_to == rule.name and output not in self.spec.rules["model"]:
                return output.pattern.format(index), output
        return None

    def untie(self, name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        """(name, tensor) of that output layer, made from the embedding `tensor` of that name."""
        found = self.untied(name)
        if found is None:
            return None
        return found[0], self._cut(tensor, found[1], {}, norms_read(self.target.rules["model"])[found[1]])

    def _cut(self, tensor: Tensor, rule: Rule, index: Mapping[str, int], norms: tuple[Rule, ...]) -> Tensor:
        name = rule.pattern.format(index)
        if self.plan.rotates and reads_stream(rule):
            (gain,) = self.plan.gains[name]
            assert rule.norm is not None
            return tensor.new_full((self.target.sizes[HIDDEN],), gain - rule.norm.offset)
        whole = tensor
        if self.plan.rotates and norms:
            gains = _cat([self._gain(norm, index) for norm in norms]).to(tensor.device)
            whole = _widened(tensor) * (gains[:, None] if rule.transposed else gains)
        fold = self.plan.folds.get(name)
        if not rule.is_stacked:
            small = self._cut_matrix(whole, rule, index, fold)
        else:
            small = _stack(
                self._cut_matrix(whole[expert], rule, {**index, EXPERT: expert}, None if fold is None else fold[expert])
                for expert in self._experts(layer_of(self.spec, index))
            )
        return self._rescale(small, rule, name).to(tensor.dtype)

    def _cut_matrix(
        self, tensor: Tensor, rule: Rule, index: Mapping[str, int], fold: NDArray[np.float32] | None
    ) -> Tensor:
        """One expert's tensor, or one that no experts share, cut along all its dimensions."""
        layer, expert = layer_of(self.spec, index), index.get(EXPERT)

        def choose(axis: str) -> Cut | None:
            chosen = pick(self.plan.keep, axis, layer, expert)
            # Of queries and keys, which meet in a product, one side is projected and the other on the dual.
            reads = axis == rule.scaled_by or (rule.reads is not None and axis in axes_of(rule.reads))
            return chosen.flipped if isinstance(chosen, Basis) and reads else chosen

        dims = rule.matrix
        if fold is None:
            return cut(tensor, dims, self.spec.sizes, choose)
        # The inputs that stay take over what those that go can be foretold from: that cuts the inputs.
        if not rule.transposed:
            return cut(_fold(tensor, fold), dims[:-1], self.spec.sizes, choose)
        return cut(_fold(tensor.mT, fold), (dims[1],), self.spec.sizes, choose).mT.contiguous()

    def _experts(self, layer: int | None) -> Iterable[int]:
        """The experts of a layer that stay."""
        kept = pick(self.plan.keep, EXPERT, layer, None)
        return kept.tolist() if isinstance(kept, np.ndarray) else range(self.spec.num_experts)

    def _gain(self, norm: Rule, index: Mapping[str, int]) -> Tensor:
        if self.weights is None:
            raise ValueError("a rotated cut needs the weights of the model's norms")
        assert norm.norm is not None
        gain = _widened(self.weights(norm.pattern.format(index)))
        return gain + norm.norm.offset if norm.norm.offset else gain

    def _rescale(self, tensor: Tensor, rule: Rule, name: str) -> Tensor:
        wide = _widened(tensor)
        if factors := self.plan.gains.get(name):
            assert rule.norm is not None
            groups, offset = wide.reshape(norm_groups(self.spec, rule), -1), rule.norm.offset
            scale = wide.new_tensor(factors)[:, None]
            # Where the tensor holds the gain less one, it is the gain that is scaled.
            scaled = (groups + offset) * scale - offset if offset else groups * scale
            return scaled.reshape(tensor.shape).to(tensor.dtype)
        factor = self._factor(rule)
        return tensor if factor == 1 else (wide * factor).to(tensor.dtype)

    def _factor(self, rule: Rule) -> float:
        """By what a cut of an axis scales a linear that is no norm: queries by what the model divides their products
        with keys by, and writers of a scaled stream that no norm follows by what the embedding is scaled by."""
        axis = rule.scaled_by
        if self.spec.family.scales_stream(self.spec.told) and rule in self._stream_writers:
            axis = HIDDEN
        old, new = (sizes.get(axis) for sizes in (self.spec.sizes, self.target.sizes))
        return 1.0 if old is None or new is None or old == new else math.sqrt(new / old)

    @cached_property
    def _stream_writers(self) -> frozenset[Rule]:
        """The linears, biases among them, that write to the stream with no norm in between; a projector's too."""
        found: set[Rule] = set()
        for kind in dict.fromkeys((*self.spec.layers, PROJECTOR)):
            rules = self.spec.rules.get(kind, ())
            if not any(rule.norm is not None and rule.norm.role == "after" for rule in rules):
                found |= {
                    rule for rule in rules if rule.norm is None and (rule.writes or rule.matrix[0]) == Word(HIDDEN)
                }
        return frozenset(found)


def _widened(tensor: Tensor) -> Tensor:
    """In the type to reckon in: fp32, or float64 for a tensor of eight bytes a number."""
    return tensor.double() if tensor.dtype.itemsize == 8 else tensor.float()


def _fold(tensor: Tensor, fold: NDArray[np.float32]) -> Tensor:
    import torch

    wide = _widened(tensor)
    return wide @ torch.from_numpy(fold).to(wide)


def _stack(parts: Iterable[Tensor]) -> Tensor:
    import torch

    return torch.stack(list(parts))


def _cat(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(parts)


def prune(
    model: Path,
    plan: Plan,
    output: Path,
    *,
    overwrite: bool = False,
    dequantise: bool = False,
    shard_bytes: int = SHARD_BYTES,
    note: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Write to `output` what `plan` leaves of the checkpoint `model`; `note` goes into the record and the model card.

    With `dequantise` the checkpoint is a quantised one, whose tensors are turned into bf16 one by one as they are read.
    Reads one tensor and holds one output shard at a time.  Raises MinitronError, with nothing written, where the
    checkpoint is not understood whole, the plan is another model's, or what was written is not what was promised."""
    refuse_existing(output, overwrite=overwrite, inputs=[model])
    spec, checkpoint, undone = open_plain(model, dequantise=dequantise)
    checkpoint.check(spec)
    names = checkpoint.stored_names(spec)
    extras = checkpoint.extras(spec)
    cutter = Cutter(spec, plan, lambda name: checkpoint.tensor(names[name]))
    promised = promise(checkpoint, cutter)
    with new_folder(output, overwrite=overwrite) as folder:
        with (
            ShardWriter(folder, shard_bytes=shard_bytes) as writer,
            progress("cutting", checkpoint.weight_bytes, "B") as advance,
        ):
            for name, tensor in checkpoint.tensors():
                if name not in extras:
                    made = (cutter.cut(name, tensor), cutter.untie(name, tensor))
                else:
                    made = ((name, tensor) if extras[name].carried else None, None)
                for small in made:
                    if small is not None:
                        writer.add(*small)
                advance(checkpoint.headers[name].num_bytes)
        result = Pruned(
            parameters=writer.num_parameters,
            weight_bytes=writer.weight_bytes,
            source_parameters=checkpoint.num_parameters,
            source_weight_bytes=checkpoint.stored_bytes,
            extras=_told(extras),
        )
        wrote = {"parameters": result.parameters, "weight_bytes": result.weight_bytes}
        if promised != wrote:
            raise RuntimeError(f"promised {promised}, wrote {wrote}: a rule of {spec.family.name} is wrong")
        Checkpoint(folder).check(cutter.target)
        _write_rest(model, folder, cutter, promised, {**(note or {}), **undone, **result.extras})
        # Before the folder gets its name: what transformers does not build is no result.
        from minitron.model.loading import require_buildable

        require_buildable(folder)
    return result


def _told(extras: Mapping[str, Extra]) -> dict[str, str]:
    """What became of the tensors beside the model's own, for the record and the model card."""
    found = {}
    for key, carried in (("left out", False), ("copied as they are", True)):
        counts = Counter(extra.what for extra in extras.values() if extra.carried == carried)
        if counts:
            found[key] = "; ".join(f"{count} x {what}" for what, count in counts.items())
    return found


def promise(checkpoint: Checkpoint, cutter: Cutter) -> dict[str, int]:
    """{"parameters", "weight_bytes"} of what a cut will write, from headers alone."""
    parameters = weight_bytes = 0
    for name, _, _ in checkpoint.named_tensors(cutter.spec):
        for placed in (cutter.place(name), cutter.untied(name)):
            if placed is not None:
                count = math.prod(cutter.shape(placed[1]))
                parameters += count
                weight_bytes += count * BITS[checkpoint.headers[name].dtype] // 8
    for name, extra in checkpoint.extras(cutter.spec).items():
        if extra.carried:
            parameters += checkpoint.headers[name].numel
            weight_bytes += checkpoint.headers[name].num_bytes
    return {"parameters": parameters, "weight_bytes": weight_bytes}


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what stands beside the weights: tokenizer, generation config, chat template, licence."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not any(fnmatchcase(file.name, name) for name in NOT_COPIED):
            if file.suffix in (".json", ".model", ".txt", ".tiktoken"):
                refuse_pointer(file)
            # Not copy2, which carries over the mode: what is in the hub's cache is only to be read.
            shutil.copyfile(file, folder / file.name)


def _write_rest(
    model: Path, folder: Path, cutter: Cutter, promised: Mapping[str, int], note: Mapping[str, Any]
) -> None:
    copy_companions(model, folder)
    # JSON as people write it, not ours: a config keeps the order of its keys.
    write_text(folder / "config.json", json.dumps(written(cutter.target.config), indent=2) + "\n")
    plan = cutter.plan
    write_json(
        folder / RECORD,
        {
            "made_by": "minitron prune",
            "source": {"name": title(model), "config": cutter.spec.fingerprint},
            "promised": dict(promised),
            "sizes": dict(plan.sizes),
            "layers": list(plan.layers),
            "scores": plan.scores,
            "note": dict(note),
        },
    )
    write_text(folder / "README.md", model_card(model, cutter, promised, note))


def model_card(model: Path, cutter: Cutter, promised: Mapping[str, int], note: Mapping[str, Any]) -> str:
    """The README.md of a pruned checkpoint: what was done to what."""
    old, new = cutter.spec, cutter.target
    rows = [
        f"| {key} | {size:,} | {new.named_sizes[key]:,} |"
        for key, size in old.named_sizes.items()
        if new.named_sizes.get(key, size) != size
    ]
    dropped = [layer for layer in range(len(old.layers)) if layer not in cutter.plan.layers]
    lines = [
        "---",
        "tags: [minitron, pruned]",
        "---",
        f"# {title(model)}, pruned",
        "",
        f"Cut from `{title(model)}` by Minitron. "
        f"{format_parameters(promised['parameters'])} parameters, {format_bytes(promised['weight_bytes'])} of weights. "
        "Not trained since: distil it from its parent before use (`minitron distill`).",
        "",
        "| size | parent | this model |",
        "|---|---|---|",
        *(rows or ["| (none changed) | | |"]),
        "",
        f"Layers: `{old.letters}` to `{new.letters}`; dropped: {', '.join(map(str, dropped)) or 'none'}.",
        "",
    ]
    if plan_scores := cutter.plan.scores:
        lines.append(f"Chosen by activation importance on calibration text (SHA-256 `{plan_scores['data'][:16]}...`).")
    lines += [f"{key}: {value}" for key, value in note.items()]
    return "\n".join(lines) + "\n"
