"""Steps of distillation: tokens a second, FLOPs and checkpoints.  Parts `distill`, `compiled` and
`checkpoints` of gpu.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_setting import Row, Setting, built, bytes_row, clock, forget, hybrid, llama, peak_of
from transformers import PreTrainedModel

from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.checkpoints import read_weights
from distill.run.trainer import Trainer
from distill.run.work import Work
from distill.text.data import Text, read_text
from minitron import builtin
from minitron.errors import MinitronError
from minitron.memory.gpus import Gpu, find_gpu
from minitron.model.backbone import backbone
from minitron.model.loading import load_tokenizer

WARM, TIMED = 2, 5
"""Steps that do not count, and steps of which the median is taken."""

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": (
        llama(2560, 10_240, 8, (20, 4, 128), 65_536),
        llama(3072, 12_288, 10, (24, 8, 128), 65_536),
    ),
    "hybrid": (
        hybrid("M-M-M*-M-", 3072, 15_360, (96, 64, 8, 128), (24, 8, 128), 65_536),
        hybrid("M-M-M*-M-", 4096, 20_480, (128, 64, 8, 128), (32, 8, 128), 65_536),
    ),
}
"""Family -> student of about a billion parameters and teacher of somewhat less than two."""

TINY = {
    "dense": (llama(32, 64, 2, (2, 1, 16), 2048), llama(48, 96, 2, (2, 1, 16), 2048)),
    "hybrid": (
        hybrid("M-*", 32, 64, (4, 8, 2, 8), (2, 1, 16), 2048),
        hybrid("M-*", 48, 96, (4, 8, 2, 8), (2, 1, 16), 2048),
    ),
}

PASSES = {"dense": 4, "hybrid": 2}
"""Sequences of a forward pass."""


def distill(setting: Setting) -> Iterator[Row]:
    """Steps of a dense pair and a hybrid one."""
    yield from _families(setting, compiled=False)


def compiled(setting: Setting) -> Iterator[Row]:
    """The same with layers and loss as torch.compile makes them."""
    yield from _families(setting, compiled=True)


def _families(setting: Setting, *, compiled: bool) -> Iterator[Row]:
    place = setting.place
    scan = "mamba-ssm" if find_spec("mamba_ssm") else "pure torch, as transformers runs it without mamba-ssm"
    recipe = Recipe(steps=WARM + TIMED, sequence_length=2048, batch_tokens=16_384, validation_sequences=2)
    if setting.tiny:
        recipe = Recipe(steps=2, sequence_length=32, batch_tokens=64, validation_sequences=2)
    text = _text(setting, recipe)
    for family, configs in (TINY if setting.tiny else CONFIGS).items():
        student = built(setting.work / family / "student", configs[0], place, torch.float32)
        teacher = built(setting.work / family / "teacher", configs[1], place, torch.bfloat16)
        work = 6 * _per_token(student, recipe.sequence_length) + 2 * _per_token(teacher, recipe.sequence_length)
        note = f"student {student.num_parameters():,}, teacher {teacher.num_parameters():,} parameters"
        note += f"; scan: {scan}" if family == "hybrid" else ""
        yield Row(f"{family}: FLOPs of a token", 1e-9 * work, "GFLOP", note)
        found = Recipe(**vars(recipe) | {"compile": compiled, "micro_batch": PASSES[family]})
        yield from _steps(family, setting, (student, teacher), text, found, work)
        del student, teacher
        forget(place)


def _steps(
    name: str,
    setting: Setting,
    models: tuple[PreTrainedModel, PreTrainedModel],
    text: Text,
    recipe: Recipe,
    work: float,
) -> Iterator[Row]:
    """A new optimiser and some steps."""
    place, times = setting.place, list[float]()
    warm = WARM if recipe.total_steps > WARM else 0
    with ExitStack() as stack:
        if setting.tiny and recipe.compile:
            # A compiler for a CPU takes minutes: what is looked at here is the way there.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        trainer = Trainer(*models, text, recipe, Work(setting.work / f"{name}-{recipe.compile}"), Processes())
        started = clock(place)
        for _ in range(warm):
            trainer.train_step()
        first = clock(place) - started

        def run() -> None:
            for _ in range(recipe.total_steps - warm):
                began = clock(place)
                trainer.train_step()
                times.append(clock(place) - began)

        trainer.optimizer.zero_grad(set_to_none=True)
        highest = peak_of(run, place)
    models[0].zero_grad(set_to_none=True)
    taken = median(times)
    rate = recipe.batch_tokens / taken
    note = f"{recipe.batch_tokens:,} tokens a step, {recipe.sequences_per_pass} x {recipe.sequence_length:,} a pass"
    note += "; torch.compile stands by" if setting.tiny and recipe.compile else ""
    yield Row(f"{name}: tokens/s", rate, "tokens/s", f"{note}; {taken:.3f} s a step")
    if warm:
        yield Row(f"{name}: the first {warm} steps", first, "s")
    flops, told = _peak_flops(setting)
    use = None if flops is None else rate * work / flops
    yield Row(f"{name}: model FLOPs utilisation", use, "", told)
    yield bytes_row(f"{name}: peak of a step", highest, "beside weights and the optimiser's moments")
    if not all(loss == loss for loss in trainer.losses):
        raise RuntimeError(f"{name}: a step's loss was not finite")


def _per_token(model: PreTrainedModel, length: int) -> float:
    """Multiplications with additions of one token's forward pass through matrices and attention; a scan is left out.

    With all of a causal sequence of T tokens attention takes T / 2 a token twice over, for scores and for values."""
    embedding = model.get_input_embeddings().weight
    matrices = [one for one in model.parameters() if one.ndim == 2 and one is not embedding]
    if model.get_output_embeddings().weight is embedding:
        matrices.append(embedding)
    attention = [module for module in backbone(model).modules() if hasattr(module, "q_proj")]
    return float(sum(one.numel() for one in matrices) + sum(one.q_proj.out_features for one in attention) * length)


def _peak_flops(setting: Setting) -> tuple[float | None, str]:
    """FLOP/s of the GPU in bf16 by minitron's own table, and what to say of them."""
    if not setting.on_gpu:
        return None, "needs a GPU"
    name = torch.cuda.get_device_name(setting.place)
    try:
        gpu = known_gpu(name)
    except MinitronError:
        return None, f"left out: minitron.memory.gpus has no {name}"
    if gpu.bf16 is None:
        return None, f"left out: minitron.memory.gpus has no TFLOP/s for {gpu.name}"
    return 1e12 * gpu.bf16, f"of {gpu.bf16:g} TFLOP/s in bf16 ({gpu.name} in minitron.memory.gpus)"


