"""The roofline: its laws against counting by hand, its figures against published ones.

`PYTHONPATH=tests python tests/memory/test_roofline.py` prints the tables of docs/speed.md."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path

import pytest
from family_sizes.base import HYBRID_SIZES
from planning_models import published

from minitron.errors import MinitronError
from minitron.memory import roofline
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import GPUS, Gpu, find_gpu
from minitron.memory.loads import Load, Routed, Weights, load_of
from minitron.memory.questions import largest_batch
from minitron.memory.roofline import Speed, estimate
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec, spec_of

H100 = find_gpu("H100-80GB-SXM")
PROMPT, OUTPUT = 32768, 1024
DOCS = Path(__file__).parents[2] / "docs" / "speed.md"

# vLLM's defaults for offline runs on an 80 GB Hopper.  Graphs are off as their floor of one block a sequence would
# ask for more memory than the 30B leaves, and the runs were made.
OFFLINE = Engine("vllm", cuda_graphs=False, max_num_seqs=1024, max_num_batched_tokens=16384)
UTILIZATION = 0.9

# model, weights, keys and values, published output tokens/s; the first of a group is what its ratios are taken to.
DENSE = (
    ("12B", "bf16", "fp8", 585),
    ("9B", "bf16", "fp8", 794),
    ("9B", "fp8", "fp8", 1012),
    ("7B", "bf16", "fp8", 963),
    ("7B", "fp8", "fp8", 1147),
)
MIXTURES = (
    ("30B-A3B", "bf16", "bf16", 598),
    ("30B-A3B", "fp8", "fp8", 1323),
    ("22B-A3B", "bf16", "bf16", 1190),
    ("22B-A3B", "fp8", "fp8", 1576),
)
# Another edition of the same page, with keys and values in FP8 throughout: no constant was fitted to it.
HELD_OUT = (
    ("30B-A3B", "bf16", "fp8", 1006),
    ("30B-A3B", "fp8", "fp8", 1404),
    ("22B-A3B", "bf16", "fp8", 1301),
    ("22B-A3B", "fp8", "fp8", 1653),
)


def seven_billion() -> ModelSpec:
    """The published cut of the 9B: without eight of the layers behind the last attention layer."""
    parent = published("Nemotron-Nano-9B-v2")
    dropped = {42, 43, 44, 45, 46, 47, 49, 51}
    layers = tuple(layer for layer in range(len(parent.layers)) if layer not in dropped)
    sizes = {"hidden_size": 4352, "mamba_num_heads": 120, "mamba_head_dim": 80, "intermediate_size": 13824}
    return parent.resized(sizes, layers)


def twenty_two_billion() -> ModelSpec:
    sizes = {"hidden_size": 2304, "n_routed_experts": 104, "moe_shared_expert_intermediate_size": 3072}
    return published("Nemotron-3-Nano-30B-A3B").resized(sizes)


SPECS = {
    "12B": published("Nemotron-Nano-12B-v2"),
    "9B": published("Nemotron-Nano-9B-v2"),
    "7B": seven_billion(),
    "30B-A3B": published("Nemotron-3-Nano-30B-A3B"),
    "22B-A3B": twenty_two_billion(),
}

Row = tuple[str, str, str, int]


@cache
def prepared(row: Row) -> tuple[Load, int]:
    model, weights, kv, _ = row
    workload = workload_of(SPECS[model], PROMPT + OUTPUT, weights=weights, kv=kv)
    budget = Budget(H100.usable, UTILIZATION, workspace=None, gpu=H100)
    sequences = largest_batch(SPECS[model], replace(workload, engine=OFFLINE), budget)
    return load_of(SPECS[model], workload), sequences


def speed_of(row: Row) -> Speed:
    load, sequences = prepared(row)
    return estimate(load, H100, prompt=PROMPT, output=OUTPUT, concurrency=sequences)


def percent(quotient: float) -> str:
    return f"{round(100 * (quotient - 1)):+d} %"


def table(rows: Iterable[Row]) -> list[str]:
    """The rows of docs/speed.md: sequences, tokens/s and how far off, ratio to the first and how far off."""
    rows = list(rows)
    first = speed_of(rows[0]).output_tokens_per_second
    lines = []
    for row in rows:
        speed, figure = speed_of(row), row[3]
        found, ratio, wanted = (
            speed.output_tokens_per_second,
            speed.output_tokens_per_second / first,
            figure / rows[0][3],
        )
        lines.append(
            f"| {row[0]} | {row[1]} | {row[2]} | {speed.concurrency} | {figure:,} | {found:,.0f} | "
            f"{percent(found / figure)} | {wanted:.2f} | {ratio:.2f} | {percent(ratio / wanted)} |"
        )
    return lines


def worst_ratio(rows: Iterable[Row]) -> float:
    rows = list(rows)
    off = [speed_of(row).output_tokens_per_second / row[3] for row in rows]
    return max(abs(one / off[0] - 1) for one in off[1:])


@pytest.mark.parametrize(("rows", "bound"), [(DENSE, 0.10), (MIXTURES, 0.11)])
def test_published_ratios(rows: tuple[Row, ...], bound: float) -> None:
    assert worst_ratio(rows) < bound


@pytest.mark.parametrize("row", DENSE + MIXTURES)
def test_published_throughput(row: Row) -> None:
    assert speed_of(row).output_tokens_per_second == pytest.approx(row[3], rel=0.10)


def test_the_edition_that_nothing_was_fitted_to() -> None:
    off = {row[:2]: speed_of(row).output_tokens_per_second / row[3] - 1 for row in HELD_OUT}
    assert off.pop(("30B-A3B", "bf16")) == pytest.approx(-0.31, abs=0.02)
    assert max(map(abs, off.values())) < 0.05


def test_how_many_sequences_run_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "OFFLINE", Engine())
    monkeypatch.setattr(sys.modules[__name__], "prepared", prepared.__wrapped__)
    assert (prepared(MIXTURES[0])[1], round(worst_ratio(MIXTURES), 2)) == (49, 0.23)


@pytest.mark.parametrize("rows", [DENSE, MIXTURES, HELD_OUT])
def test_docs_quote_what_is_computed(rows: tuple[Row, ...]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [line for line in table(rows) if line not in text] == []


@pytest.mark.parametrize("name", ["BANDWIDTH_EFFICIENCY", "STEP_OVERHEAD", "EXPERT_EFFICIENCY", "bf16", "fp8"])
@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_ratios_hang_on_no_digit_of_a_constant(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in roofline.MATMUL_EFFICIENCY:
        monkeypatch.setitem(roofline.MATMUL_EFFICIENCY, name, factor * roofline.MATMUL_EFFICIENCY[name])
    else:
        monkeypatch.setattr(roofline, name, factor * getattr(roofline, name))
    assert max(worst_ratio(DENSE), worst_ratio(MIXTURES)) < 0.2


def test_the_pruned_models_are_the_published_ones() -> None:
    assert SPECS["7B"].letters == "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-MMMM-M-"
    assert round(SPECS["7B"].parameters().total / 1e9, 3) == 6.998
    assert round(SPECS["22B-A3B"].parameters().total / 1e9, 3) == 22.277


@pytest.mark.parametrize("weights", ["bf16", "fp8", "nvfp4", "int8"])
@pytest.mark.parametrize("name", ["Nemotron-Nano-9B-v2", "Nemotron-3-Nano-30B-A3B", "Llama-3.1-8B"])
def test_a_load_is_the_footprint_without_the_embedding(name: str, weights: str) -> None:
    spec = published(name)
    workload = workload_of(spec, 4096, 3, weights=weights)
    load, found = load_of(spec, workload), footprint(spec, workload)
    embedding = spec.sizes["vocab"] * spec.sizes["hidden"]
    groups = (load.dense, load.head, *load.experts)
    assert sum(group.bytes for group in groups) + 2 * embedding == found.weights
    assert sum(sum(group.parameters.values()) for group in groups) + embedding == spec.parameters().total
    assert load.kv_bytes_per_token * 4096 * 3 == found.kv_cache
    assert load.state_bytes_per_sequence * 3 == found.ssm_state + found.conv_state


def test_operations_of_a_token_in_a_mixture() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    load = load_of(spec, workload_of(spec, 1))
    used = load.dense.parameters["bf16"] + load.head.parameters["bf16"]
    (experts,) = load.experts
    used += round(experts.parameters["bf16"] * experts.share)
    assert used == pytest.approx(3.228e9, abs=5e5)
    assert load.attention_operations == 6 * 32 * 4 * 128


def test_a_tied_embedding_is_the_head() -> None:
    sizes = {"hidden_size": 64, "vocab_size": 100, "intermediate_size": 96, "num_attention_heads": 4}
    spec = spec_of({"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": True} | sizes)
    load = load_of(spec, workload_of(spec, 1, weights="bf16"))
    assert load.head == Weights({"bf16": 6400}, 12800)
    assert load.dense.parameters["bf16"] + 6400 == spec.parameters().total
    assert load.scan_operations == len(load.experts) == load.state_bytes_per_sequence == 0


@pytest.mark.parametrize(("experts", "chosen", "tokens"), [(4, 1, 3), (4, 2, 2), (5, 2, 2), (3, 3, 2)])
def test_experts_touched_by_chance(experts: int, chosen: int, tokens: int) -> None:
    """Against every way in which the tokens can choose."""
    ways = list(product(combinations(range(experts), chosen), repeat=tokens))
    mean = sum(len(set().union(*way)) for way in ways) / len(ways)
    routed = Routed({}, 10, experts, chosen)
    load = Load(Weights(), Weights(), (routed,))
    assert routed.touched_share(tokens) * experts == pytest.approx(mean)
    assert load.weight_bytes(tokens) == pytest.approx(10 * mean / experts)


def test_one_estimate_by_hand() -> None:
    """A10G: 600 GB/s and 70 TFLOP/s, of which 480e9 bytes and 52.5e12 operations a second are reached."""
    load = Load(
        dense=Weights({"bf16": 7_000_000_000}, 14_000_000_000),
        head=Weights({"bf16": 500_000_000}, 1_000_000_000),
        kv_bytes_per_token=100_000,
        state_bytes_per_sequence=50_000_000,
        attention_operations=600_000,
        scan_operations=1_000_000,
        activation_bytes=9_600_000,
    )
    speed = estimate(load, GPUS["A10G"], prompt=1000, output=200, concurrency=4)
    step = (15e9 + 4 * (1100 * 100_000 + 2 * 50e6)) / 480e9 + 0.005
    assert speed.time_per_output_token == pytest.approx(step)
    token = (14e9 + 600_000 * 500 + 1e6) / 52.5e12 + 9.6e6 / 480e9
    assert speed.time_to_first_token == pytest.approx(1000 * token + 1e9 / 52.5e12 + 0.005)
    prefill = 4 * (1000 * token + 1e9 / 52.5e12) + 0.005
    assert speed.prefill_tokens_per_second == pytest.approx(4000 / prefill)
    assert speed.decode_tokens_per_second == pytest.approx(4 / step)
    assert speed.output_tokens_per_second == pytest.approx(800 / (prefill + 200 * step))
    assert (speed.bound, speed.origin, speed.concurrency) == ("bandwidth", "estimated", 4)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_more_sequences_serve_more_on_every_gpu(gpu: Gpu) -> None:
    load = prepared(DENSE[1])[0]
    speeds = [estimate(load, gpu, prompt=2048, output=512, concurrency=sequences) for sequences in (1, 4, 16)]
    throughput = [speed.output_tokens_per_second for speed in speeds]
    assert throughput == sorted(throughput)
    steps = [speed.time_per_output_token for speed in speeds]
    assert steps == sorted(steps)


def test_many_short_sequences_are_bound_by_operations() -> None:
    load = Load(Weights({"bf16": 10**9}, 2 * 10**9), Weights(), state_bytes_per_sequence=1)
    assert estimate(load, H100, prompt=1, output=1, concurrency=1).bound == "bandwidth"
    assert estimate(load, H100, prompt=1, output=1, concurrency=2000).bound == "compute"


def test_a_short_prompt_still_reads_the_weights() -> None:
    load = Load(Weights({"bf16": 10**9}, 2 * 10**9), Weights())
    speed = estimate(load, H100, prompt=1, output=1, concurrency=1)
    assert speed.time_to_first_token == pytest.approx(2e9 / (0.8 * 3350e9) + 0.005)


@pytest.mark.parametrize(("form", "gpu"), [("fp8", "A100-80GB-SXM"), ("nvfp4", "H100-80GB-SXM"), ("int8", "B200")])
def test_a_format_without_tensor_cores_saves_bytes_only(form: str, gpu: str) -> None:
    wide = Load(Weights({"bf16": 10**9}, 2 * 10**9), Weights())
    small = Load(Weights({form: 10**9}, 10**9), Weights())
    slow, fast = (estimate(load, GPUS[gpu], prompt=9000, output=10, concurrency=1) for load in (wide, small))
    assert slow.prefill_tokens_per_second == fast.prefill_tokens_per_second
    assert slow.time_per_output_token > fast.time_per_output_token


@pytest.mark.parametrize(("form", "gpu"), [("fp8", "L4"), ("nvfp4", "B200")])
def test_a_format_with_tensor_cores_is_faster(form: str, gpu: str) -> None:
    loads = (Load(Weights({kept: 10**9}, 10**9), Weights()) for kept in ("bf16", form))
    slow, fast = (estimate(load, GPUS[gpu], prompt=9000, output=10, concurrency=1) for load in loads)
    assert fast.prefill_tokens_per_second > 1.1 * slow.prefill_tokens_per_second


def test_two_gpus_hold_half_each() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    one = load_of(spec, workload_of(spec, 1))
    two = load_of(spec, workload_of(spec, 1, tensor_parallel=2))
    assert two.experts[0].bytes * 2 == one.experts[0].bytes
    assert two.attention_operations * 2 == one.attention_operations
    assert two.experts[0].num_experts == one.experts[0].num_experts


def test_drafted_tokens_do_not_count() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    assert load_of(spec, workload_of(spec, 1)) == load_of(spec, workload_of(spec, 1, speculative_tokens=3))


def test_the_chunk_of_the_scan_is_the_configs() -> None:
    loads = []
    for chunk in (None, 128, 256):
        config = {"model_type": "nemotron_h", "layers_block_type": ["mamba", "attention"]} | HYBRID_SIZES
        spec = spec_of(config | {"chunk_size": chunk})
        loads.append(load_of(spec, workload_of(spec, 1)))
    assert loads[0] == loads[1]
    assert loads[2].scan_operations > loads[1].scan_operations
    assert loads[2].activation_bytes < loads[1].activation_bytes


def test_what_cannot_be_estimated_is_said() -> None:
    load = Load(Weights({"bf16": 1}, 2), Weights())
    with pytest.raises(MinitronError, match="22GiB cannot be estimated"):
        estimate(load, find_gpu("22GiB"), prompt=1, output=1, concurrency=1)
    with pytest.raises(MinitronError, match="0 sequences"):
        estimate(load, H100, prompt=1, output=1, concurrency=0)
    with pytest.raises(MinitronError, match="5 of 4 experts"):
        Routed(num_experts=4, experts_per_token=5)


if __name__ == "__main__":
    for group in (DENSE, MIXTURES, HELD_OUT):
        print(*table(group), "", sep="\n")
