"""vLLM's law against numbers read off real engines."""

import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from planning_models import LONG, published, tiny

from minitron.engines.keeping import Kept
from minitron.engines.table import ENGINES
from minitron.engines.vllm import Pool, pool
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.caches import kept
from minitron.memory.footprint import Footprint, engine_facts, footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.parallel import per_gpu, require_splits, splits
from minitron.memory.questions import cautions
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec, spec_of
from minitron.units import GiB, MiB
from pipeline.serving import EngineName

NINE, THIRTY = "Nemotron-Nano-9B-v2", "Nemotron-3-Nano-30B-A3B"


def engine(prefix_caching: bool = False, cuda_graphs: bool = False, **more: int) -> Engine:
    return Engine("vllm", prefix_caching, cuda_graphs, **more)


def pool_of(spec: ModelSpec, workload: Workload) -> Pool:
    return pool(workload, kept(spec, workload, spec.sizes, spec.kind_counts()))


def in_pool(found: Footprint) -> int:
    names = ("kv_cache", "conv_state", "ssm_state", "prefix_states", "block_rounding", "null_block", "graph_blocks")
    return int(sum(found.lines[name] for name in names))


@pytest.mark.parametrize(("prefix_caching", "blocks", "gib"), [(False, 107, 2.142), (True, 121, 2.422)])
def test_the_worked_example(prefix_caching: bool, blocks: int, gib: float) -> None:
    spec = published(NINE)
    workload = workload_of(spec, LONG, engine=engine(prefix_caching))
    found = pool_of(spec, workload)
    assert (found.block_size, found.page, found.groups, found.group) == (1312, 5_373_952, 8, 4)
    assert found.block == 21_495_808
    assert found.per_sequence == blocks
    assert round(blocks * 21_495_808 / GiB, 3) == gib
    # The footprint tells the same pool line by line, and a null block beside it.
    assert in_pool(footprint(spec, workload)) == (blocks + 1) * 21_495_808


def test_a_bf16_state_makes_smaller_blocks() -> None:
    spec = published(NINE)
    assert pool_of(spec, workload_of(spec, LONG, ssm_state="bf16", engine=engine())).block_size == 672


def test_a_state_that_fills_whole_units_takes_no_more() -> None:
    # Keys and values of 16 tokens: 16 x 2 x 2 heads x 8 x 2 B = 1,024 B.  A state: (8 x 8 + 2 x 2 x 16) x 4 x 2 B for
    # the convolution's inputs and 8 x 8 x 16 x 4 B, together 5,120 B, five of these to the byte.
    spec = tiny("M*M*", head_dim=8, mamba_head_dim=8, conv_kernel=5)
    workload = workload_of(spec, 800, engine=engine())
    found = pool_of(spec, workload)
    assert (found.block_size, found.page) == (5 * 16, 5120)
    # 800 tokens are ten blocks of 80, and the states fill theirs: the pool holds no byte more, the null block apart.
    assert found.per_sequence == 10 + 1
    assert footprint(spec, workload).block_rounding == 0
    # A byte more in a state, and the block is a unit longer.
    keep = kept(spec, workload, spec.sizes, spec.kind_counts())
    states = np.array([5119, 5120, 5121])
    caches = [replace(one, conv=0, state=states) if one.cache.keeps_state else one for one in keep.caches]
    longer = pool(workload, Kept(tuple(caches)))
    assert longer.block_size.tolist() == [80, 80, 96]


def test_the_block_of_nano_30b_with_fp8_keys_and_values() -> None:
    spec = published(THIRTY)
    found = pool_of(spec, workload_of(spec, LONG, weights="nvfp4", kv="fp8", engine=engine()))
    assert found.block == 12_828_672


