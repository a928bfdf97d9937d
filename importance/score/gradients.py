"""The backward pass: gradients of the loss with respect to every activation, for estimators that use them.

Shape letters: B sequences, T tokens, N tokens of a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from importance.score.depth import CHUNK_LOGITS
from minitron.model.backbone import backbone
from minitron.model.output_layer import OutputLayer, output_layer


def run_and_return(model: PreTrainedModel, ids: Tensor) -> None:
    """Run `model` on the sequences `ids` [B, T] and go back: hooks on activations are given the gradient of the sum
    over tokens of the next token's cross entropy in nats.

    Weights take none.  All activations of the batch are in memory at once; of the logits a chunk of tokens."""
    with torch.enable_grad():
        entry = model.get_input_embeddings().register_forward_hook(_begins_graph)
        try:
            states = backbone(model)(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        finally:
            entry.remove()
        states.backward(_by_states(output_layer(model), states.detach(), ids.to(model.device)))


def _begins_graph(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


def _by_states(head: OutputLayer, states: Tensor, ids: Tensor) -> Tensor:
    """[B, T, H]: the gradient of the sum of the losses by the states that the output layer reads."""
    found = torch.zeros_like(states)
    rows, labels = states[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    size = max(1, CHUNK_LOGITS // head.weight.shape[0])
    parts = []
    for part, wanted in zip(torch.split(rows, size), torch.split(labels, size), strict=True):
        chunk = part.detach().requires_grad_()
        loss = nn.functional.cross_entropy(head(chunk), wanted, reduction="sum")
        parts.append(torch.autograd.grad(loss, chunk)[0])
    found[:, :-1] = torch.cat(parts).view(states.shape[0], -1, states.shape[2])
    return found
