"""Inverse questions agree with the forward one at the boundary; remedies do what they say."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_models import LONG, published, tiny

from minitron.engines.plain import WORKSPACE
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.gpus import GPUS, Gpu, find_gpu
from minitron.memory.questions import (
    cautions,
    fits,
    largest_batch,
    largest_context,
    mildest_first,
    mildest_weights,
    remedies,
    smallest_gpu,
    solve,
)
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.units import GiB

NINE = published("Nemotron-Nano-9B-v2")
TWELVE = published("Nemotron-Nano-12B-v2")


def limit(gpu: Gpu) -> Budget:
    return Budget(gpu.usable, 0.95, workspace=WORKSPACE, gpu=gpu)


ENGINES = st.sampled_from(
    [Engine(), Engine("vllm"), Engine("vllm", prefix_caching=False, cuda_graphs=False), Engine("vllm", max_num_seqs=64)]
)


@settings(max_examples=60, deadline=None)
@given(
    ENGINES,
    st.integers(1, 2000),
    st.integers(1, 50),
    st.integers(1, 60),
    st.sampled_from(["bf16", "fp8", "nvfp4"]),
    st.sampled_from(["bf16", "fp8", "nvfp4"]),
)
def test_answers_are_the_last_that_fit(
    engine: Engine, context: int, batch: int, gib: int, weights: str, kv: str
) -> None:
    workload = workload_of(NINE, context, batch, weights=weights, kv=kv, engine=engine)
    budget = Budget(gib * GiB, workspace=None)
    most = largest_context(NINE, workload, budget)
    assert most == 0 or fits(NINE, replace(workload, context=most), budget)
    assert not fits(NINE, replace(workload, context=most + 1), budget)
    many = largest_batch(NINE, workload, budget)
    assert many == 0 or fits(NINE, replace(workload, batch=many), budget)
    assert not fits(NINE, replace(workload, batch=many + 1), budget)
    name = mildest_weights(NINE, workload, budget)
    for milder in mildest_first()[: mildest_first().index(name) if name else None]:
        assert not fits(NINE, replace(workload, weights=milder), budget)
    assert name is None or fits(NINE, replace(workload, weights=name), budget)


def test_the_smallest_gpu_is_the_smallest() -> None:
    workload = workload_of(TWELVE, LONG)
    found = smallest_gpu(TWELVE, workload, limit)
    assert found is GPUS["RTX 5090"]
    assert all(not fits(TWELVE, workload, limit(gpu)) for gpu in GPUS.values() if gpu.usable < found.usable)
    assert smallest_gpu(TWELVE, workload_of(TWELVE, 2**26), limit) is None


def test_solving_tells_the_workload_that_fits() -> None:
    budget = limit(find_gpu("A10G"))
    workload = workload_of(TWELVE, LONG)
    with pytest.raises(MinitronError, match="no context length fits"):
        solve("context", TWELVE, workload, budget, limit)
    found = solve("weights", TWELVE, workload, budget, limit)
    assert (found.value, found.workload.weights) == ("fp8", "fp8")
    assert found.total <= budget.available
    assert solve("gpu", TWELVE, workload, budget, limit).budget.gpu is GPUS["RTX 5090"]
    long = solve("context", NINE, workload_of(NINE, 1), budget, limit)
    assert isinstance(long.value, int)
    assert any("131,072" in told for told in cautions(NINE, long.workload, None))
    with pytest.raises(MinitronError, match="choose context, batch, gpu, weights"):
        solve("speed", TWELVE, workload, budget, limit)


def test_a_memory_that_nothing_fills_has_no_last_context() -> None:
    mamba = tiny("MM-")
    asked, budget = workload_of(mamba, 1), Budget(GiB)
    assert largest_context(mamba, asked, budget) == 2**40
    answer = solve("context", mamba, asked, budget, lambda gpu: budget)
    assert answer.value is None and answer.workload == asked


@pytest.mark.parametrize(("context", "batch"), [(LONG, 1), (LONG, 2), (1024, 1)])
def test_every_remedy_fits_and_says_how(context: int, batch: int) -> None:
    budget = limit(find_gpu("A10G"))
    workload = workload_of(TWELVE, context, batch)
    assert not fits(TWELVE, workload, budget)
    found = remedies(TWELVE, workload, budget, limit)
    assert found
    assert all(remedy.total <= remedy.available for remedy in found)
    told = " ".join(remedy.flags for remedy in found)
    assert "--weights" in told
    assert "--gpu" in told
    # Weights alone are too much here, so neither fewer tokens nor fewer sequences help.
    assert "--context" not in told


def test_less_to_serve_is_a_remedy_where_weights_fit() -> None:
    budget = limit(find_gpu("A10G"))
    workload = workload_of(NINE, LONG, 8)
    found = {remedy.flags.split()[0]: remedy for remedy in remedies(NINE, workload, budget)}
    batch = int(found["--concurrency"].flags.split()[1])
    assert fits(NINE, replace(workload, batch=batch), budget)
    assert not fits(NINE, replace(workload, batch=batch + 1), budget)
    assert "--context" in found


def test_two_changes_together_where_one_is_not_enough() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    workload = workload_of(spec, LONG, 16)
    budget = Budget(26 * GiB)
    found = remedies(spec, workload, budget)
    assert any(" and " in remedy.change for remedy in found)
    assert all(remedy.total <= remedy.available for remedy in found)


def test_cautions() -> None:
    def told(gpu: str, **options: object) -> str:
        workload: Workload = workload_of(NINE, 8, **options)  # type: ignore[arg-type]
        return " ".join(cautions(NINE, workload, find_gpu(gpu)))

    assert "A10G has no native FP8 (compute capability 8.6, 8.9 is needed)" in told("A10G", weights="fp8")
    assert told("L4", weights="fp8") == ""
    assert "H200 has no native NVFP4" in told("H200", weights="nvfp4")
    assert told("B200", weights="nvfp4", kv="nvfp4") == ""
    assert "shares its memory with the CPU" in told("DGX Spark GB10")
    assert "no native BF16" in told("T4")
    assert "more than the 131,072" in " ".join(cautions(NINE, workload_of(NINE, 2 * LONG), None))
