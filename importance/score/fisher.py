"""What an error in a linear's output does to the model's own predictions, from one pass back.

Where the output of a linear moves by e, the KL of the next token's distribution p from what it becomes is, to second
order, e^T F e / 2 with F = J^T (diag(p) - p p^T) J, J the derivative of the logits by the output: the Fisher matrix of
the model's own predictions, with no label in it (Martens 2014, arXiv 1412.1193, equation 26).  With random signs z the
vector v = sqrt(p) * z - p (sqrt(p) . z) has E[v v^T] = diag(p) - p p^T, so that for the gradient g = J^T v of v's
product with the logits E[g g^T] = F, over all later tokens at once when each has signs of its own (Hutchinson 1990).

Gradients are taken layer by layer, from the last to the first: what goes into a layer is kept on the way forward, and
the layer runs once more on the way back.  So no more than one layer's weights and activations need be in memory.

Shape letters: S sequences, B of a batch, T tokens, N tokens of a chunk, H hidden, O outputs of a linear, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.clock import OUTPUTS
from importance.score.depth import CHUNK_LOGITS
from importance.score.moments import LARGEST
from importance.score.stream_directions import observing_stream
from importance.score.totals import Totals, wide
from minitron.arrays import spread, store
from minitron.cut.refit import InputSite
from minitron.cut.scores import Key
from minitron.model.layer_by_layer import LayerByLayer, PartByPart, States
from minitron.model.layerwise import OUTPUT, Part
from minitron.model.output_layer import OutputLayer, output_layer
from minitron.model.spec import ModelSpec
from minitron.model.tensor_map import module_name
from minitron.progress import Progress, silent

TOKENS: Final = 2**15
"""So many tokens are gone back for, or all where there are fewer: a matrix of O x O numbers needs several times O."""

SHRINKAGE: Final = 1e-2
"""This share of the mean of the diagonal is added to it: of few tokens a direction of the output that no gradient
pointed to is not known to be harmless."""

Outputs = dict[Key, NDArray[np.float32]]
"""(axis, layer) of a site -> [O, O] the mean over tokens of g g^T, or where that is too large [O] of g^2."""


@dataclass(frozen=True)
class InMemory:
    """A model all of whose parts are in memory, for a walk through its layers."""

    model: PreTrainedModel
    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        """Where it is."""
        found: torch.device = self.model.device
        return found

    def resident(self, *parts: Part) -> AbstractContextManager[None]:
        """They are anyway."""
        return nullcontext()


def output_moments(
    source: PartByPart,
    sites: Iterable[InputSite],
    blocks: NDArray[np.int64],
    totals: Totals,
    *,
    stream: bool = False,
    batch_size: int = 1,
    seed: int = 0,
    folder: Path | None = None,
    results: Path | None = None,
    progress: Progress = silent,
) -> tuple[Outputs, int]:
    """What errors in the outputs of the linears `sites` do, by some of the sequences `blocks` [S, T], and how many of
    them those are; `totals` holds the sums on the way, and with `stream` those of the residual stream in the end
    (importance.score.stream_directions).

    A model in memory takes a batch at a time through all its layers, another one all batches through a layer at a time:
    what goes into each layer is kept meanwhile, in memory or in `folder` on disk.  The numbers are the same.  The
    moments stay in memory or are mapped from files in `results`.  `seed` is that of the signs."""
    some = blocks[spread(len(blocks), max(1, TOKENS // blocks.shape[1]))]
    walk = _Return(source, tuple(sites), stream, totals, batch_size, results, torch.Generator().manual_seed(seed))
    count = 2 * len(source.spec.layers)
    with totals.clock.part(OUTPUTS), progress("Weighing outputs", float(some.size * count), "tokens") as advance:
        if isinstance(source, InMemory):
            for start in range(0, len(some), batch_size):
                walk.run(some[start : start + batch_size], States(), advance)
            for layer in range(len(source.spec.layers)):
                walk.finish(layer)
        else:
            walk.run(some, States(folder), advance, walk.finish)
    return walk.found, len(some)


class _Return:
    """Sequences on their way through a model and back."""

    def __init__(
        self,
        source: PartByPart,
        sites: tuple[InputSite, ...],
        stream: bool,
        totals: Totals,
        batch_size: int,
        results: Path | None,
        chance: torch.Generator,
    ) -> None:
        self.source, self.sites, self.stream, self.totals = source, sites, stream, totals
        self.batch_size, self.results, self.chance = batch_size, results, chance
        self.found: Outputs = {}

    @torch.no_grad()
    def run(
        self,
        blocks: NDArray[np.int64],
        states: States,
        advance: Callable[[float], object],
        through: Callable[[int], None] | None = None,
    ) -> None:
        """Add what the sequences `blocks` [S, T] tell of every site; `through` is told of each layer that all have gone
        back through, while it is in memory."""
        walk = LayerByLayer(self.source, blocks, self.batch_size, states)
        layers = range(len(self.source.spec.layers))
        for layer in layers:
            with self.source.resident(layer):
                for batch in walk.batches:
                    states.put(("entry", layer, batch), walk.state(batch))
                for _, tokens in walk.go(layer):
                    advance(tokens)
        with self.source.resident(OUTPUT):
            head = output_layer(self.source.model)
            for batch in walk.batches:
                states.put(("gradient", batch), self._enter(head, walk.norm, walk.state(batch)))
        for layer in reversed(layers):
            with self.source.resident(layer):
                for batch in walk.batches:
                    entry = walk.placed(states.get(("entry", layer, batch)))
                    gradient = walk.placed(states.get(("gradient", batch)))
                    states.put(("gradient", batch), self._back(walk, layer, batch, entry, gradient))
                    states.drop(("entry", layer, batch))
                    advance(entry.shape[0] * entry.shape[1])
                if through is not None:
                    through(layer)

    def _enter(self, head: OutputLayer, norm: nn.Module, states: Tensor) -> Tensor:
        """[B, T, H]: the gradient by what the last layer made."""
        with torch.enable_grad(), self._observing(None):
            states = states.requires_grad_()
            normed = norm(states)
            rows = normed.detach().flatten(0, 1)
            parts = torch.split(rows, max(1, CHUNK_LOGITS // head.weight.shape[0]))
            found = torch.cat([_of_logits(head, part, self.chance) for part in parts])
            (gradient,) = torch.autograd.grad(normed, states, found.view_as(normed))
        return gradient

    def _back(self, walk: LayerByLayer, layer: int, batch: int, entry: Tensor, gradient: Tensor) -> Tensor:
        """[B, T, H]: the gradient by what goes into a layer, of that by what it makes; its sites are seen."""
        with torch.enable_grad(), self._observing(layer):
            entry = entry.requires_grad_()
            (found,) = torch.autograd.grad(walk.step(layer, batch, entry), entry, gradient)
        return found

    @contextmanager
    def _observing(self, layer: int | None) -> Iterator[None]:
        with ExitStack() as undo:
            if self.stream:
                undo.enter_context(observing_stream(self.source.model, self.source.spec, self.totals, layer))
            for site in () if layer is None else self._of(layer):
                module = self.source.model.get_submodule(module_name(site.rule, layer))
                undo.callback(module.register_forward_hook(self._hook(site)).remove)
            yield

    def _hook(self, site: InputSite) -> Any:
        def see(gradient: Tensor) -> None:
            rows = gradient.flatten(0, -2).to(wide(gradient))
            seen = rows.T @ rows if rows.shape[-1] ** 2 <= LARGEST else rows.square().sum(0)
            self.totals.add(("outputs", site.key), seen)
            self.totals.add(("outputs", "tokens", site.key), torch.tensor(float(len(rows))))

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            output.register_hook(see)  # type: ignore[no-untyped-call]

        return hook

    def finish(self, layer: int) -> None:
        """All text is through a layer: keep the means of its sites, and let go of the sums."""
        for site in self._of(layer):
            sums, tokens = (self.totals[name] for name in (("outputs", site.key), ("outputs", "tokens", site.key)))
            name = f"outputs-{'-'.join(map(str, site.key))}"
            self.found[site.key] = store((sums / tokens).astype(np.float32), self.results, name)
            for part in (), ("tokens",):
                self.totals.forget(("outputs", *part, site.key))

    def _of(self, layer: int) -> Iterator[InputSite]:
        return (site for site in self.sites if site.layer == layer)


def _of_logits(head: OutputLayer, states: Tensor, chance: torch.Generator) -> Tensor:
    """[N, H]: J^T v at every token, J the derivative of its logits by the states [N, H], v as above."""
    chunk = states.detach().requires_grad_()
    logits = head(chunk)
    chances = logits.detach().softmax(-1)
    # Drawn on the CPU: the same signs on every device.
    signs = torch.randint(0, 2, chances.shape, generator=chance, dtype=torch.int8).to(chances) * 2 - 1
    roots = chances.sqrt().mul_(signs)
    (found,) = torch.autograd.grad(logits, chunk, roots - chances * roots.sum(-1, keepdim=True))
    return found


def root_of(moments: NDArray[np.float32]) -> Tensor:
    """R in float64, upper triangular [O, O] or [O], so that |R e|^2 goes as what an error e in the output does.

    R^T R is `moments` divided by the mean of their diagonal, and SHRINKAGE more on the diagonal."""
    found = torch.from_numpy(np.array(moments, np.float64))
    mean = float((found if found.ndim == 1 else found.diagonal()).mean())
    if mean <= 0:
        return torch.ones(len(found), dtype=torch.float64)
    found /= mean
    if found.ndim == 1:
        return (found + SHRINKAGE).sqrt_()
    found.diagonal().add_(SHRINKAGE)
    lower: Tensor = torch.linalg.cholesky(found)
    return lower.mT
