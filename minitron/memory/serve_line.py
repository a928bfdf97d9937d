"""The shell command with which an engine serves a workload."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any, Final

from minitron.engines.table import ENGINES
from minitron.memory.budget import Budget
from minitron.memory.caches import keeps_states
from minitron.memory.footprint import room_for_kept
from minitron.memory.formats import FORMATS, STORED, stored_format
from minitron.memory.ggml import MIXTURES, TYPES
from minitron.memory.workload import Engine, Workload
from minitron.model.sources import title
from minitron.model.spec import ModelSpec

Words = Callable[[Workload], list[str]]


def vllm_pieces(model: str, spec: ModelSpec, share: list[str]) -> list[tuple[str, Words]]:
    """The command in pieces: each a function of the workload, behind the one field of it on which its words depend
    beside its numbers, or nothing.  `share` says what may be filled."""
    return [
        ("", lambda load: ["vllm", "serve", model, "--max-model-len", str(load.context)]),
        ("", lambda load: ["--max-num-seqs", str(load.max_num_seqs)]),
        ("", lambda load: ["--max-num-batched-tokens", str(load.engine.max_num_batched_tokens), *share]),
        ("", _block_words),
        ("weights", lambda load: _dtype_words(spec, load)),
        ("ssm_state", lambda load: _state_words(spec, load)),
        ("kv", lambda load: _kv_words(spec, load)),
        ("", _engine_words),
        ("tensor_parallel", _split_words),
        ("", _more_words),
    ]


class _Blank(int):
    """A number that stands in a command by its name, to be filled in."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}%"

    def __format__(self, spec: str) -> str:
        return str(self)


def _blank(name: str, number: int) -> _Blank:
    found = _Blank(number)
    found.name = name
    return found


def vllm_template(
    model: str, spec: ModelSpec, workload: Workload, formats: Mapping[str, Sequence[str]], gpus: Sequence[int]
) -> list[dict[str, Any]]:
    """The command as data: pieces of text, or of texts by a word that is asked, in which %context%, %max_num_seqs%,
    %step_tokens%, %gpus% and %share% stand for numbers.  `formats`: word -> those that it may be."""
    engine = replace(
        workload.engine, max_num_batched_tokens=_blank("step_tokens", workload.engine.max_num_batched_tokens)
    )
    # More than any number that is fixed.
    blank = replace(workload, context=_blank("context", 1), batch=_blank("max_num_seqs", 2**40), engine=engine)
    words = {**formats, "tensor_parallel": [_blank("gpus", count) for count in gpus]}
    found: list[dict[str, Any]] = []
    for field, piece in vllm_pieces(model, spec, ["--gpu-memory-utilization", "%share%"]):
        if not field:
            found.append({"text": shlex.join(piece(blank))})
            continue
        texts = {}
        for word in words[field]:
            changed: Any = {field: word}
            told = f"{int(word)}" if isinstance(word, int) else word
            texts[told] = shlex.join(piece(replace(blank, **changed)))
        found.append({"by": "gpus" if field == "tensor_parallel" else field, "texts": texts})
    return [one for one in found if one.get("text") or any(one.get("texts", {}).values())]


def share_of(budget: Budget) -> str:
    """The share of the GPU that vLLM may fill: what is reserved lowers it."""
    share = floor(budget.available / budget.usable * 1000) / 1000 if budget.reserve else budget.utilization
    return f"{share:g}"


def _vllm(model: str, spec: ModelSpec, workload: Workload, budget: Budget) -> list[str]:
    """Of a budget without a GPU no share follows, but the bytes of the pool."""
    if budget.gpu is not None:
        share = ["--gpu-memory-utilization", share_of(budget)]
    else:
        share = ["--kv-cache-memory-bytes", str(room_for_kept(spec, workload, budget))]
    return [word for _, words in vllm_pieces(model, spec, share) for word in words(workload)]


def _block_words(workload: Workload) -> list[str]:
    size = workload.engine.block_size
    return [] if size == Engine.block_size else ["--block-size", str(size)]


def _dtype_words(spec: ModelSpec, workload: Workload) -> list[str]:
    dtype = _dtype(spec, workload)
    return [] if dtype is None else ["--dtype", FORMATS[dtype].config_names[0]]


