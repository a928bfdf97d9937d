"""What distillation costs: memory and time of the loss, ratios taken in one run.

    python benchmarks/distillation.py loss [--vocab 131072 --tokens 2048 --hidden 2688 --repeats 3]
    python benchmarks/distillation.py step --student CUT [--model PARENT --data TEXT --tokens 4096 --repeats 9]

The naive loss makes the logits of all tokens in bf16, widens them to fp32 and lets autograd do the rest.  Peak memory
is the largest resident memory (VmHWM) of a process above what it had with the inputs in place; times are medians of
calls that take turns in one process.  Tables go into benchmarks/RESULTS.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from smollm2 import write_section
from torch import Tensor
from transformers import PreTrainedModel

from distill.losses.chunked import LossOptions, chunked_loss
from distill.losses.divergences import Loss
from distill.processes import Processes
from distill.recipe import Recipe
from distill.run.trainer import Trainer
from distill.run.work import Work
from distill.text.data import read_text
from minitron import builtin
from minitron.measure.quality import hidden_states
from minitron.model.loading import load_model, load_tokenizer
from minitron.units import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(options: argparse.Namespace) -> Inputs:
    """Student's and teacher's hidden states [N, H] and heads [V, H]; the student's head is fp32, as trained."""
    torch.manual_seed(0)
    shapes = ((options.tokens, options.hidden), (options.vocab, options.hidden))
    states, other = (torch.randn(shapes[0]).bfloat16() for _ in range(2))
    head = torch.randn(shapes[1]).div_(options.hidden**0.5)
    other_head = torch.randn(shapes[1], dtype=torch.bfloat16).div_(options.hidden**0.5)
    # As in every pass of a step but its first: what there is of the gradients is added to.
    states.grad, head.grad = torch.zeros_like(states), torch.zeros_like(head)
    return states.requires_grad_(), head.requires_grad_(), other, other_head


