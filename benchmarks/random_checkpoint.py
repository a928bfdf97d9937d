"""A checkpoint of a given config with random weights in bf16, for measurements of memory and time."""

import shutil
from pathlib import Path
from typing import Any

import torch

from minitron import builtin
from minitron.files import write_json
from minitron.model.loading import load_tokenizer
from minitron.model.shards import SHARD_BYTES, Entry, ShardWriter
from minitron.model.slabs import dtypes, row_runs
from minitron.model.spec import read_spec

_NUMBERS = 2**23
"""So many random numbers are drawn; matrices begin somewhere among them."""


def make(folder: Path, config: dict[str, Any], *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the checkpoint, with the built-in model's tokenizer."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(partial / "config.json", config)
    load_tokenizer(builtin.MODEL).save_pretrained(partial)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2 * _NUMBERS, generator=generator).bfloat16()
    # Gains near one, decays and biases of small size; the correction bias is kept in fp32.
    entries = [
        Entry(one.name, "F32" if "correction_bias" in one.name else "BF16", one.shape)
        for one in read_spec(partial).expected()
    ]
    with ShardWriter(partial, entries, shard_bytes=shard_bytes) as writer:
        for entry in entries:
            for start, stop in row_runs(entry.shape, entry.num_bytes):
                shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
                writer.add(entry.name, _random(entry.name, shape, drawn, generator).to(dtypes()[entry.dtype]))
    partial.rename(folder)


def _random(name: str, shape: tuple[int, ...], drawn: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:
        return torch.ones(shape) if "norm" in name else torch.rand(shape, generator=generator) * 0.1
    count = torch.Size(shape).numel()
    begin = int(torch.randint(0, _NUMBERS, (1,), generator=generator))
    if count > _NUMBERS:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()
    return (drawn[begin : begin + count] / shape[-1] ** 0.5).reshape(shape)
