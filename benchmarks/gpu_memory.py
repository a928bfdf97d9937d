"""Memory: scoring a model layer by layer, and the memory law beside torch.cuda's peak.  Parts `offload` and `memory` of
gpu.py."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import torch
from gpu_setting import NEEDS_GPU, Row, Setting, allocated, built, bytes_row, clock, forget, hybrid, llama, peak_of
from random_checkpoint import make

from importance.score.calibrate import calibrate
from importance.score.options import ScoringOptions
from minitron import builtin
from minitron.engines.plain import WORKSPACE
from minitron.files import write_json
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.layerwise import EMBEDDING, OUTPUT, LayerwiseModel
from minitron.model.spec import read_spec

NANO_9B = hybrid(
    "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", 4480, 15_680, (128, 80, 8, 128), (40, 8, 128), 131_072
)
"""The shape of NVIDIA Nemotron Nano 9B v2: 56 layers, 8,888,227,328 parameters."""

TINY = hybrid("M-M*-M", 32, 64, (4, 8, 2, 8), (2, 1, 16), 2048)
PROBE = 4
"""Layers of the model by which the time of the others is foretold."""

SECONDS = 110.0
"""What writing and scoring the whole model may take."""


def offload(setting: Setting) -> Iterator[Row]:
    """`score --offload` of a model in the shape of Nano 2's 9B; of fewer layers where time or disk do not allow all."""
    shape = TINY if setting.tiny else NANO_9B
    probed = _scored(setting, shape, PROBE)
    free, layers, whole = shutil.disk_usage(setting.work).free, PROBE, len(shape["hybrid_override_pattern"])
    for more in range(PROBE + 1, whole + 1):
        size = _bytes(setting, _first(shape, more))
        foretold = probed["write"] * size / probed["bytes"] + probed["score"] * more / PROBE
        if foretold <= SECONDS and size <= 0.8 * free:
            layers = more
    yield Row(
        "layers",
        layers,
        "",
        f"of {whole}; {PROBE} took {probed['write']:.1f} s to write, {probed['score']:.1f} s to score",
    )
    found = _scored(setting, shape, layers)
    note = f"{found['parameters']:,} parameters with random weights; {found['told']}"
    yield Row("checkpoint", found["bytes"], "B", note)
    yield Row("writing it", found["write"], "s")
    yield Row("scoring it", found["score"], "s", "weights are hashed, layers read, scores made")
    yield bytes_row("peak", found["peak"])
    yield Row("largest layer, embeddings and output layer", found["held"], "B", "what must be in memory")
    if found["peak"] is None:
        yield Row("peak / checkpoint", None, "", NEEDS_GPU)
    else:
        yield Row("peak / checkpoint", found["peak"] / found["bytes"])


