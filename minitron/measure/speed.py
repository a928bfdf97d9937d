"""Tokens per second and peak memory of a checkpoint, measured in a process of its own.

A process that has held other models before cannot say what one model needs: freed pages are used again, and the
teacher's are counted too.  So a fresh process loads the one model, runs it, and reports.
"""

import platform
import re
import resource
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from minitron.errors import MinitronError
from minitron.model.configs import spec_if_known, transformers_config
from minitron.model.loading import load_model

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Speed:
    """What one model did with one prompt, batch 1."""

    prefill_tokens_per_s: float
    """Prompt tokens read per second: the median of the repeats, after a warm-up."""

    decode_tokens_per_s: float
    """Tokens generated per second after the prompt, with the model's own cache: from the median time of one token."""

    peak_memory: int
    """Bytes at the highest point while the model ran, its weights included.

    On CUDA what torch had allocated (without the context); on a CPU the resident memory of the process less what it
    held before the model was loaded.  Reading the files is not counted on CUDA or Linux, elsewhere it is."""

    device: str
    """What it ran on: the GPU's name, or the CPU and the number of threads."""


def measure_speed(
    folder: Path,
    prompt: NDArray[np.int64],
    *,
    dtype: torch.dtype,
    device: torch.device,
    decode_tokens: int = 32,
    repeats: int = 3,
) -> Speed:
    """Load `folder` in a fresh process and time it on `prompt` [T], then on `decode_tokens` tokens of its own.

    Raises MinitronError where the model does not load or the process is killed, as it is when memory runs out."""
    # spawn, not fork: a forked process starts with all the memory of its parent, and CUDA does not survive it.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            job = pool.submit(_measure, folder, prompt, dtype, device, decode_tokens, repeats, torch.get_num_threads())
            return job.result()
        except BrokenProcessPool:
            raise MinitronError(
                f"The process that timed {folder} was killed, probably out of memory; free some memory "
                "or pass --no-speed."
            ) from None


def _measure(
    folder: Path,
    prompt: NDArray[np.int64],
    dtype: torch.dtype,
    device: torch.device,
    decode_tokens: int,
    repeats: int,
    threads: int,
) -> Speed:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    _import_architecture(folder)
    before = _resident("VmRSS")
    model = load_model(folder, dtype=dtype, device=device)
    _reset_peak(device)
    ids = torch.from_numpy(prompt)[None].to(device)
    prefill, decode = _times(model, ids, decode_tokens, repeats)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} with {threads} thread{'' if threads == 1 else 's'}"
    )
    return Speed(ids.shape[1] / median(prefill), 1 / median(decode), peak, name)


@torch.inference_mode()
def _times(
    model: PreTrainedModel, ids: torch.Tensor, decode_tokens: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each prefill of ids [1, T], and of each generated token; the first of both is a warm-up, left out."""
    prefill: list[float] = []
    for _ in range(repeats + 1):
        start = _clock(model.device)
        try:
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        except ValueError as error:
            # A hybrid without an attention layer has nothing that counts the tokens of the cache.
            raise MinitronError(
                f"transformers cannot run {model.name_or_path} with its cache ({error}); pass --no-speed."
            ) from None
        prefill.append(_clock(model.device) - start)
    decode: list[float] = []
    for _ in range(decode_tokens + 1):
        token = output.logits[:, -1:].argmax(-1)
        start = _clock(model.device)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
        decode.append(_clock(model.device) - start)
    return prefill[1:], decode[1:]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _import_architecture(folder: Path) -> None:
    """Import the code of the model's architecture, which would otherwise count as memory of the model."""
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(transformers_config(folder, spec_if_known(folder)), trust_remote_code=False)


def _resident(line: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`) or at its highest (`VmHWM`).

    Not ru_maxrss where it can be helped: on Linux a process inherits it from the one that started it."""
    if STATUS.is_file() and (match := re.search(rf"{line}:\s+(\d+) kB", STATUS.read_text())):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.is_file():
        # "5" sets the process's highest resident memory to its present one (man 5 proc, clear_refs).
        STATUS.with_name("clear_refs").write_text("5")