def naive(states: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
    """KL over whole logits."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = (states @ head.T).float()
    with torch.no_grad():
        log_p = torch.log_softmax((other @ other_head.T).float(), -1)
    log_q = torch.log_softmax(logits, -1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(states)


def ours(states: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
    """The chunked one, as training calls it."""
    with torch.autocast("cpu", torch.bfloat16):
        return chunked_loss(Loss("forward_kl"), states, head, other, other_head, head_gradient=head.grad)


def ours_by_autograd(states: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
    """The chunked one, which hands the head's gradient to autograd."""
    with torch.autocast("cpu", torch.bfloat16):
        return chunked_loss(Loss("forward_kl"), states, head, other, other_head)


def ours_by_blocks(states: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> Tensor:
    """The chunked one, a quarter of the vocabulary at a time."""
    with torch.autocast("cpu", torch.bfloat16):
        return chunked_loss(
            Loss("forward_kl"),
            states,
            head,
            other,
            other_head,
            options=LossOptions(vocab_chunk=len(head) // 4),
            head_gradient=head.grad,
        )


WAYS: dict[str, Callable[..., Tensor]] = {
    "naive": naive,
    "chunked": ours,
    "chunked, the vocabulary too": ours_by_blocks,
    "chunked, gradient through autograd": ours_by_autograd,
}


def both_ways(way: str, given: Inputs) -> float:
    """Seconds of the loss and its gradients, which are added to those that are there."""
    started = time.perf_counter()
    WAYS[way](*given).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 2**10


def peak(way: str, options: argparse.Namespace) -> int:
    """Bytes that one call takes beside its inputs, measured in a process of its own."""
    command = [sys.executable, __file__, "peak", "--way", way]
    for name in ("vocab", "tokens", "hidden"):
        command += [f"--{name}", str(getattr(options, name))]
    return int(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))


def measure_loss(options: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    peaks = {way: peak(way, options) for way in WAYS}
    given = inputs(options)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            times[way].append(both_ways(way, given))
            print(way, times[way][-1], flush=True)
    lines = [
        "## The loss of distillation (`benchmarks/distillation.py loss`)",
        "",
        f"Forward KL and its gradients by hidden states and the fp32 head: vocabulary {options.vocab:,}, "
        f"{options.tokens:,} tokens, hidden {options.hidden:,}, matmuls in bf16, softmax in fp32, "
        f"{torch.get_num_threads()} thread. Memory "
        "beside the inputs and the gradients that are added to (as with gradient accumulation; the head's is "
        f"{format_bytes(4 * options.vocab * options.hidden)}); times are medians of {options.repeats}.",
        "",
        "| | peak memory | of the naive | time | of the naive |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {way} | {format_bytes(peaks[way])} | {peaks[way] / peaks['naive']:.2f} | {median(times[way]):.1f} s | "
            f"{median(times[way]) / median(times['naive']):.2f} |"
            for way in WAYS
        ),
        "",
    ]
    return "\n".join(lines)


def measure_step(options: argparse.Namespace) -> str:
    """The section of RESULTS.md: a whole step beside its parts timed alone, taking turns in one process."""
    recipe = Recipe(steps=options.repeats + 1, batch_tokens=options.tokens, validation_sequences=4)
    teacher = load_model(options.model, dtype=torch.bfloat16, device=torch.device("cpu"))
    student = load_model(options.student, dtype=torch.float32, device=torch.device("cpu"))
    text = read_text(
        load_tokenizer(options.model), options.data, sequence_length=recipe.sequence_length, validation_sequences=4
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(student, teacher, text, recipe, Work(Path(scratch)), Processes())
        times: dict[str, list[float]] = {}
        for _ in range(options.repeats + 1):
            for name, seconds in _step_and_parts(trainer).items():
                times.setdefault(name, []).append(seconds)
    # The first of each allocates what the others use again.
    found = {name: median(each[1:]) for name, each in times.items()}
    parts = sum(seconds for name, seconds in found.items() if name != "whole step")
    return "\n".join(
        [
            "## A whole step of distillation (`benchmarks/distillation.py step`)",
            "",
            f"`{options.model.resolve().parent.name}/{options.model.resolve().name}` teaches a student cut from it, "
            f"{options.tokens:,} tokens a step in sequences of {recipe.sequence_length}, bf16 matmuls, "
            f"{torch.get_num_threads()} thread; medians of {options.repeats} that take turns.",
            "",
            "| | time |",
            "|---|--:|",
            *(f"| {name} | {seconds:.3f} s |" for name, seconds in found.items()),
            "",
            f"The whole step runs at {parts / found['whole step']:.2f} of the speed of its parts.",
            "",
        ]
    )


def _step_and_parts(trainer: Trainer) -> dict[str, float]:
    """Seconds of a whole step, and of what it cannot do without, each alone."""
    times, objective, recipe = {}, trainer.objective, trainer.recipe
    teacher = objective.teacher
    assert isinstance(teacher, PreTrainedModel)
    batch = trainer.text.batch(trainer.position, recipe.sequences_per_step, seed=recipe.seed)
    ids = [torch.from_numpy(part) for part in np.array_split(batch.ids, len(batch.ids) // recipe.sequences_per_pass)]

    started = time.perf_counter()
    trainer.train_step()
    times["whole step"] = time.perf_counter() - started

    started = time.perf_counter()
    with torch.no_grad():
        theirs = [hidden_states(teacher, part).flatten(0, 1) for part in ids]
    times["teacher forward"] = time.perf_counter() - started

    started = time.perf_counter()
    head, other = (model.get_output_embeddings().weight for model in (trainer.student, teacher))
    for part, states in zip(ids, theirs, strict=True):
        with objective.autocast():
            mine = hidden_states(trainer.student, part).flatten(0, 1)
            loss = chunked_loss(Loss("forward_kl"), mine, head, states, other, head_gradient=head.grad)
        loss.backward()  # type: ignore[no-untyped-call]
    times["student forward, loss, backward"] = time.perf_counter() - started

    started = time.perf_counter()
    trainer.optimizer.step()
    times["optimizer"] = time.perf_counter() - started
    return times


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["loss", "step", "peak"])
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--vocab", type=int, default=131_072)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--model", type=Path, default=builtin.MODEL)
    parser.add_argument("--student", type=Path, help="cut from the model by minitron prune")
    parser.add_argument("--data", type=Path, default=builtin.DISTILL)
    parser.add_argument("--hidden", type=int, default=2688)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options: Any = parser.parse_args()
    options.tokens = options.tokens or (4096 if options.what == "step" else 2048)
    if options.what == "step" and options.student is None:
        parser.error("--student is needed for step")
    torch.set_num_threads(1)
    if options.what == "peak":
        given = inputs(options)
        before = _resident("VmRSS")
        both_ways(options.way, given)
        print(json.dumps(_resident("VmHWM") - before))
        return
    section = (measure_step if options.what == "step" else measure_loss)(options)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