@pytest.mark.parametrize(
    ("model", "options", "sequences", "weights", "remainder", "spread"),
    [
        # Weights and remainders as read off the logs; the second engine's rest wanders by less than one block.
        (NINE, {}, 32, 16_982 * MiB, (1_186, 1_186), 21_495_808),
        (THIRTY, {"weights": "nvfp4", "kv": "fp8"}, 1, 19_339_781_632, (2_586, 2_595), 12_828_672),
    ],
)
def test_budgets_leave_a_constant_remainder(
    model: str, options: dict[str, str], sequences: int, weights: int, remainder: tuple[int, int], spread: int
) -> None:
    """vLLM fills what a budget leaves with whole blocks, so what is not in the pool is one number, less than a block
    apart whatever the budget."""
    spec = published(model)
    workload = workload_of(spec, 2048, sequences, engine=engine(), **options)
    block = int(pool_of(spec, workload).block)
    assert block == spread
    assert remainder[1] - remainder[0] < block / MiB
    for budget in (29 * GiB, 30 * GiB, 31 * GiB, 31.5 * GiB, 32 * GiB):
        room = round(budget) - weights - remainder[0] * MiB
        # The longest context that the pool holds takes all of the room but for less than a table of blocks.
        low, high = 1, 2**26
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if _pool_bytes(spec, workload, middle) <= room else (low, middle - 1)
        groups = 2 * sequences
        assert 0 <= room - _pool_bytes(spec, workload, low) < groups * block


def _pool_bytes(spec: ModelSpec, workload: Workload, context: int) -> int:
    return in_pool(footprint(spec, replace(workload, context=context)))


def test_thirty_two_states_of_the_9b() -> None:
    spec = published(NINE)
    found = footprint(spec, workload_of(spec, 1, 32))
    assert round((found.conv_state + found.ssm_state) / 32 / MiB, 1) == 136.9


def test_cuda_graphs_ask_for_a_block_a_sequence() -> None:
    spec = published(NINE)
    few = workload_of(spec, 1024, engine=engine(cuda_graphs=True, max_num_seqs=256))
    found, block = footprint(spec, few), 21_495_808
    # One sequence takes 1 block of keys and values, 7 of states and the null block: 256 is far more.
    assert found.graph_blocks == (256 - 9) * block
    assert in_pool(found) == 256 * block
    assert footprint(spec, replace(few, engine=engine(max_num_seqs=256))).graph_blocks == 0


def test_the_sampler_warms_up_with_every_sequence() -> None:
    """9.6 to 9.7 copies of fp32 logits at 1024 sequences."""
    spec = published(NINE)
    found = footprint(spec, workload_of(spec, 1024, engine=engine(max_num_seqs=1024)), None)
    copy = 1024 * spec.sizes["vocab"] * 4
    assert 9.6 * copy <= found.workspace <= 9.7 * copy
    small = footprint(spec, workload_of(spec, 1024, engine=engine()), None)
    assert 0.8 * GiB - MiB <= small.workspace < found.workspace


def test_models_with_one_kind_of_cache() -> None:
    llama = published("Llama-3.1-8B")
    found = footprint(llama, workload_of(llama, 1000, engine=engine()))
    # 63 blocks of 16 tokens and the null block, all 32 layers in one group; nothing but rounding is added.
    token = 2 * 8 * 128 * 2
    assert in_pool(found) == 64 * 16 * 32 * token
    assert found.kv_cache == 1000 * 32 * token
    mamba = tiny("MM-")
    pure = footprint(mamba, workload_of(mamba, 1000, 3, engine=engine()))
    assert pure.kv_cache == 0
    assert pure.block_rounding == 0


def test_drafted_tokens_take_states_keys_and_weights() -> None:
    spec = published("Nemotron-3-Super-120B-A12B")
    plain, drafting = (footprint(spec, workload_of(spec, LONG, speculative_tokens=n)) for n in (0, 2))
    assert plain.mtp_weights == 0
    assert drafting.mtp_weights == 2 * (123_611_033_088 - 120_668_707_840)
    assert drafting.kv_cache * 8 == plain.kv_cache * 9
    assert drafting.ssm_state == 3 * plain.ssm_state
    # The convolution keeps 3 inputs, and one more for each of 2 drafts, in each of 3 states.
    assert drafting.conv_state * 3 == plain.conv_state * 5 * 3
    with pytest.raises(MinitronError, match="no multi-token-prediction block"):
        workload_of(published(NINE), LONG, speculative_tokens=1)