def known_gpu(name: str) -> Gpu:
    """The row of minitron's table for what torch calls a GPU, such as `NVIDIA H100 80GB HBM3`.

    Raises MinitronError where there is none."""
    words = re.findall(r"\w+", name.upper().replace("NVIDIA", ""))
    if "NVL" in words:
        raise MinitronError(f"no GPU is called {name!r}; its TFLOP/s are those of neither SXM nor PCIe.")
    kind = "PCIe" if "PCIE" in words else "SXM" if {"HBM3", "SXM", "SXM4", "SXM5"} & set(words) else ""
    size = next((word for word in words if re.fullmatch(r"\d+GB", word)), "")
    model = next((word for word in words if re.fullmatch(r"[A-Z]*\d+\w*", word) and word != size), name)
    for wanted in (f"{model}-{size}-{kind}", f"{model}-{size}", f"{model}-{kind}", model):
        try:
            return find_gpu(wanted.strip("-").replace("--", "-"))
        except MinitronError:
            continue
    return find_gpu(name)


def checkpoints(setting: Setting) -> Iterator[Row]:
    """The same steps without checkpoints, twice; with them; and with them written behind the steps."""
    place = setting.place
    sizes = (32, 64, 2, (2, 1, 16), 2048) if setting.tiny else (1024, 4096, 8, (16, 4, 64), 32_768)
    length, tokens, steps = (32, 64, 5) if setting.tiny else (1024, 8192, 9)
    recipe = Recipe(
        steps=steps, sequence_length=length, batch_tokens=tokens, validation_sequences=2, keep_checkpoints=1
    )
    text = _text(setting, recipe)
    student = built(setting.work / "small", llama(*sizes), place, torch.float32)
    teacher = built(setting.work / "small", llama(*sizes), place, torch.bfloat16)
    start = {name: tensor.cpu().clone() for name, tensor in student.state_dict().items()}
    runs: dict[str, _Run] = {}
    deterministic = torch.are_deterministic_algorithms_enabled()
    # Sums in any order would make curves differ by themselves; memory need not be filled for that.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    for name, behind in {"none": None, "none, again": None, "in step": False, "behind": True}.items():
        student.load_state_dict(start)
        runs[name] = _saved(setting, name, (student, teacher), text, recipe, behind)
        student.zero_grad(set_to_none=True)
        forget(place)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = True
    plain = runs["none"]
    size = 3 * sum(tensor.nbytes for tensor in start.values())
    yield Row("a checkpoint", size, "B", f"weights and two moments of {student.num_parameters():,} parameters")
    for name, run in runs.items():
        if name == "none, again":
            yield Row("curve without checkpoints, run twice", _same(plain.losses, run.losses))
            continue
        yield Row(f"{name}: median of a step without saving", median(run.plain), "s")
        yield Row(f"{name}: {steps} steps", run.seconds, "s", "until the last checkpoint is whole")
        if run.saving:
            yield Row(f"{name}: longest step with saving", max(run.saving), "s", f"{len(run.saving)} checkpoints")
            yield Row(f"{name}: curve against none", _same(plain.losses, run.losses))
            yield Row(f"{name}: the newest checkpoint's weights", "those of its step" if run.holds else "others")
    if not runs["behind"].holds:
        raise RuntimeError("a checkpoint written behind the steps holds weights of another step")


