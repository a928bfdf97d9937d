"""What embedding and output layer lose in the types of ggml, and what choosing theirs gains at the same bytes.

    python benchmarks/outside.py --work runs/outside [--model PARENT --calibration TRAIN --text HELDOUT]

Each part of the model alone is rounded to each type by ggml's own quantiser, as `compress --engine llama.cpp` does.  By
these losses the types of all parts are chosen that fit some shares of the bytes of bf16: once with embedding and output
layer among them, once with both as llama.cpp's mixture has them.  Both choices are measured on other text.  The tables
go into benchmarks/RESULTS.md.  A run that was stopped goes on.
"""

import argparse
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from results import RESULTS, write_section

from importance.rounding.in_types import round_in_types
from minitron import builtin
from minitron.errors import MinitronError
from minitron.files import read_json, write_json
from minitron.measure.quality import Teacher, measure_quality
from minitron.measure.text import token_blocks
from minitron.memory.footprint import footprint
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec
from minitron.search.format_choices import Formats, format_choices, types_written, weight_of
from minitron.search.offered_formats import EMBEDDING, GGML, HEAD, form_of, parts_of

CPU: Final = torch.device("cpu")
SHARES: Final = (0.45, 0.3, 0.22)
LENGTH: Final = 512


class Bench:
    """A model, and what is known of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        """The model in fp32, as it is."""
        self.options, self.spec = options, read_spec(options.model)
        self.model = load_model(options.model, dtype=torch.float32, device=CPU)
        self.teacher, tokenizer = Teacher(self.model), load_tokenizer(options.model)
        self.by = token_blocks(tokenizer, options.calibration, sequence_length=LENGTH, samples=8)
        blocks = token_blocks(tokenizer, options.text, sequence_length=LENGTH, samples=2 * options.samples)
        self.judging, self.heldout = blocks[: options.samples], blocks[options.samples :]
        self.store = options.work / "measured.json"
        self.known: dict[str, float] = dict(read_json(self.store)) if self.store.exists() else {}

    @cached_property
    def workload(self) -> Workload:
        """A GGUF file in bf16."""
        return workload_of(self.spec, LENGTH, engine=Engine("llama.cpp"))

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Those that have types."""
        return parts_of(self.spec, self.workload)

    def kl(self, mixture: str, own: Mapping[str, str], *, heldout: bool = False) -> float:
        """KL to the model of a file in a mixture and in types of its own, on the text that choices go by or another."""
        key = json.dumps([mixture, dict(sorted(own.items())), heldout])
        if key not in self.known:
            small = copy.deepcopy(self.model)
            round_in_types(small, self.spec, mixture, own, self.by, batch_size=4)
            blocks = self.heldout if heldout else self.judging
            found = measure_quality(small, blocks, teacher=self.teacher, batch_size=4).kl_to_teacher
            assert found is not None
            self.known[key] = found
            write_json(self.store, self.known)
        return self.known[key]

    def damage(self) -> dict[tuple[str, str], float]:
        """(part, type) -> KL of that alone, the rest in fp32."""
        plain = dict.fromkeys(self.parts, "f32")
        return {
            (part, kind): self.kl("f32", plain | {part: kind}) if form_of(kind).quantised else 0.0
            for part in self.parts
            for kind in GGML
        }

    def bytes_of(self, formats: Formats) -> int:
        """Of the weights."""
        return int(footprint(self.spec, formats.on(self.workload)).weights)

    def chosen(self, damage: Mapping[tuple[str, str], float], budget: int, *, outside: bool) -> Formats:
        """What loses least by `damage` within the bytes; without `outside` embedding and output layer are as the file's
        mixture has them, which no sum of losses tells: of all that fit the one that loses least by the others."""
        found = []
        for one in format_choices(self.spec, self.workload, GGML, damage=damage, most=4096):
            inside = tuple(pair for pair in one.parts if pair[0] not in (HEAD, EMBEDDING))
            own = one if outside else replace(one, parts=inside)
            if self.bytes_of(own) <= budget:
                found.append((sum(damage[pair] for pair in own.parts), -self.bytes_of(own), str(own.parts), own))
        return min(found)[-1]


def damages(bench: Bench) -> Iterator[str]:
    """The table of what each part loses."""
    damage, counts = bench.damage(), bench.spec.parameters()
    kinds = [kind for kind in GGML if form_of(kind).quantised]
    yield "| part | of the numbers a token uses | " + " | ".join(kinds) + " | KL / D, q4_k | the prior's weight |"
    yield "|---|--:|" + "--:|" * (len(kinds) + 2)
    for part in bench.parts:
        share = counts.active_by_component[part] / counts.active
        losses = " | ".join(f"{damage[part, kind]:.5f}" for kind in kinds)
        rate = damage[part, "q4_k"] / form_of("q4_k").relative_error
        yield f"| {part} | {share:.1%} | {losses} | {rate:.3f} | {float(weight_of(counts, part) / counts.active):.2f} |"


def choices(bench: Bench) -> Iterator[str]:
    """The table of both choices."""
    damage, counts = bench.damage(), bench.spec.parameters().by_component
    whole = int(footprint(bench.spec, bench.workload).weights)
    yield "| share of bf16's bytes | embedding and output layer | MiB | types | KL, held-out |"
    yield "|--:|---|--:|---|--:|"
    for share in SHARES:
        for outside, name in ((True, "searched"), (False, "as the mixture has them")):
            one = bench.chosen(damage, round(share * whole), outside=outside)
            written = types_written(dict(one.parts), counts)
            assert written is not None
            told = ", ".join(f"{part} {kind}" for part, kind in written[1].items())
            told += "" if outside else f" in a file of {written[0]}"
            kl = bench.kl(*written, heldout=True)
            yield f"| {share:.0%} | {name} | {bench.bytes_of(one) / 2**20:.2f} | {told} | {kl:.4f} |"


def main() -> None:
    """Parse the command line and measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path(builtin.MODEL))
    parser.add_argument("--calibration", type=Path, default=Path(builtin.CALIBRATION))
    parser.add_argument("--text", type=Path, default=Path(builtin.HELDOUT))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--title", default="Embedding and output layer in types of ggml: the built-in model")
    options: Any = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    told = (
        f"`{options.model.name}`, KL to the model in nats: one part in the type, all else in fp32, on "
        f"{bench.judging.size:,} tokens; the choices on {bench.heldout.size:,} others. Importance from "
        f"{bench.by.size:,} tokens. D is the relative error of the type. Choices by the first table's sums."
    )
    lines = [f"## {options.title} (`benchmarks/outside.py`)", "", *damages(bench), ""]
    try:
        lines += [*choices(bench), "", told, ""]
    except MinitronError as unknown:
        # What the parts lose is known all the same.
        lines += [told, "", f"No choice, for there is no such file: {unknown}", ""]
    write_section(options.results, "\n".join(lines))


if __name__ == "__main__":
    main()