def test_a_split_model_takes_its_part_of_each_tensor() -> None:
    spec = published(THIRTY)
    whole, half, eighth = (footprint(spec, workload_of(spec, LONG, tensor_parallel=n)) for n in (1, 2, 8))
    parts = spec.parameters().by_component
    copied = 2 * (parts["moe_router"] + spec.sizes["hidden"] * (len(spec.layers) + 1))
    assert half.kv_cache * 2 == whole.kv_cache
    assert half.ssm_state * 2 == whole.ssm_state
    assert half.weights - copied == pytest.approx((whole.weights - copied) / 2, rel=1e-9)
    # Two KV heads among eight GPUs: each holds a copy of one.
    assert eighth.kv_cache * 2 == whole.kv_cache


def test_what_does_not_divide_is_refused() -> None:
    spec = published(NINE)
    with pytest.raises(MinitronError, match="intermediate_size = 15680 cannot be split among 3 GPUs"):
        require_splits(spec, 3)
    assert splits(spec, spec.sizes, 8)
    assert not splits(spec, spec.sizes | {"mamba_group": 3}, 8)
    assert per_gpu(spec, spec.sizes | {"mamba_group": 1}, 8)["mamba_group"] == 1


def test_lora_counts_both_of_its_matrices() -> None:
    spec = published("Llama-3.1-8B")
    found = footprint(spec, workload_of(spec, 1, lora_rank=16, loras=2)).lora
    pairs = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    assert found == 2 * 16 * 2 * 32 * pairs


def test_the_command_that_serves_the_workload() -> None:
    spec = published(NINE)
    workload = workload_of(spec, 8192, 4, kv="fp8", tensor_parallel=2, engine=engine())
    gpu = find_gpu("L4")
    assert serve_line("my model", spec, workload, Budget(gpu.usable, 0.92, gpu=gpu)) == (
        "vllm serve 'my model' --max-model-len 8192 --max-num-seqs 4 --max-num-batched-tokens 2048 "
        "--gpu-memory-utilization 0.92 --mamba-ssm-cache-dtype float32 --kv-cache-dtype fp8 "
        "--no-enable-prefix-caching --enforce-eager --tensor-parallel-size 2"
    )


def test_what_is_reserved_is_not_given_to_vllm() -> None:
    spec, gpu = published("Llama-3.1-8B"), find_gpu("A10G")
    workload = workload_of(spec, 8192, engine=engine())
    line = serve_line("x", spec, workload, Budget(gpu.usable, 0.92, round(1.3 * GiB), gpu=gpu))
    # 0.92 - 1.3 / 22.06 = 0.8611, never rounded up; without Mamba layers no word of their states.
    assert "--gpu-memory-utilization 0.861 " in line
    assert "mamba" not in line
    assert "utilization" not in serve_line("x", spec, workload, Budget(20 * GiB))
    line = serve_line("x", spec, workload_of(spec, 8192, kv="int8", engine=engine()), Budget(20 * GiB))
    assert "--kv-cache-dtype int8_per_token_head " in line


def test_an_engine_that_does_not_keep_keys_and_values_so_says_which_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], kv={"bf16": "", "fp8": "fp8"}))
    with pytest.raises(MinitronError, match="does not support a KV cache in int8; choose --kv bf16 or fp8"):
        workload_of(published("Llama-3.1-8B"), 8192, kv="int8", engine=engine())


