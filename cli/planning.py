"""The options by which a model is planned: what there is, what it must serve, which architectures to look at.

`plan`, `prune` and `compress` share them.  A command takes a parameter `planning: Planning` and is wrapped:

    @takes_planning
    def command(model: ModelArgument, planning: Planning) -> None: ...

`planning.search(spec, scores)` does the rest.
"""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.option_groups import spread_options
from cli.options import bytes_option, parse_assignments
from cli.serving import Serving, option
from minitron.errors import MinitronError
from minitron.memory.gpus import GPUS

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec
    from minitron.search.lattice import Lattice
    from minitron.search.search import SearchResult
    from minitron.search.search_steps import LatticeOptions


class Sort(StrEnum):
    """How candidates are ordered."""

    SCORE = "score"
    MEMORY = "memory"


@dataclasses.dataclass(frozen=True)
class Planning(Serving):
    """What was typed; None where a default depends on the rest."""

    gpu: Annotated[
        str | None, option("--gpu", f"A GPU's usable memory, such as 22.06GiB, or its name: {', '.join(GPUS)}.", "GPU")
    ] = None
    gpu_memory: Annotated[
        int | None,
        option(
            "--gpu-memory",
            "The GPU's usable memory, where it is not in the table or the table is wrong: 22.06GiB.",
            "SIZE",
            parser=bytes_option,
        ),
    ] = None
    budget: Annotated[
        int | None,
        option(
            "--budget", "Instead of --gpu: the bytes that all may take together: 8MiB.", "SIZE", parser=bytes_option
        ),
    ] = None
    lattice: Annotated[
        list[str] | None,
        option(
            "--lattice",
            "The sizes to try: hidden_size=4480,4800 or intermediate_size=3x,3.5x (times hidden_size). Repeatable; "
            "what no --lattice names stays as it is.",
            "NAME=SIZES",
        ),
    ] = None
    layers: Annotated[int | None, option("--layers", "Keep exactly so many layers.", "N", min=1)] = None
    pattern: Annotated[
        str | None, option("--pattern", "Keep exactly these kinds of layers, a letter each: M-M*-.", "LETTERS")
    ] = None
    keep_attention: Annotated[
        int | None,
        option("--keep-attention", "Keep at least so many attention layers; two thirds by default.", "N", min=0),
    ] = None
    multiple: Annotated[
        list[str] | None,
        option("--multiple", "Search an axis in steps of this: ffn=512. Repeatable.", "AXIS=N"),
    ] = None
    most: Annotated[
        list[str] | None,
        option("--most", "Prune at most this share of an axis: ffn=0.3, ssm_state=0.5. Repeatable.", "AXIS=SHARE"),
    ] = None
    leave: Annotated[list[str] | None, option("--leave", "Leave an axis as it is. Repeatable.", "AXIS")] = None
    may_go: Annotated[
        list[str] | None,
        option("--may-go", "Drop layers of this kind only: M, mamba, mlp, moe. Repeatable.", "KIND"),
    ] = None
    at_least: Annotated[
        list[str] | None, option("--at-least", "Keep at least so many layers of a kind: mlp=20.", "KIND=N")
    ] = None
    at_most: Annotated[
        list[str] | None, option("--at-most", "Keep at most so many layers of a kind: mamba=24.", "KIND=N")
    ] = None
    every_mix: Annotated[
        bool, typer.Option("--every-mix", help="Try every number of each kind of layer, not one mix for each depth.")
    ] = False
    sort: Annotated[
        Sort, typer.Option("--sort", help="By importance kept (parameters without scores), or the largest that fits.")
    ] = Sort.SCORE
    top: Annotated[int, typer.Option("--top", min=1, help="How many candidates to list.")] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and self.pattern is not None:
            raise MinitronError("--layers and --pattern both set the depth; give one of them.")

    @property
    def device(self) -> "Gpu | None":
        """The GPU that was named, or one of which only the memory is known."""
        from minitron.memory.gpus import Gpu, find_gpu
        from minitron.units import GiB, format_bytes

        if self.gpu_memory is None:
            return None if self.gpu is None else find_gpu(self.gpu)
        if self.gpu is None:
            return Gpu(f"a GPU of {format_bytes(self.gpu_memory)}", self.gpu_memory / GiB)
        return dataclasses.replace(find_gpu(self.gpu), usable_GiB=self.gpu_memory / GiB)

    def budget_of_device(self) -> "Budget":
        """The bytes there are; raises MinitronError unless there is either a GPU or a --budget."""
        from minitron.memory.budget import Budget

        gpu = self.device
        if (gpu is None) == (self.budget is None):
            what = "neither --gpu nor --budget is" if gpu is None else "--gpu and --budget are both"
            raise MinitronError(f"{what} given; say what there is with one of them: --gpu A10G, or --budget 8MiB.")
        if gpu is not None:
            return self.budget_of(gpu)
        return Budget(self.budget or 0, self._share(1.0), self.reserve or 0, self.workspace or 0)

    def workload(self, spec: "ModelSpec") -> "Workload":
        """What the model is to serve; raises MinitronError where neither --context nor the config says how long."""
        return self.workload_on(spec, self.device)

    def lattice_options(self) -> "LatticeOptions":
        """What is to be searched other than by default."""
        from minitron.search.depth import LayerLimits
        from minitron.search.search_steps import LatticeOptions

        return LatticeOptions(
            multiples=_numbers("--multiple", self.multiple, int),
            most=_numbers("--most", self.most, float),
            leave=tuple(self.leave or ()),
            layers=LayerLimits(
                may_go=self.may_go,
                at_least=_numbers("--at-least", self.at_least, int),
                at_most=_numbers("--at-most", self.at_most, int),
            ),
            every_mix=self.every_mix,
        )

    def search(self, spec: "ModelSpec", scores: "Scores | None" = None) -> "SearchResult":
        """The architectures that fit, best first; raises MinitronError where there are none."""
        from minitron.search.search import search

        budget, workload = self.budget_of_device(), self.workload(spec)
        lattice = self.build_lattice(spec, scores)
        return search(lattice, workload, budget, scores=scores, sort=self.sort.value, top=self.top)

    def build_lattice(self, spec: "ModelSpec", scores: "Scores | None" = None) -> "Lattice":
        """Every architecture to look at."""
        from minitron.search.search import build_lattice

        return build_lattice(
            spec,
            self.workload(spec),
            lattice=parse_assignments("--lattice", self.lattice or ()),
            layers=self.layers,
            pattern=self.pattern,
            keep_attention=self.keep_attention,
            scores=scores,
            options=self.lattice_options(),
        )


def _numbers(flag: str, texts: list[str] | None, number: Callable[[str], Any]) -> dict[str, Any]:
    """`["ffn=512"]` -> `{"ffn": 512}`; raises MinitronError where a value is no number."""
    found = {}
    for name, text in parse_assignments(flag, texts or (), "NAME=2").items():
        try:
            found[name] = number(text)
        except ValueError:
            raise MinitronError(f"{flag} {name}={text}: {text!r} is no number; write it like {flag} NAME=2.") from None
    return found


def takes_planning(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `planning` spread out into the options of Planning, as typer reads them."""
    return spread_options(function, "planning", Planning)
