"""The options by which a model is planned: what there is, what it must serve, which architectures to look at.

`plan`, `prune` and `compress` share them.  A command takes a parameter `planning: Planning` and is wrapped:

    @takes_planning
    def command(model: ModelArgument, planning: Planning) -> None: ...

`planning.search(spec, scores)` does the rest.
"""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import bytes_option, parse_assignments
from cli.serving import Serving, option
from cli.spread import spread_options
from minitron.errors import MinitronError

if TYPE_CHECKING:
    from minitron.gpus import Gpu
    from minitron.memory import Budget, Workload
    from minitron.scores import Scores
    from minitron.search import SearchResult
    from minitron.spec import ModelSpec


class Sort(StrEnum):
    """How candidates are ordered."""

    SCORE = "score"
    MEMORY = "memory"


@dataclasses.dataclass(frozen=True)
class Planning(Serving):
    """What was typed; None where a default depends on the rest."""

    gpu: Annotated[
        str | None, option("--gpu", "A GPU's name, such as A10G, or its usable memory, such as 22.06GiB.", "GPU")
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
        from minitron.gpus import find_gpu

        return None if self.gpu is None else find_gpu(self.gpu)

    def budget_of_device(self) -> "Budget":
        """The bytes there are; raises MinitronError unless exactly one of --gpu and --budget is given."""
        from minitron.memory import Budget

        if (self.gpu is None) == (self.budget is None):
            what = "neither --gpu nor --budget is" if self.gpu is None else "--gpu and --budget are both"
            raise MinitronError(f"{what} given; say what there is with one of them: --gpu A10G, or --budget 8MiB.")
        if (gpu := self.device) is not None:
            return self.budget_of(gpu)
        return Budget(self.budget or 0, self._share(1.0), self.reserve or 0, self.workspace or 0)

    def workload(self, spec: "ModelSpec") -> "Workload":
        """What the model is to serve; raises MinitronError where neither --context nor the config says how long."""
        return self.workload_on(spec, self.device)

    def search(self, spec: "ModelSpec", scores: "Scores | None" = None) -> "SearchResult":
        """The architectures that fit, best first; raises MinitronError where there are none."""
        from minitron.search import build_lattice, search

        budget, workload = self.budget_of_device(), self.workload(spec)
        lattice = build_lattice(
            spec,
            workload,
            lattice=parse_assignments("--lattice", self.lattice or ()),
            layers=self.layers,
            pattern=self.pattern,
            keep_attention=self.keep_attention,
            scores=scores,
        )
        return search(lattice, workload, budget, scores=scores, sort=self.sort.value, top=self.top)


def takes_planning(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `planning` spread out into the options of Planning, as typer reads them."""
    return spread_options(function, "planning", Planning)