@dataclass(frozen=True)
class _Run:
    losses: list[float]
    plain: list[float]
    """Seconds of the steps after which nothing was saved, without the first."""

    saving: list[float]
    seconds: float
    holds: bool
    """Whether the newest checkpoint holds the weights of the moment when it was asked for."""


def _saved(
    setting: Setting,
    name: str,
    models: tuple[PreTrainedModel, PreTrainedModel],
    text: Text,
    recipe: Recipe,
    behind: bool | None,
) -> _Run:
    """Steps, of which every fourth is followed by a checkpoint unless `behind` is None."""
    place, folder = setting.place, setting.work / re.sub(r"\W+", "-", name)
    recipe = Recipe(**vars(recipe) | {"async_checkpoints": bool(behind)})
    trainer = Trainer(*models, text, recipe, Work(folder), Processes())
    every, plain, saving, kept = (2 if setting.tiny else 4), list[float](), list[float](), dict[str, torch.Tensor]()
    beginning = clock(place)
    for step in range(1, recipe.total_steps + 1):
        saves = behind is not None and not step % every
        began = clock(place)
        trainer.train_step()
        if saves:
            trainer.save()
        (saving if saves else plain).append(clock(place) - began)
        if saves:
            paused = clock(place)
            kept = {key: tensor.detach().cpu().clone() for key, tensor in trainer.parameters.items()}
            beginning += clock(place) - paused
    trainer.checkpoints.settle()
    seconds = clock(place) - beginning
    return _Run(trainer.losses, plain[1:], saving, seconds, _holds(trainer, kept))


def _holds(trainer: Trainer, kept: dict[str, torch.Tensor]) -> bool:
    newest = trainer.checkpoints.newest()
    if newest is None:
        return False
    found = read_weights(newest)
    return found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)


def _same(one: list[float], other: list[float]) -> str:
    if one == other:
        return "the same to the last bit"
    return f"differs by at most {max(abs(a - b) for a, b in zip(one, other, strict=True)):.1e}"


def _text(setting: Setting, recipe: Recipe) -> Text:
    folder: Path = setting.work / f"tokens-{recipe.sequence_length}"
    return read_text(
        load_tokenizer(builtin.MODEL),
        builtin.DISTILL,
        sequence_length=recipe.sequence_length,
        validation_sequences=recipe.validation_sequences,
        folder=folder,
    )
