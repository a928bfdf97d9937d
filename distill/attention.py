"""Causal attention in bf16 on CPUs without matrix units, where torch's kernel takes half as long again for sequences of
some hundred tokens: up to 512 it computes the scores that causality masks too, and it multiplies small tiles.

Some rows of queries are taken at a time, with the keys they may see, so that their scores stay in the processor's
cache; the query heads that share a key head are rows of one matmul.  Scores, softmax and their slopes are fp32, and so
are sums over rows.  Nothing but query, key and value is kept for the way back.

Shape letters: B sequences, H query heads, K key heads, G = H / K query heads that share a key head, T tokens, D head
dimension; N = B * K; n of those N and t of the rows are worked on at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME: Final = "minitron_causal_rows"

_ROWS: Final = 64
"""Rows of queries at a time: of 32, 64 and 96 the fastest over all shapes (benchmarks/RESULTS.md)."""

_SCORES: Final = 2**18
"""Scores at a time and thread: 1 MiB in fp32, a core's cache."""

_TOKENS: Final = range(128, 1025)
"""Lengths of sequences at which it is faster forward and backward together, on one thread and on two."""

_THREADS: Final = 2
"""The most that it was measured with."""


@torch.library.custom_op("minitron::causal_attention", mutates_args=())
def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(`query` `key`^T `scale`) `value`, where each token sees itself and those before it.

    Args:
        query: [B, H, T, D], bf16 or fp32.
        key: [B, K, T, D], where K divides H.
        value: [B, K, T, D].
        scale: What scores are multiplied with, D ** -0.5 as a rule.

    Returns:
        [B, H, T, D], in `query`'s type (Vaswani et al. 2017, eq. 1; heads shared as Ainslie et al. 2023, GQA).
    """
    queries, keys, values = _blocks(query, key), key.flatten(0, 1), value.flatten(0, 1)
    outs = torch.empty_like(queries)
    with torch.autocast("cpu", enabled=False):
        for some, block, probabilities in _softmax(queries, keys, scale):
            torch.bmm(probabilities.to(query.dtype), values[some, : probabilities.shape[2]], out=outs[some, block])
    return _heads(outs, query)


@torch.library.custom_op("minitron::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The slopes of `query` [B, H, T, D], `key` and `value` [B, K, T, D], given `slope` [B, H, T, D] of the output.

    Scores are made anew.  With P the probabilities, dV = P^T dO, dS = P (dO V^T - rowsum(P dO V^T)), dQ = dS K,
    dK = dS^T Q (Dao et al. 2022, FlashAttention, appendix B.2)."""
    kind = query.dtype
    queries, slopes = _blocks(query, key), _blocks(slope, key)
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    d_queries, wide = torch.empty_like(queries), values.float().transpose(1, 2)
    d_key, d_value = torch.zeros_like(keys, dtype=torch.float32), torch.zeros_like(values, dtype=torch.float32)
    with torch.autocast("cpu", enabled=False):
        for some, block, probabilities in _softmax(queries, keys, scale):
            outer, seen = slopes[some, block], slice(probabilities.shape[2])
            d_value[some, seen] += torch.bmm(probabilities.to(kind).transpose(1, 2), outer)
            d_probabilities = torch.bmm(outer.float(), wide[some, :, seen])
            d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, torch.float32).to(kind)
            torch.bmm(d_scores, keys[some, seen], out=d_queries[some, block])
            d_key[some, seen] += torch.bmm(d_scores.transpose(1, 2), queries[some, block])
    return (
        _heads(d_queries.mul_(scale), query),
        d_key.mul_(scale).to(kind).view(key.shape),
        d_value.to(kind).view(value.shape),
    )