def _state_words(spec: ModelSpec, workload: Workload) -> list[str]:
    kept = ENGINES["vllm"].states or {}
    return ["--mamba-ssm-cache-dtype", kept[workload.ssm_state]] if keeps_states(spec) else []


def _kv_words(spec: ModelSpec, workload: Workload) -> list[str]:
    if FORMATS[workload.kv].quantised:
        return ["--kv-cache-dtype", (ENGINES["vllm"].kv or {})[workload.kv]]
    if spec.quantisation is not None and spec.quantisation.kv and FORMATS[workload.kv].bits == 16:
        # Otherwise it keeps them as the checkpoint was made for.
        return ["--kv-cache-dtype", FORMATS[workload.kv].config_names[0]]
    return []


def _engine_words(workload: Workload) -> list[str]:
    caching = "--enable-prefix-caching" if workload.engine.prefix_caching else "--no-enable-prefix-caching"
    return [caching, *([] if workload.engine.cuda_graphs else ["--enforce-eager"])]


def _split_words(workload: Workload) -> list[str]:
    return ["--tensor-parallel-size", str(workload.tensor_parallel)] if workload.tensor_parallel > 1 else []


def _more_words(workload: Workload) -> list[str]:
    words = []
    if workload.speculative_tokens:
        words += [
            "--speculative-config",
            f'{{"method": "mtp", "num_speculative_tokens": {workload.speculative_tokens}}}',
        ]
    if workload.lora_rank:
        words += ["--enable-lora", "--max-lora-rank", str(workload.lora_rank), "--max-loras", str(workload.loras)]
    return words


def _dtype(spec: ModelSpec, workload: Workload) -> str | None:
    """The format to compute in where vLLM is to be told: it goes by the config alone, and casts fp32 to 16 bits."""
    if workload.weights == STORED or FORMATS[workload.weights].quantised:
        return None
    stored = stored_format(spec.stated)
    return workload.weights if "fp32" in (stored, workload.weights) or workload.weights != stored else None


def _llama_cpp(model: str, spec: ModelSpec, workload: Workload, budget: Budget) -> list[list[str]]:
    """The GGUF file first.  A context is shared out among the slots; a step is at most a batch."""
    kind, tokens = FORMATS[workload.weights].gguf, workload.engine.max_num_batched_tokens
    file = f"{title(Path(model))}-{kind}.gguf"
    kept = (ENGINES["llama.cpp"].kv or {})[workload.kv]
    words = ["llama-server", "-m", file, "-ngl", "all", "-c", str(workload.context * workload.batch)]
    words += ["--parallel", str(workload.batch), "--no-kv-unified", "-ctk", kept, "-ctv", kept, "-fa", "on"]
    words += ["-ub", str(tokens), "-b", str(max(tokens, _BATCH))]
    # Text of the reader's own: which, no plan can say.
    calibrated = MIXTURES[kind].calibrated or any(TYPES[own].calibrated for own in workload.keep.values())
    matrix = ["--data", "TEXT"] if calibrated else []
    own = [word for part, name in workload.keep.items() for word in ("--keep", f"{part}={name}")]
    return [["minitron", "export", model, "--output", file, "--format", kind, *own, *matrix], words]


_BATCH: Final = 2048
"""llama.cpp's own tokens of a batch, which it computes in steps."""

_LINES: Final[dict[str, Callable[[str, ModelSpec, Workload, Budget], list[list[str]]]]] = {
    "vllm": lambda *asked: [_vllm(*asked)],
    "llama.cpp": _llama_cpp,
}
"""Engine -> the words of its commands, one after another."""


def serve_line(model: str, spec: ModelSpec, workload: Workload, budget: Budget, gguf: str = "") -> str:
    """The shell commands with which the workload's engine serves `model`, a folder or a name, of which there may be a
    GGUF file already; empty for no engine."""
    line = _LINES.get(workload.engine.name)
    if line is None:
        return ""
    words = line(model, spec, workload, budget)
    if gguf:
        (*_, serving) = words
        words = [[gguf if before == "-m" else word for before, word in zip(["", *serving], serving, strict=False)]]
    return " && ".join(map(shlex.join, words))
