"""Causal attention by rows (`distill/attention.py`) beside torch's kernel: time and error, ratios taken in one run.

    python benchmarks/attention.py [--repeats 7]

In bf16, on one thread; calls take turns, times are medians.  Errors are relative to the definition in float64, by the
Frobenius norm.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch
from smollm2 import write_section
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import distill.attention

RESULTS = Path(__file__).with_name("RESULTS.md")

SHAPES: Final = (
    (8, 9, 3, 256, 64),
    (4, 9, 3, 512, 64),
    (2, 9, 3, 1024, 64),
    (1, 9, 3, 2048, 64),
    (2, 32, 8, 512, 128),
    (1, 32, 8, 2048, 128),
)
"""Sequences, query heads, key heads, tokens, head dimension."""

ROWS: Final = (32, 64, 96)
TORCH: Final = "torch"

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def by_rows(rows: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Ours, so many rows at a time."""
    distill.attention._ROWS = rows  # type: ignore[misc]
    return distill.attention.causal_attention(query, key, value, query.shape[-1] ** -0.5)


WAYS: Final[dict[str, Way]] = {TORCH: kernel} | {f"{rows} rows": partial(by_rows, rows) for rows in ROWS}


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    """Query, key, value and a slope of the output, [B, T, H, D] in memory as layers hand them on."""
    torch.manual_seed(0)
    count, heads, key_heads, tokens, size = shape
    drawn = [torch.randn(count, tokens, each, size) * 1.5 for each in (heads, key_heads, key_heads, heads)]
    return [tensor.bfloat16().transpose(1, 2) for tensor in drawn]


def both_ways(way: Way, given: list[Tensor]) -> tuple[list[Tensor], float, float]:
    """Output and slopes, seconds forward and backward."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in given[:3])
    started = time.perf_counter()
    out = way(query, key, value)
    between = time.perf_counter()
    slopes = torch.autograd.grad(out, (query, key, value), given[3])
    return [out.detach(), *slopes], between - started, time.perf_counter() - between


def measure(shape: tuple[int, ...], repeats: int) -> str:
    """A row of the table."""
    given = inputs(shape)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(repeats + 1):
        for name, way in WAYS.items():
            times[name].append(both_ways(way, given)[1:])
    middle = {name: [median(part) for part in zip(*found[1:], strict=True)] for name, found in times.items()}
    exact = both_ways(kernel, [tensor.double() for tensor in given])[0]

    def errors(name: str) -> str:
        pairs = zip(both_ways(WAYS[name], given)[0], exact, strict=True)
        return " ".join(f"{1e3 * float((found.double() - true).norm() / true.norm()):.1f}" for found, true in pairs)

    torchs = "+".join(f"{1e3 * seconds:.0f}" for seconds in middle[TORCH])
    ratios = [
        "+".join(f"{mine / theirs:.2f}" for mine, theirs in zip(middle[f"{rows} rows"], middle[TORCH], strict=True))
        for rows in ROWS
    ]
    cells = (" x ".join(map(str, shape)), torchs, *ratios, errors(TORCH), errors("64 rows"))
    row = f"| {' | '.join(cells)} |"
    print(row, flush=True)
    return row


def main() -> None:
    """Parse the command line, measure, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "## Attention by rows of queries (`benchmarks/attention.py`)",
        "",
        "Sequences x query heads x key heads x tokens x head dimension, bf16, one thread: milliseconds of torch's "
        "kernel (forward+backward), times of ours as parts of them, and errors of output and slopes of query, key and "
        "value beside float64, in thousandths.",
        "",
        f"| | torch's ms | {' | '.join(f'{rows} rows' for rows in ROWS)} | torch's errors | of 64 rows |",
        "|---|--:|--:|--:|--:|---|---|",
        *(measure(shape, options.repeats) for shape in SHAPES),
        "",
    ]
    write_section(options.results, "\n".join(lines))


if __name__ == "__main__":
    main()