def _blocks(tensor: Tensor, key: Tensor) -> Tensor:
    """[B, H, T, D] as [N, blocks, G t, D]: the rows of a block that see one of the heads of `key`; zeros fill the last
    block."""
    count, _, tokens, size = tensor.shape
    blocks = -(-tokens // _ROWS)
    padded = tensor if tokens == blocks * _ROWS else nn.functional.pad(tensor, (0, 0, 0, blocks * _ROWS - tokens))
    cut = padded.reshape(count * key.shape[1], -1, blocks, _ROWS, size)
    return cut.transpose(1, 2).reshape(len(cut), blocks, -1, size)


def _heads(blocks: Tensor, like: Tensor) -> Tensor:
    """What `_blocks` made of a tensor of the shape of `like`: [B, H, T, D], in memory [B, T, H, D], as the layers that
    come next read it."""
    count, heads, tokens, size = like.shape
    cut = blocks.view(count, len(blocks) // count, blocks.shape[1], -1, _ROWS, size)
    return cut.permute(0, 2, 4, 1, 3, 5).contiguous().view(count, -1, heads, size)[:, :tokens].transpose(1, 2)


def _softmax(queries: Tensor, keys: Tensor, scale: float) -> Iterator[tuple[slice, int, Tensor]]:
    """Which of N, which block, and its probabilities [n, G t, keys up to its last row] in fp32, of [N, blocks, G t, D]
    and [N, T, D]."""
    (count, blocks, rows, _), tokens = queries.shape, keys.shape[1]
    later = torch.full((_ROWS, _ROWS), -math.inf).triu(1)
    size = max(1, _SCORES * torch.get_num_threads() // (rows * tokens))
    for some in (slice(first, first + size) for first in range(0, count, size)):
        flipped = keys[some].float().transpose(1, 2)
        for block in range(blocks):
            first, stop = block * _ROWS, min((block + 1) * _ROWS, tokens)
            scores = torch.bmm(queries[some, block].float() * scale, flipped[:, :, :stop])
            scores.view(len(scores), -1, _ROWS, stop)[..., first:].add_(later[:, : stop - first])
            yield some, block, torch.softmax(scores, -1)


@causal_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return _fake_heads(query)


@causal_attention_backward.register_fake
def _(slope: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_heads(query), key.new_empty(key.shape), value.new_empty(value.shape)


def _fake_heads(like: Tensor) -> Tensor:
    padded = -(-like.shape[2] // _ROWS) * _ROWS
    return like.new_empty(len(like), padded, like.shape[1], like.shape[3])[:, : like.shape[2]].transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.scale = inputs[3]


def _backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *causal_attention_backward(slope, *ctx.saved_tensors, ctx.scale), None


causal_attention.register_autograd(_backward, setup_context=_keep)
# Where autocast is on, inputs may come in fp32, as those of torch's kernel may.
causal_attention.register_autocast("cpu", torch.bfloat16)


def is_faster_here() -> bool:
    """Whether this CPU multiplies in bf16 but has no matrix units (AMX), for which torch's kernel has a way of its
    own, and no more threads than were measured; measured on one such CPU only."""
    fits = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return bool(fits and torch.get_num_threads() <= _THREADS)


@contextmanager
def by_rows(models: Iterable[PreTrainedModel]) -> Iterator[None]:
    """Until the block ends, the attention of `models` is `causal_attention` where that fits what is asked for, torch's
    elsewhere."""
    changed = [model for model in models if model.config._attn_implementation == "sdpa"]
    for model in changed:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        for model in changed:
            model.set_attn_implementation("sdpa")


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention layers call, with the meaning of `sdpa_attention_forward`."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = (
        attention_mask is None
        and not dropout
        and all(more.get(name) is None for name in ("position_bias", "cache", "softcap"))
    )
    if not (causal and plain and _fits(query, key, value)):
        asked = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **asked, **more)
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, scale).transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    cast = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if cast else query.dtype
    return (
        query.device.type == "cpu"
        and kind == torch.bfloat16
        and query.shape[2] in _TOKENS
        and query.shape[2:] == key.shape[2:] == value.shape[2:]
        and query.shape[1] % key.shape[1] == 0
    )


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
