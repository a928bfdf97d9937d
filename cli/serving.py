"""The options that say what a model must serve, in which numbers and by which engine.

`plan`, `prune` and `compress` have them among those of cli/planning.py; `compare` has them alone."""

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import bytes_option, count_option, parse_assignments
from minitron.errors import MinitronError
from minitron.memory.formats import Use, formats_for

if TYPE_CHECKING:
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Engine, Workload
    from minitron.model.spec import ModelSpec

_LARGE_GPU_GIB = 70


class EngineName(StrEnum):
    """Whose law of memory counts."""

    PLAIN = "plain"
    VLLM = "vllm"


def option(flag: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A typer option whose default depends on the rest, so that none is shown."""
    return typer.Option(flag, help=help, metavar=metavar, show_default=False, **more)


def _dtype(flag: str, what: str, use: Use, default: str, note: str = "") -> Any:
    return option(flag, f"How {what} are kept: {', '.join(formats_for(use))}{note}; {default} by default.", "DTYPE")


def _size(flag: str, help: str) -> Any:
    return option(flag, help, "SIZE", parser=bytes_option)


def _count(flag: str, help: str) -> Any:
    return option(flag, help, "TOKENS", parser=count_option)


@dataclasses.dataclass(frozen=True)
class Serving:
    """What was typed; None where a default depends on the rest."""

    context: Annotated[
        int | None,
        _count("--context", "Tokens of one sequence: 4096, 128k; the longest that the config names by default."),
    ] = None
    batch: Annotated[int, typer.Option("--batch", "--concurrency", min=1, help="Sequences at the same time.")] = 1
    prompt: Annotated[
        int | None, _count("--prompt", "Of the context, tokens of the prompt, for the speed: 32k; the rest is written.")
    ] = None
    engine: Annotated[
        EngineName,
        typer.Option("--engine", help="plain: nothing rounded. vllm: vLLM's blocks, buffers and settings."),
    ] = EngineName.PLAIN
    utilization: Annotated[
        float | None,
        option("--utilization", "The share of a GPU's memory to use; 0.95 by default, 0.92 with vllm.", "SHARE"),
    ] = None
    reserve: Annotated[int | None, _size("--reserve", "Memory kept free for something else: 1.3GiB.")] = None
    vision: Annotated[int | None, _size("--vision", "Memory of a vision encoder, as a line of its own: 1.3GiB.")] = None
    workspace: Annotated[
        int | None,
        _size("--workspace", "Memory for activations and buffers; an estimate with a GPU, 0 with --budget."),
    ] = None
    weights: Annotated[
        str | None,
        _dtype(
            "--weights",
            "weights",
            "weights",
            "as in the config",
            " (quantised ones as published for the family where known)",
        ),
    ] = None
    keep: Annotated[
        list[str] | None,
        option("--keep", "Keep a part of the model in another format: attention=bf16. Repeatable.", "PART=DTYPE"),
    ] = None
    kv: Annotated[str | None, _dtype("--kv", "keys and values", "kv", "as activations")] = None
    ssm_state: Annotated[
        str | None, _dtype("--ssm-state", "states of Mamba layers", "state", "as in the config, else fp32,")
    ] = None
    conv_state: Annotated[
        str | None, _dtype("--conv-state", "inputs of Mamba's convolutions", "state", "as activations")
    ] = None
    tp: Annotated[int, typer.Option("--tp", min=1, help="Split the model among so many such GPUs.")] = 1
    mtp: Annotated[int, typer.Option("--mtp", min=0, help="Tokens that the MTP block drafts at a step.")] = 0
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=0, help="Rank of LoRA adapters served along.")] = 0
    loras: Annotated[int, typer.Option("--loras", min=1, help="How many such adapters at once.")] = 1
    max_num_seqs: Annotated[
        int | None, option("--max-num-seqs", "vllm: sequences to make room for; the batch by default.", "N", min=1)
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        _count("--max-num-batched-tokens", "vllm: tokens of a step; 2048, or 8192 on GPUs of 70 GiB and more."),
    ] = None
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="vllm: keep states of finished prefixes.")
    ] = True
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="vllm: record decoding as full CUDA graphs.")
    ] = True

    def __post_init__(self) -> None:
        if self.prompt is not None and self.context is not None and self.prompt >= self.context:
            raise MinitronError(
                f"--prompt {self.prompt:,} leaves nothing to write of --context {self.context:,}; give a shorter one."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What was typed, as JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def budget_of(self, gpu: "Gpu") -> "Budget":
        """The bytes that a GPU gives."""
        from minitron.memory import vllm
        from minitron.memory.budget import UTILIZATION, Budget

        plain = self.engine is EngineName.PLAIN
        return Budget(
            usable=gpu.usable,
            utilization=self._share(UTILIZATION if plain else vllm.UTILIZATION),
            reserve=self.reserve or 0,
            workspace=self.workspace,
            gpu=gpu,
        )

    def _share(self, default: float) -> float:
        return default if self.utilization is None else self.utilization

    def prompt_of(self, context: int) -> int:
        """Tokens of the prompt: what was typed, else all of the context but 1,024 tokens or a quarter of it."""
        prompt = self.prompt or context - min(1024, max(context // 4, 1))
        if not 0 < prompt < context:
            raise MinitronError(
                f"--prompt {prompt:,} leaves nothing to write of {context:,} tokens; give a shorter one."
            )
        return prompt

    def engine_on(self, gpu: "Gpu | None") -> "Engine":
        """The engine's settings."""
        from minitron.memory.workload import Engine

        large = gpu is not None and gpu.usable_GiB >= _LARGE_GPU_GIB
        return Engine(
            self.engine.value,
            self.prefix_caching,
            self.cuda_graphs,
            self.max_num_seqs,
            self.max_num_batched_tokens or (8192 if large else 2048),
        )

    def workload_on(self, spec: "ModelSpec", gpu: "Gpu | None") -> "Workload":
        """What the model is to serve; raises MinitronError where neither --context nor the config says how long."""
        from minitron.memory.parallel import require_splits
        from minitron.memory.precision import precision_of
        from minitron.memory.workload import workload_of

        context = self.context or spec.config.get("max_position_embeddings")
        if not isinstance(context, int):
            raise MinitronError("config.json names no longest context; give --context, such as --context 8192.")
        require_splits(spec, self.tp)
        workload = workload_of(
            spec,
            context,
            self.batch,
            weights=self.weights,
            kv=self.kv,
            ssm_state=self.ssm_state,
            conv_state=self.conv_state,
            keep=parse_assignments("--keep", self.keep or (), "attention=bf16"),
            tensor_parallel=self.tp,
            speculative_tokens=self.mtp,
            lora_rank=self.lora_rank,
            loras=self.loras,
            vision_encoder=self.vision or 0,
            engine=self.engine_on(gpu),
        )
        precision_of(spec, workload.weights, workload.keep)
        return workload
