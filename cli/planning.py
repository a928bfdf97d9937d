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

from cli.options import bytes_option, count_option, parse_assignments
from cli.spread import spread_options
from minitron.errors import MinitronError

if TYPE_CHECKING:
    from minitron.memory import Budget, Workload
    from minitron.scores import Scores
    from minitron.search import SearchResult
    from minitron.spec import ModelSpec


class Sort(StrEnum):
    """How candidates are ordered."""

    SCORE = "score"
    MEMORY = "memory"


def _option(flag: str, help: str, metavar: str, **more: Any) -> Any:
    return typer.Option(flag, help=help, metavar=metavar, show_default=False, **more)


def _dtype(flag: str, what: str, default: str, names: str = "fp32, bf16, fp16, fp8, int8") -> Any:
    return _option(flag, f"How {what} are kept: {names}; {default} by default.", "DTYPE")


@dataclasses.dataclass(frozen=True)
class Planning:
    """What was typed; None where a default depends on the rest."""

    gpu: Annotated[
        str | None, _option("--gpu", "A GPU's name, such as A10G, or its usable memory, such as 22.06GiB.", "GPU")
    ] = None
    budget: Annotated[
        int | None,
        _option(
            "--budget", "Instead of --gpu: the bytes that all may take together: 8MiB.", "SIZE", parser=bytes_option
        ),
    ] = None
    context: Annotated[
        int | None,
        _option(
            "--context",
            "Tokens of one sequence: 4096, 128k; the longest that the config names by default.",
            "TOKENS",
            parser=count_option,
        ),
    ] = None
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences at the same time.")] = 1
    utilization: Annotated[
        float | None,
        _option("--utilization", "The share of the GPU's memory that may be used; 0.95 by default.", "SHARE"),
    ] = None
    reserve: Annotated[
        int | None,
        _option("--reserve", "Memory kept free for something else: 1.3GiB.", "SIZE", parser=bytes_option),
    ] = None
    workspace: Annotated[
        int | None,
        _option(
            "--workspace",
            "Memory for activations and buffers; 0.65GiB with --gpu (an estimate), 0 with --budget.",
            "SIZE",
            parser=bytes_option,
        ),
    ] = None
    weights: Annotated[str | None, _dtype("--weights", "weights", "as in the config")] = None
    kv: Annotated[str | None, _dtype("--kv", "keys and values", "as activations")] = None
    ssm_state: Annotated[
        str | None, _dtype("--ssm-state", "states of Mamba layers", "as in the config, else fp32,", "fp32, bf16, fp16")
    ] = None
    lattice: Annotated[
        list[str] | None,
        _option(
            "--lattice",
            "The sizes to try: hidden_size=4480,4800 or intermediate_size=3x,3.5x (times hidden_size). Repeatable; "
            "what no --lattice names stays as it is.",
            "NAME=SIZES",
        ),
    ] = None
    layers: Annotated[int | None, _option("--layers", "Keep exactly so many layers.", "N", min=1)] = None
    pattern: Annotated[
        str | None, _option("--pattern", "Keep exactly these kinds of layers, a letter each: M-M*-.", "LETTERS")
    ] = None
    keep_attention: Annotated[
        int | None,
        _option("--keep-attention", "Keep at least so many attention layers; two thirds by default.", "N", min=0),
    ] = None
    sort: Annotated[
        Sort, typer.Option("--sort", help="By importance kept (parameters without scores), or the largest that fits.")
    ] = Sort.SCORE
    top: Annotated[int, typer.Option("--top", min=1, help="How many candidates to list.")] = 10

    def __post_init__(self) -> None:
        if self.layers is not None and self.pattern is not None:
            raise MinitronError("--layers and --pattern both set the depth; give one of them.")

    @property
    def settings(self) -> dict[str, Any]:
        """What was typed, as JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def budget_of_device(self) -> "Budget":
        """The bytes there are; raises MinitronError unless exactly one of --gpu and --budget is given."""
        from minitron.gpus import find_gpu
        from minitron.memory import UTILIZATION, WORKSPACE, Budget

        if (self.gpu is None) == (self.budget is None):
            what = "neither --gpu nor --budget is" if self.gpu is None else "--gpu and --budget are both"
            raise MinitronError(f"{what} given; say what there is with one of them: --gpu A10G, or --budget 8MiB.")
        gpu = None if self.gpu is None else find_gpu(self.gpu)
        return Budget(
            usable=gpu.usable if gpu else self.budget or 0,
            utilization=_or(self.utilization, UTILIZATION if gpu else 1.0),
            reserve=_or(self.reserve, 0),
            workspace=_or(self.workspace, WORKSPACE if gpu else 0),
            gpu=gpu,
        )

    def workload(self, spec: "ModelSpec") -> "Workload":
        """What the model is to serve; raises MinitronError where neither --context nor the config says how long."""
        from minitron.memory import workload_of

        context = self.context or spec.config.get("max_position_embeddings")
        if not isinstance(context, int):
            raise MinitronError("config.json names no longest context; give --context, such as --context 8192.")
        return workload_of(spec, context, self.batch, weights=self.weights, kv=self.kv, ssm_state=self.ssm_state)

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


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value


def takes_planning(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with its parameter `planning` spread out into the options of Planning, as typer reads them."""
    return spread_options(function, "planning", Planning)
