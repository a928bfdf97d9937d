"""Workload: the context and batch to serve, the number formats, and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from minitron.engines.table import ENGINES
from minitron.engines.vllm import TOKENS
from minitron.errors import MinitronError
from minitron.memory.formats import FORMATS, GGUF_OF, STORED, Use, formats_for, named_in_config, stored_format
from minitron.model.spec import ModelSpec


@dataclass(frozen=True)
class Engine:
    """What serves the model, and the settings of it that take memory."""

    name: str = "plain"
    """A row of minitron.engines.table: `plain` is what the model holds and its sequences keep, nothing rounded."""

    prefix_caching: bool = True
    """vLLM: keep the state of a finished prefix beside the running one."""

    cuda_graphs: bool = True
    """vLLM: record decoding steps as full CUDA graphs, for which every sequence needs a block of its own."""

    max_num_seqs: int | None = None
    """vLLM: sequences that may run at once; the batch by default."""

    max_num_batched_tokens: int = 2048
    """vLLM: tokens of one step.  2048 is its default on GPUs of less than 70 GiB, 8192 on larger ones."""

    block_size: int = TOKENS
    """vLLM: tokens of the smallest block, a multiple of 16."""

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise MinitronError(f"no engine is called {self.name!r}; choose {' or '.join(ENGINES)}.")
        if (self.max_num_seqs is not None and self.max_num_seqs < 1) or self.max_num_batched_tokens < 1:
            raise MinitronError("max_num_seqs and max_num_batched_tokens must be at least 1; give larger ones.")
        if self.block_size < 1 or self.block_size % TOKENS:
            raise MinitronError(
                f"vLLM's blocks hold a multiple of {TOKENS} tokens, not {self.block_size}; give 16 or 32."
            )


_MOST: Final = 2**40
"""Tokens of all sequences, or bytes of a reserve, that somebody may ask for: sums of their products with what a model
keeps for each are whole numbers of 64 bits."""

_KEPT: Final[dict[str, Use]] = {"weights": "weights", "kv": "kv", "ssm_state": "state", "conv_state": "conv"}
"""field of Workload -> what its formats must be for."""

_STORED: Final = ("weights", STORED)
_LOADED: Final = {"gguf": ("gguf-bf16", "q8_0", "q4_k_m"), "safetensors": ("bf16", "fp8", "int4")}
"""Files of engines -> some formats of weights in them."""


@dataclass(frozen=True)
class Workload:
    """What the model is to serve, and how its numbers are kept."""

    context: int
    """Tokens of one sequence, prompt and answer together."""

    batch: int = 1
    """Sequences at the same time."""

    weights: str = "bf16"
    """A format of weights (minitron.memory.formats); fp8 and nvfp4 mean the published mixture where there is one, and
    STORED those that the config of a quantised checkpoint names."""

    kv: str = "bf16"
    """Keys and values of attention: a format of theirs."""

    ssm_state: str = "fp32"
    """The recurrent state of Mamba layers.  Engines keep it in fp32 where the config does not say otherwise: it is
    written again at every token, and rounding adds up; `minitron eval --ssm-state` measures what that costs."""

    conv_state: str = "bf16"
    """The last inputs of the convolution in Mamba layers."""

    keep: Mapping[str, str] = field(default_factory=dict)
    """component -> the format of its tensors, whatever `weights` says."""

    tensor_parallel: int = 1
    """GPUs among which each tensor is split; all bytes are then those of one of them."""

    speculative_tokens: int = 0
    """Tokens that the multi-token-prediction block drafts at a step.  Its weights and keys and values count then, and
    a state is kept for every drafted token, to go back to when it is refused."""

    lora_rank: int = 0
    """Rank of LoRA adapters served along; 0 for none."""

    loras: int = 1
    """How many such adapters are in memory at once."""

    vision_encoder: int = 0
    """Bytes kept free for a vision encoder."""

    engine: Engine = Engine()

    def __post_init__(self) -> None:
        if self.context < 1 or self.batch < 1:
            raise MinitronError(
                f"a workload of {self.context} tokens x {self.batch} sequences is empty; give at least one of each."
            )
        for what, use in _KEPT.items():
            if getattr(self, what) not in (known := formats_for(use)) and (what, getattr(self, what)) != _STORED:
                raise MinitronError(f"{what} cannot be kept in {getattr(self, what)}; choose {', '.join(known)}.")
        engine = ENGINES[self.engine.name]
        if engine.kv is not None and self.kv not in engine.kv:
            raise MinitronError(
                f"{engine.title} does not support a KV cache in {self.kv}; choose --kv {' or '.join(engine.kv)}."
            )
        if engine.states is not None and self.ssm_state not in engine.states:
            raise MinitronError(
                f"{engine.title} does not keep Mamba states in {self.ssm_state}; choose --ssm-state "
                f"{' or '.join(engine.states)}."
            )
        if engine.files == "gguf" and self.conv_state != "fp32":
            raise MinitronError(f"{engine.title} keeps convolution states in fp32 alone; drop --conv-state.")
        self._require_loadable()
        if self.tensor_parallel < 1:
            raise MinitronError(f"a model cannot be split among {self.tensor_parallel} GPUs; give 1 or more.")
        if min(self.speculative_tokens, self.lora_rank, self.vision_encoder) < 0 or self.loras < 1:
            raise MinitronError("speculative tokens, LoRA rank and reserves cannot be negative; give 0 or more.")

    def _require_loadable(self) -> None:
        """Raise MinitronError where the engine does not load such weights, or llama.cpp cannot do what is asked."""
        engine, stored = ENGINES[self.engine.name], self.weights == STORED
        in_gguf = not stored and bool(FORMATS[self.weights].gguf)
        if engine.files == "gguf" and (self.max_num_seqs > self.batch or self.lora_rank):
            raise MinitronError(
                f"{engine.title} is counted with a slot for each sequence and without adapters; drop --max-num-seqs "
                "and --lora-rank, and give all sequences as --concurrency."
            )
        if engine.files != "any" and (engine.files == "gguf") != in_gguf:
            raise MinitronError(
                f"{engine.title} loads {engine.files} files, not weights in "
                f"{'the formats of a quantised checkpoint' if stored else self.weights}; choose --weights "
                f"{' or '.join(_LOADED[engine.files])}, or another --engine."
            )
        if in_gguf and self.tensor_parallel > 1:
            raise MinitronError("GGUF files are counted for one GPU; drop --tp, or choose other --weights.")
        if in_gguf and self.speculative_tokens:
            raise MinitronError(
                "`minitron export` leaves the multi-token-prediction block out of a GGUF file; drop --mtp, or choose "
                "other --weights."
            )

    @property
    def max_num_seqs(self) -> int:
        """Sequences that the engine makes room for."""
        return max(self.batch, self.engine.max_num_seqs or 0)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**vars(self), "keep": dict(self.keep), "engine": dict(vars(self.engine))}


def casts_to_half(config: Mapping[str, Any], workload: Workload) -> bool:
    """Whether the engine computes an fp32 model in 16 bits, as it does unless it is told to keep fp32."""
    quantised = workload.weights == STORED or FORMATS[workload.weights].quantised
    casts = ENGINES[workload.engine.name].casts_fp32
    return casts and stored_format(config) == "fp32" != workload.weights and not quantised


def _computed(weights: str, stored: str) -> str:
    """The format of activations; llama.cpp keeps keys and values of a GGUF file in fp16, whatever it stores."""
    if weights == STORED:
        return stored if FORMATS[stored].bits == 16 else "bf16"
    if weights in FORMATS and FORMATS[weights].gguf:
        return "fp16"
    return weights if weights in FORMATS and not FORMATS[weights].quantised else "bf16"


def _require_countable(tokens: int, more: Mapping[str, Any]) -> None:
    """Raise MinitronError where bytes of so many tokens, or of what else is asked for, are too many for 64 bits."""
    asked = {"tokens of all sequences": tokens * (1 + more.get("speculative_tokens", 0))}
    asked["ranks of adapters"] = more.get("lora_rank", 0) * more.get("loras", 1)
    asked["bytes for a vision encoder"] = more.get("vision_encoder", 0)
    engine = more.get("engine")
    asked["sequences of the engine"] = 0 if engine is None else engine.max_num_seqs or 0
    for what, number in asked.items():
        if number > _MOST:
            raise MinitronError(f"{number:,} {what} are more than any machine has; give fewer.")


def workload_of(
    spec: ModelSpec,
    context: int,
    batch: int = 1,
    *,
    weights: str | None = None,
    kv: str | None = None,
    ssm_state: str | None = None,
    conv_state: str | None = None,
    **more: Any,
) -> Workload:
    """A workload in which the model's config decides what is left open; `more` are further fields of Workload.

    Weights take the formats that the config's quantization_config names, else its dtype, else bf16, and bf16 where the
    engine would compute an fp32 model so; keys, values and convolution states the dtype in which activations are
    computed, which is that of the weights unless those are quantised; the SSM state `mamba_ssm_cache_dtype`, else
    fp32.  For llama.cpp the dtype is that of the GGUF file, keys and values are in fp16, and both states in fp32."""
    _require_countable(context * batch, more)
    config = spec.stated
    stored, engine = stored_format(config), more.get("engine")
    if stored == "fp32" and engine is not None and ENGINES[engine.name].casts_fp32:
        stored = "bf16"
    weights = weights or (stored if spec.quantisation is None else STORED)
    runs = ENGINES["plain" if engine is None else engine.name]
    if runs.files == "gguf":
        weights = GGUF_OF.get(weights, weights)
    computed = _computed(weights, stored)
    stated = named_in_config(str(config.get("mamba_ssm_cache_dtype")), quantised=False) or "fp32"
    if more.get("speculative_tokens") and not spec.mtp_layers:
        raise MinitronError("this model has no multi-token-prediction block to draft tokens; drop --mtp.")
    if runs.files == "gguf":
        # It converts the config's dtypes away: all that a state is made of is fp32.
        stated, conv_state = "fp32", conv_state or "fp32"
    return Workload(context, batch, weights, kv or computed, ssm_state or stated, conv_state or computed, **more)
