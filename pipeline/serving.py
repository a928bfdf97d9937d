"""The request of serving: workload, number formats and engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from minitron.errors import MinitronError, require_known, require_least

if TYPE_CHECKING:
    from minitron.memory.budget import Budget
    from minitron.memory.gpus import Gpu
    from minitron.memory.workload import Engine, Workload
    from minitron.model.spec import ModelSpec

EngineName = Literal["plain", "vllm", "llama.cpp"]
"""The engine whose memory is counted."""

_LARGE_GPU_GIB: Final = 70


@dataclass(frozen=True)
class Serving:
    """Workload, number formats and engine; None where a default depends on other fields."""

    context: int | None = None
    """Tokens of one sequence; None is the longest that the config names."""

    batch: int = 1
    """Sequences at the same time."""

    prompt: int | None = None
    """Prompt tokens in the context, for the speed estimate; the rest is generated."""

    engine: EngineName = "plain"
    """plain: the sum of weights, KV cache and states, without an engine's block rounding and buffers.  vllm: memory as
    vLLM allocates it.  llama.cpp: as llama.cpp does, of a GGUF file."""

    utilization: float | None = None
    """The share of a GPU's memory to use; None is 0.95, or 0.92 with vllm."""

    reserve: int | None = None
    """Bytes kept free for something else."""

    vision_encoder: int | None = None
    """Bytes of a vision encoder, as a line of its own."""

    workspace: int | None = None
    """Bytes for activations and buffers; None is an estimate with a GPU, 0 with a budget of bytes."""

    weights: str | None = None
    """The format of weights; None is that of the config."""

    keep: Mapping[str, str] = field(default_factory=dict)
    """Part of the model -> the format in which it is kept instead."""

    kv: str | None = None
    """The format of keys and values; None is that of activations."""

    ssm_state: str | None = None
    """The format of Mamba layers' states; None is that of the config, else fp32."""

    conv_state: str | None = None
    """The format of the inputs of Mamba's convolutions; None is that of activations."""

    tensor_parallel: int = 1
    """GPUs among which the model is split."""

    speculative_tokens: int = 0
    """Tokens that the multi-token-prediction block drafts at a step."""

    lora_rank: int = 0
    """Rank of the LoRA adapters served with the model."""

    loras: int = 1
    """Number of LoRA adapters loaded at once."""

    max_num_seqs: int | None = None
    """vllm: maximum number of concurrent sequences; None is the batch."""

    max_num_batched_tokens: int | None = None
    """Tokens of a step of the engine; None is 512 with llama.cpp, else 2,048, or 8,192 on GPUs of 70 GiB and more."""

    prefix_caching: bool = True
    """vllm: whether states of finished prefixes are kept."""

    cuda_graphs: bool = True
    """vllm: whether decoding is recorded as full CUDA graphs."""

    block_size: int = 16
    """vllm: tokens of the smallest block of the pool; its CPU build takes multiples of 32."""

    def __post_init__(self) -> None:
        require_known(self, {"engine": get_args(EngineName)})
        positive = ("batch", "tensor_parallel", "loras", "max_num_seqs")
        require_least(self, dict.fromkeys(positive, 1) | {"speculative_tokens": 0, "lora_rank": 0})
        if self.prompt is not None and self.context is not None and self.prompt >= self.context:
            raise MinitronError(
                f"--prompt-tokens {self.prompt:,} leaves no room for output in --context {self.context:,}; "
                "give a shorter prompt."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as JSON: all fields that say something."""
        found = dataclasses.asdict(self)
        return {name: value for name, value in found.items() if value not in (None, {}, ())}

    def budget_of(self, gpu: Gpu) -> Budget:
        """The bytes that a GPU gives."""
        from minitron.engines.table import ENGINES
        from minitron.memory.budget import Budget

        return Budget(
            usable=gpu.usable,
            utilization=self._share(ENGINES[self.engine].utilization),
            reserve=self.reserve or 0,
            workspace=self.workspace,
            gpu=gpu,
        )

    def _share(self, default: float) -> float:
        return default if self.utilization is None else self.utilization

    def prompt_of(self, context: int) -> int:
        """Tokens of the prompt: what was asked for, else all of the context but 1,024 tokens or a quarter of it."""
        prompt = self.prompt or context - min(1024, max(context // 4, 1))
        if not 0 < prompt < context:
            raise MinitronError(
                f"--prompt-tokens {prompt:,} leaves no room for output in {context:,} tokens; give a shorter prompt."
            )
        return prompt

    def engine_on(self, gpu: Gpu | None) -> Engine:
        """The engine's settings."""
        from minitron.engines.table import ENGINES
        from minitron.memory.workload import Engine

        large = gpu is not None and gpu.usable_GiB >= _LARGE_GPU_GIB
        return Engine(
            self.engine,
            self.prefix_caching,
            self.cuda_graphs,
            self.max_num_seqs,
            self.max_num_batched_tokens or ENGINES[self.engine].step_tokens or (8192 if large else 2048),
            self.block_size,
        )

    def workload_on(self, spec: ModelSpec, gpu: Gpu | None) -> Workload:
        """What the model is to serve; raises MinitronError where neither this nor the config says how long."""
        from minitron.memory.caches import require_whole_blocks
        from minitron.memory.parallel import require_splits
        from minitron.memory.precision import precision_of
        from minitron.memory.workload import workload_of

        context = self.context or spec.value("max_position_embeddings")
        if not isinstance(context, int):
            raise MinitronError(
                "config.json does not name the longest context; give --context, such as --context 8192."
            )
        require_splits(spec, self.tensor_parallel)
        workload = workload_of(
            spec,
            context,
            self.batch,
            weights=self.weights,
            kv=self.kv,
            ssm_state=self.ssm_state,
            conv_state=self.conv_state,
            keep=self.keep,
            tensor_parallel=self.tensor_parallel,
            speculative_tokens=self.speculative_tokens,
            lora_rank=self.lora_rank,
            loras=self.loras,
            vision_encoder=self.vision_encoder or 0,
            engine=self.engine_on(gpu),
        )
        precision_of(spec, workload.weights, workload.keep)
        require_whole_blocks(spec, workload)
        return workload


def model_name(model: Path) -> str:
    """What a model is called: its folder, or the file's name without .json; of a config.json the folder it is in."""
    from minitron.model.sources import title

    return title(model)


def model_names(models: Sequence[Path]) -> list[str]:
    """What each model is called where no other is called the same, else its whole path."""
    names = [model_name(model) for model in models]
    return [name if names.count(name) == 1 else str(model) for name, model in zip(names, models, strict=True)]
