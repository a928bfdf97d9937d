"""The request of a plan: the GPU or budget, the workload, and the architectures to search."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from minitron.errors import MinitronError, require_known, require_least
from pipeline.serving import Serving

if TYPE_CHECKING:
    from minitron.cut.scores import Scores
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Workload
    from minitron.model.spec import ModelSpec
    from minitron.search.format_choices import Formats
    from minitron.search.lattice import Lattice
    from minitron.search.search import SearchResult
    from minitron.search.search_steps import LatticeOptions

Sort = Literal["score", "memory"]
"""How candidates are ordered: by importance kept (parameters without scores), or the largest that fits first."""


NATIVE: Final = "native"
"""Stands for the formats that the engine reads and the GPU runs."""


@dataclass(frozen=True)
class Planning(Serving):
    """A search for architectures that fit; None where a default depends on the rest."""

    gpu: str | None = None
    """A GPU's name, such as A10G, or its usable memory, such as 22.06GiB."""

    gpu_memory: int | None = None
    """The GPU's usable bytes, where it is not in the table or the table is wrong."""

    budget: int | None = None
    """Total memory in bytes, instead of a GPU."""

    params: int | None = None
    """The most parameters, without those of the multi-token-prediction block."""

    active_params: int | None = None
    """The most parameters that one token uses: of routed experts those that it is sent to."""

    max_latency: float | None = None
    """The most seconds in which all sequences of the workload are read and answered, estimated by roofline."""

    min_throughput: float | None = None
    """The fewest tokens of answers a second, of all sequences together, estimated by roofline."""

    lattice: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    """Config key -> the sizes to try, numbers or such as 3.5x (times hidden_size); what is not named stays as it is.
    Empty for the default lattice."""

    layers: int | None = None
    """Keep exactly so many layers."""

    pattern: str | None = None
    """Keep exactly these kinds of layers, a letter each: M-M*-."""

    keep_attention: int | None = None
    """Keep at least so many attention layers; None is two thirds."""

    multiples: Mapping[str, int] = field(default_factory=dict)
    """Axis -> the steps in which it is searched."""

    most: Mapping[str, float] = field(default_factory=dict)
    """Axis -> the largest share of it that is pruned."""

    leave: Sequence[str] = ()
    """Axes that stay as they are."""

    may_go: Sequence[str] | None = None
    """The only kinds of layers that may be dropped, by name or letter; None is all of them."""

    at_least: Mapping[str, int] = field(default_factory=dict)
    """Kind of layer -> the fewest that stay."""

    at_most: Mapping[str, int] = field(default_factory=dict)
    """Kind of layer -> the most that stay."""

    every_mix: bool = False
    """Whether every number of each kind of layer is tried, not one mix for each depth."""

    formats: Sequence[str] = ()
    """Formats of weights, of which the search chooses one for each part of the model; "native" stands for those that
    the engine reads and the GPU runs.  Empty keeps the weights in one format."""

    search_kv: bool = False
    """Whether the search chooses the format of keys and values too."""

    sort: Sort = "score"
    """How candidates are ordered."""

    top: int = 10
    """How many candidates come back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, {"sort": get_args(Sort)})
        require_least(self, {"layers": 1, "keep_attention": 0, "top": 1})
        if self.layers is not None and self.pattern is not None:
            raise MinitronError("--layers and --pattern both set the depth; drop one.")
        if self.formats and self.weights is not None:
            raise MinitronError("--formats lets the search choose what --weights fixes; drop one.")
        if self.search_kv and self.kv is not None:
            raise MinitronError("--search-kv lets the search choose what --kv fixes; drop one.")

    @property
    def device(self) -> Gpu | None:
        """The GPU that was named, or one of which only the memory is known."""
        from minitron.memory.gpus import Gpu, find_gpu
        from minitron.units import GiB, format_bytes

        if self.gpu_memory is None:
            return None if self.gpu is None else find_gpu(self.gpu)
        if self.gpu is None:
            return Gpu(f"a GPU of {format_bytes(self.gpu_memory)}", self.gpu_memory / GiB)
        return dataclasses.replace(find_gpu(self.gpu), usable_GiB=self.gpu_memory / GiB)

    @property
    def asked(self) -> dict[str, float]:
        """flag -> the limit, of those beside bytes that were asked for."""
        flags = {
            "--params": self.params,
            "--active-params": self.active_params,
            "--max-latency": self.max_latency,
            "--min-throughput": self.min_throughput,
        }
        return {flag: value for flag, value in flags.items() if value is not None}

    @property
    def limited(self) -> bool:
        """Whether something says how small a model is to be."""
        return self.device is not None or self.budget is not None or bool(self.asked)

    def require_one_format(self, command: str, instead: str) -> None:
        """Raise MinitronError where formats are searched, which `command` does not do."""
        flags = [flag for flag, given in (("--formats", self.formats), ("--search-kv", self.search_kv)) if given]
        if flags:
            raise MinitronError(f"{command}; drop {' and '.join(flags)}, or {instead}.")

    def require_limits(self) -> None:
        """Raise MinitronError where no budget of bytes and no other limit is given, or they contradict each other."""
        if self.budget is not None or self.device is not None or not self.asked:
            self.budget_of_device()
        elif self.max_latency is not None or self.min_throughput is not None:
            flags = " and ".join(flag for flag in self.asked if flag in ("--max-latency", "--min-throughput"))
            raise MinitronError(f"{flags} limit the speed on a GPU, and none is named; give --gpu, such as --gpu A10G.")

    def budget_of_device(self) -> Budget:
        """The budget in bytes alone; raises MinitronError unless there is either a GPU or a budget."""
        from minitron.memory.budget import Budget

        gpu = self.device
        if (gpu is None) == (self.budget is None):
            what = "neither --gpu nor --budget is" if gpu is None else "--gpu and --budget are both"
            raise MinitronError(f"{what} given; give one of them, such as --gpu A10G or --budget 8MiB.")
        if gpu is not None:
            return self.budget_of(gpu)
        return Budget(self.budget or 0, self._share(1.0), self.reserve or 0, self.workspace or 0)

    def budget_for(self, spec: ModelSpec) -> Budget:
        """The budget of bytes and all other limits; where only these are given, the bytes of the model as it is."""
        from minitron.memory.budget import Budget
        from minitron.memory.limits import Limits
        from minitron.memory.questions import total_of

        self.require_limits()
        workload = self.workload(spec)
        if self.device is None and self.budget is None:
            extra = self.workspace or 0
            found = Budget(total_of(spec, workload, Budget(1, workspace=extra)), workspace=extra)
        else:
            found = self.budget_of_device()
        if not self.asked:
            return found
        limits = Limits(
            parameters=self.params,
            active_parameters=self.active_params,
            latency=self.max_latency,
            throughput=self.min_throughput,
        )
        prompt = self.prompt_of(workload.context) if limits.timed else 0
        return dataclasses.replace(found, limits=dataclasses.replace(limits, prompt=prompt))

    def workload(self, spec: ModelSpec) -> Workload:
        """What the model is to serve; raises MinitronError where neither this nor the config says how long."""
        return self.workload_on(spec, self.device)

    def lattice_options(self) -> LatticeOptions:
        """The settings of the lattice that differ from the defaults."""
        from minitron.search.depth import LayerLimits
        from minitron.search.search_steps import LatticeOptions

        return LatticeOptions(
            multiples=self.multiples,
            most=self.most,
            leave=tuple(self.leave),
            layers=LayerLimits(
                may_go=None if self.may_go is None else list(self.may_go),
                at_least=self.at_least,
                at_most=self.at_most,
            ),
            every_mix=self.every_mix,
            work=any(limit is not None for limit in (self.active_params, self.max_latency, self.min_throughput)),
        )

    def search(self, spec: ModelSpec, scores: Scores | None = None) -> SearchResult:
        """The architectures that fit, best first; raises NothingFits where there are none."""
        from minitron.search.search import search

        budget, workload = self.budget_for(spec), self.workload(spec)
        lattice = self.build_lattice(spec, scores)
        return search(lattice, workload, budget, scores=scores, sort=self.sort, top=self.top)

    def build_lattice(self, spec: ModelSpec, scores: Scores | None = None) -> Lattice:
        """Every architecture to look at."""
        from minitron.search.search import build_lattice

        workload = self.workload(spec)
        found = build_lattice(
            spec,
            workload,
            lattice={key: ",".join(map(str, sizes)) for key, sizes in self.lattice.items()},
            layers=self.layers,
            pattern=self.pattern,
            keep_attention=self.keep_attention,
            scores=scores,
            options=self.lattice_options(),
        )
        return dataclasses.replace(found, formats=self.format_choices(spec, workload))

    def format_choices(self, spec: ModelSpec, workload: Workload) -> tuple[Formats, ...]:
        """The assignments of formats to try; empty where none are searched."""
        from minitron.memory.questions import state_format
        from minitron.search.format_choices import format_choices
        from minitron.search.offered_formats import kv_formats, require_runnable, runnable

        if not self.formats and not self.search_kv:
            return ()
        names = list(self.formats)
        require_runnable(spec, workload, [name for name in names if name != NATIVE], self.device)
        if NATIVE in names:
            names = list(dict.fromkeys([name for name in names if name != NATIVE] + runnable(workload, self.device)))
        if not self.search_kv:
            return format_choices(spec, workload, names)
        state = "" if self.ssm_state else state_format(spec, workload)
        return format_choices(spec, workload, names, kv_formats(workload, self.device), state=state)