def test_an_fp32_model_is_counted_in_bf16_as_vllm_computes_it() -> None:
    """vLLM's `--dtype auto` casts float32 to 16 bits."""
    spec = published("Llama-3.1-8B")
    fp32, gpu = spec_of(dict(spec.config) | {"dtype": "torch.float32"}), find_gpu("H100")
    budget = Budget(gpu.usable, 0.92, gpu=gpu)
    for config_of_it, asked, weights, flag in (
        (fp32, None, "bf16", "--dtype bfloat16"),
        (fp32, "fp32", "fp32", "--dtype float32"),
        (spec, None, "bf16", ""),
        (spec, "fp16", "fp16", "--dtype float16"),
        (fp32, "fp8", "fp8", ""),
    ):
        workload = workload_of(config_of_it, 8192, weights=asked, engine=engine())
        assert workload.weights == weights
        line = serve_line("x", config_of_it, workload, budget)
        assert flag in line if flag else "--dtype" not in line
        told = [one for one in cautions(config_of_it, workload, gpu) if "float32" in one]
        assert len(told) == (config_of_it is fp32 and asked is None)
    bytes_of = [footprint(one, workload_of(one, 8192, engine=engine())).weights for one in (fp32, spec)]
    assert bytes_of[0] == bytes_of[1]
    # Without an engine's own rules a config means what it says.
    assert workload_of(fp32, 8192).weights == "fp32"


def test_the_engines_that_can_be_typed_are_those_of_the_table() -> None:
    assert set(get_args(EngineName)) == set(ENGINES)


@pytest.mark.parametrize(
    ("model", "context", "prefix_caching", "kv", "told"),
    [
        # What vLLM 0.32's own functions make of the config and of 8 GiB (benchmarks/engine.py).
        (NINE, LONG, True, "bf16", (1312, 21_495_808, 121, 399, 432_212)),
        (NINE, LONG, False, "fp8", (2608, 21_364_736, 58, 402, 908_464)),
        ("Llama-3.1-8B", LONG, True, "bf16", (16, 2_097_152, 8192, 4096, 65_536)),
    ],
)
def test_what_the_log_should_say(
    model: str, context: int, prefix_caching: bool, kv: str, told: tuple[int, int, int, int, int]
) -> None:
    spec = published(model)
    workload = workload_of(spec, context, kv=kv, engine=engine(prefix_caching))
    others = footprint(spec, workload).weights + 154 * MiB
    facts = {fact.name: fact.value for fact in engine_facts(spec, workload, Budget(others + 8 * GiB))}
    block_size, block, sequence, blocks, tokens = told
    assert facts == {
        "block_size_tokens": block_size,
        "block_bytes": block,
        "needed_blocks_count": sequence + 1,
        "budget_blocks_count": blocks,
        "pool_tokens": tokens,
    }
    assert engine_facts(spec, workload_of(spec, context), Budget(GiB)) == ()


def test_a_larger_block_is_what_states_are_rounded_to() -> None:
    """vLLM's _align_hybrid_block_size: multiples of the block size asked for that hold a state.  The 9B model's state
    and convolution of a layer, (128 x 80 x 128) x 4 + (10,240 + 2 x 8 x 128) x 3 x 2 B, need 1,298 tokens of 4,096."""
    spec = published(NINE)
    for asked, block in ((16, 1312), (32, 1312), (128, 1408), (2048, 2048)):
        found = pool_of(spec, workload_of(spec, 8192, engine=engine(block_size=asked)))
        assert found.block_size == block
        line = serve_line("x", spec, workload_of(spec, 8192, engine=engine(block_size=asked)), Budget(80 * GiB))
        assert (f"--block-size {asked} " in line) == (asked != 16)
    with pytest.raises(MinitronError, match="a multiple of 16 tokens, not 24; give 16 or 32"):
        engine(block_size=24)


def test_of_a_budget_of_bytes_the_line_gives_the_pool_what_nothing_else_takes() -> None:
    spec = published("Llama-3.1-8B")
    workload, budget = workload_of(spec, 8192, engine=engine()), Budget(24 * GiB)
    (room,) = re.findall(r"--kv-cache-memory-bytes (\d+)", serve_line("x", spec, workload, budget))
    found = footprint(spec, workload)
    assert int(room) == 24 * GiB - found.total + in_pool(found)
    facts = {fact.name: fact.value for fact in engine_facts(spec, workload, budget)}
    assert facts["budget_blocks_count"] == int(room) // facts["block_bytes"]