def _first(shape: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config of a model of the first layers."""
    pattern = shape["hybrid_override_pattern"][:layers]
    return shape | {"hybrid_override_pattern": pattern, "num_hidden_layers": layers}


def _bytes(setting: Setting, config: dict[str, Any]) -> int:
    """Those of its weights in bf16."""
    folder = setting.work / "size"
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    return 2 * int(read_spec(folder).parameters().total)


def _scored(setting: Setting, shape: dict[str, Any], layers: int) -> dict[str, Any]:
    """Write a checkpoint of so many layers, score it, remove it."""
    place, folder = setting.place, setting.work / "offload"
    started = time.perf_counter()
    make(folder, _first(shape, layers))
    written = time.perf_counter() - started
    samples, length, batch = (2, 32, 1) if setting.tiny else (32, 1024, 4)
    options = ScoringOptions(
        samples=samples, sequence_length=length, batch_size=batch, layers="fast", offload=True, estimator="best"
    )
    seconds = []

    def score() -> None:
        began = clock(place)
        calibrate(folder, builtin.CALIBRATION, options, device=str(place))
        seconds.append(clock(place) - began)

    peak = peak_of(score, place)
    spec = read_spec(folder)
    source = LayerwiseModel(folder, spec, dtype=torch.bfloat16, device=torch.device("cpu"))
    largest = max(source.bytes_of(layer) for layer in range(layers))
    found = {
        "bytes": source.checkpoint.weight_bytes,
        "parameters": spec.parameters().total,
        "held": largest + source.bytes_of(EMBEDDING) + source.bytes_of(OUTPUT),
        "write": written,
        "score": seconds[0],
        "peak": peak,
        "told": f"{samples} sequences of {length:,} tokens, {batch} at a time",
    }
    shutil.rmtree(folder)
    forget(place)
    return found


GENERATING: dict[str, dict[str, Any]] = {
    "dense": llama(2560, 10_240, 10, (20, 4, 128), 65_536),
    "hybrid": hybrid("M-M-M*-M-M*-", 3072, 15_360, (96, 64, 8, 128), (24, 8, 128), 65_536),
}
TINY_GENERATING = {"dense": llama(32, 64, 2, (2, 1, 16), 2048), "hybrid": TINY}


def memory(setting: Setting) -> Iterator[Row]:
    """What minitron.memory says beside what torch.cuda held, of models that transformers runs with its cache."""
    batch, prompt, answer = (2, 24, 4) if setting.tiny else (4, 4096, 32)
    for name, config in (TINY_GENERATING if setting.tiny else GENERATING).items():
        folder = setting.work / f"memory-{name}"
        before = allocated(setting.place)
        model = built(folder, config, setting.place, torch.bfloat16)
        held = allocated(setting.place) - before
        spec = read_spec(folder)
        told = footprint(spec, workload_of(spec, prompt + answer, batch))
        caches = told.kv_cache + told.conv_state + told.ssm_state
        note = f"{batch} sequences of {prompt:,} + {answer} tokens, bf16"
        yield Row(f"{name}: weights by the law", told.weights, "B", f"{spec.parameters().total:,} parameters")
        yield Row(f"{name}: caches and states by the law", caches, "B", note)
        found = _generate(model, setting, config["vocab_size"], batch, prompt, answer)
        if not setting.on_gpu:
            yield Row(f"{name}: torch.cuda / law", None, "", NEEDS_GPU)
            continue
        yield Row(f"{name}: weights, torch.cuda / law", held / told.weights)
        yield Row(f"{name}: caches and states, torch.cuda / law", found["caches"] / caches)
        for step in ("prefill", "decoding"):
            peak = held + found[step]
            yield Row(f"{name}: peak of {step}", peak, "B", f"{peak / told.total:.3f} of weights, caches and states")
            beside = peak - told.total
            yield Row(
                f"{name}: workspace of {step}", beside, "B", f"the line `workspace` of a plan says {WORKSPACE:,} B"
            )
        del model
        forget(setting.place)


@torch.inference_mode()
def _generate(model: Any, setting: Setting, vocab: int, batch: int, prompt: int, answer: int) -> dict[str, int]:
    """Bytes above the weights: the peaks of both steps, and what stays for caches and states."""
    place = setting.place
    ids = torch.randint(3, vocab, (batch, prompt), device=place)
    before, outputs = allocated(place), list[Any]()

    def prefill() -> None:
        outputs.append(model(input_ids=ids, use_cache=True, logits_to_keep=1))

    def decode() -> None:
        for _ in range(answer):
            last = outputs.pop()
            token = last.logits[:, -1:].argmax(-1)
            made = model(input_ids=token, past_key_values=last.past_key_values, use_cache=True, logits_to_keep=1)
            outputs.append(made)

    first = peak_of(prefill, place)
    between = allocated(place) - before
    later = peak_of(decode, place)
    cache = outputs.pop().past_key_values
    stays = allocated(place) - before
    del cache
    return {"prefill": first or 0, "decoding": between + (later or 0), "caches": stays}
