"""A student's layers, learning alone from what its parent's layers did, or together as `minitron distill` trains them.

Everything of the parent that both need is asked for once and kept: a few ten thousand tokens of a small model.

Shape letters: S sequences, T tokens, H the parent's hidden size, K the student's, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.teacher.streams import FIRST, layers_of
from minitron.cut.stream_map import StreamMap
from minitron.measure.quality import hidden_states
from minitron.model.layer_by_layer import Passed, states_of
from minitron.model.spec import ModelSpec

AT_ONCE = 4
"""Sequences in one forward pass."""

Seen = Callable[[int, Passed, Tensor, Tensor], None]
"""Is told a layer's number, what it was given beside the stream, and the stream before and after it."""


@dataclass(frozen=True)
class Learning:
    """How weights are trained."""

    rate: float
    """The highest, after a tenth of the steps; the last is a tenth of it."""

    batch_tokens: int
    weight_decay: float = 0.0

    def rate_at(self, step: int, steps: int, warmup: int) -> float:
        """Distil's schedule."""
        if step < warmup:
            return self.rate * (step + 1) / (warmup + 1)
        share = (step - warmup) / max(1, steps - 1 - warmup)
        return self.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Distil's: matrices alone are decayed."""
        groups = [
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95), fused=True)


@dataclass(frozen=True)
class Parent:
    """What a parent says of some sequences."""

    ids: NDArray[np.int64]
    """[S, T]."""

    entry: Tensor
    """[S, T, H]: the stream before its first layer."""

    after: list[Tensor]
    """[S, T, H] after each of its layers."""

    logits: Tensor
    """[S, T, V]."""

    @classmethod
    @torch.no_grad()
    def ask(cls, model: Any, spec: ModelSpec, ids: NDArray[np.int64]) -> "Parent":
        """Run the parent once."""
        entry: list[Tensor] = []
        after: list[list[Tensor]] = [[] for _ in spec.layers]
        logits: list[Tensor] = []

        def keep(layer: int, passed: Passed, before: Tensor, behind: Tensor) -> None:
            if layer == 0:
                entry.append(before)
            after[layer].append(behind)

        with watching(layers_of(model, spec), keep):
            for part in _parts(len(ids)):
                logits.append(model.get_output_embeddings()(hidden_states(model, torch.from_numpy(ids[part]))))
        return cls(ids, torch.cat(entry), [torch.cat(one) for one in after], torch.cat(logits))

    def before(self, layer: int) -> Tensor:
        """[S, T, H] before a layer."""
        return self.after[layer - 1] if layer else self.entry


def learn_alone(
    student: Any, spec: ModelSpec, stream: StreamMap, parent: Parent, sequences: int, how: Learning, *, own: bool
) -> float:
    """Train one layer after the other on the first sequences, until what it adds to the stream makes that the parent's;
    returns the processor's seconds.

    A layer reads the student's `own` stream, as the layers before it, already trained, leave it, and so makes up for
    their errors; or the parent's, as if they made none."""
    layers, started = layers_of(student, spec), time.process_time()
    steps = sequences * parent.ids.shape[1] // how.batch_tokens
    each = sequences // steps
    alone = _Alone(student, layers, parent.ids, {})
    states = stream.of_student(parent.entry[:sequences])
    for number, old in enumerate(stream.layers):
        layer, before = layers[number], stream.of_student(parent.before(old)[:sequences])
        target = stream.of_student(parent.after[old][:sequences])
        scale = (target - before)[:, FIRST:].pow(2).mean()
        reads = states if own else before
        parameters = list(layer.parameters())
        optimizer = how.optimizer(parameters)
        order = np.random.default_rng([0, number]).permutation(sequences)
        layer.requires_grad_(True)
        for step in range(steps):
            optimizer.zero_grad()
            batch = order[step * each : (step + 1) * each]
            for part in _parts(each):
                rows = batch[part]
                error = (alone.run(number, reads[rows]) - target[rows])[:, FIRST:].pow(2).mean() / scale
                (error * (len(rows) / each)).backward()  # type: ignore[no-untyped-call]
            _step(optimizer, parameters, how.rate_at(step, steps, max(1, steps // 10)))
        layer.requires_grad_(False)
        if own:
            with torch.no_grad():
                states = torch.cat([alone.run(number, states[part]) for part in _parts(sequences)])
    return time.process_time() - started


def learn_together(
    student: Any,
    spec: ModelSpec,
    stream: StreamMap,
    parent: Parent,
    which: range,
    how: Learning,
    weight: float,
    told: Callable[[int, int], None],
) -> float:
    """Distil on the sequences `which`: forward KL and `weight` times the error of the stream (docs/distillation.md);
    `told` hears (step, steps) after each.  Returns the processor's seconds, those of `told` included."""
    layers, started = layers_of(student, spec), time.process_time()
    squares = [float(stream.of_student(parent.after[old])[:, FIRST:].pow(2).mean()) for old in stream.layers]
    each = how.batch_tokens // parent.ids.shape[1]
    steps = len(which) // each
    parameters = list(student.parameters())
    optimizer = how.optimizer(parameters)
    student.requires_grad_(True)
    for step in range(steps):
        optimizer.zero_grad()
        batch = which[step * each : (step + 1) * each]
        for part in _parts(each):
            rows = slice(batch[part].start, batch[part].stop)
            mine: dict[int, Tensor] = {}
            with watching(layers, lambda layer, passed, before, after, mine=mine: mine.update({layer: after})):
                states = hidden_states(student, torch.from_numpy(parent.ids[rows]))
            log_q = student.get_output_embeddings()(states).log_softmax(-1)
            log_p = parent.logits[rows].log_softmax(-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            errors = [
                (mine[layer] - stream.of_student(parent.after[old][rows]))[:, FIRST:].pow(2).mean() / squares[layer]
                for layer, old in enumerate(stream.layers)
            ]
            loss = loss + weight * torch.stack(errors).mean()
            (loss * (len(batch[part]) / each)).backward()
        _step(optimizer, parameters, how.rate_at(step, steps, steps // 10))
        told(step + 1, steps)
    student.requires_grad_(False)
    return time.process_time() - started


@contextmanager
def watching(layers: Sequence[nn.Module], seen: Seen) -> Iterator[None]:
    """Until the block ends `seen` is told of every layer that has run."""

    def hook(layer: int) -> Any:
        def note(module: nn.Module, places: tuple[Any, ...], names: dict[str, Any], made: Any) -> None:
            states, *rest = places or (names["hidden_states"],)
            beside = {name: value for name, value in names.items() if name != "hidden_states"}
            seen(layer, Passed(tuple(rest), beside), states, states_of(made))

        return note

    with ExitStack() as undo:
        for layer, module in enumerate(layers):
            undo.callback(module.register_forward_hook(hook(layer), with_kwargs=True).remove)
        yield


@dataclass(frozen=True)
class _Alone:
    """Layers that run one at a time."""

    student: Any
    layers: Sequence[nn.Module]
    ids: NDArray[np.int64]
    given: dict[int, list[Passed]]
    """Sequences at once -> what each layer is given beside their stream: it follows from their shape alone."""

    def run(self, layer: int, states: Tensor) -> Tensor:
        """[B, T, K] -> [B, T, K]."""
        if len(states) not in self.given:
            found = self.given[len(states)] = []
            with watching(self.layers, lambda number, passed, before, after: found.append(passed)), torch.no_grad():
                hidden_states(self.student, torch.from_numpy(self.ids[: len(states)]))
        return self.given[len(states)][layer].run(self.layers[layer], states)


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float) -> None:
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
