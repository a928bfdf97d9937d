"""The memory law against published figures, and the table of GPUs against its source."""

import json
from pathlib import Path

import numpy as np
import pytest

from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import Footprint, footprint
from minitron.memory.gpus import GPUS, find_gpu
from minitron.memory.workload import Workload, workload_of
from minitron.model.spec import ModelSpec, read_spec
from minitron.units import GiB, MiB

REFERENCE = Path(__file__).parents[1] / "reference"
LONG = 128 * 1024


def published(name: str) -> ModelSpec:
    return read_spec(REFERENCE / "models" / f"{name}.json")


def in_gib(found: Footprint) -> tuple[float, ...]:
    """Weights, KV cache, state, sum."""
    terms = (found.weights, found.kv_cache, found.conv_state + found.ssm_state, found.total)
    return tuple(round(term / GiB, 3) for term in terms)


def test_the_table_of_gpus_is_that_of_the_reference() -> None:
    rows = json.loads((REFERENCE / "gpus.json").read_text())["gpus"]
    assert len(rows) == 25
    assert list(GPUS) == [row["name"] for row in rows]
    for row in rows:
        gpu = GPUS[row["name"]]
        assert gpu.usable == round(row["usable_GiB"] * GiB)
        assert (gpu.bandwidth, gpu.bf16) == (row["memory_bandwidth_GBps"], row["dense_bf16_TFLOPS"])
        assert (gpu.fp8, gpu.nvfp4) == (row["dense_fp8_TFLOPS"], row["dense_fp4_TFLOPS"])
        assert (gpu.fp8 is not None, gpu.nvfp4 is not None) == (row["fp8_tensor_cores"], row["nvfp4_tensor_cores"])
        assert gpu.capability == tuple(int(part) for part in row["compute_capability"].split("."))
        assert (gpu.capability >= (8, 0)) == row["bf16_tensor_cores"]
        assert gpu.unified == row["unified_memory"]
        # A reading is quoted, and what nobody read is said to be inferred.
        assert all(f"{reading:g}" in gpu.source for reading in row["usable_GiB_seen"])
        inferred = set(row["inferred"]) - {"nvidia_smi_total_MiB", "which 47.x reading belongs to which card"}
        assert ("inferred" in gpu.source) == bool(inferred)


@pytest.mark.parametrize(
    ("text", "name"),
    [("A10G", "A10G"), ("a10", "A10"), ("rtx4090", "RTX 4090"), ("4090", "RTX 4090"), ("gh200", "GH200-96GB")],
)
def test_a_gpu_is_found_however_it_is_written(text: str, name: str) -> None:
    assert find_gpu(text) is GPUS[name]


def test_a_gpu_that_is_not_in_the_table_is_its_memory() -> None:
    assert find_gpu("22.06GiB").usable == round(22.06 * GiB)
    assert find_gpu("24 GB").usable == 24 * 10**9


@pytest.mark.parametrize(
    ("text", "name", "others"),
    [
        ("H100", "H100-80GB-SXM", ["H100-80GB-PCIe"]),
        ("a100", "A100-80GB-SXM", ["A100-40GB-SXM"]),
        ("V100", "V100-16GB", ["V100-32GB"]),
        ("Jetson AGX", "Jetson AGX Orin 64GB", ["Jetson AGX Thor"]),
        # As drivers write it.
        ("NVIDIA H100 80GB HBM3", "H100-80GB-SXM", ["H100-80GB-PCIe"]),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB-SXM", []),
        ("h100 pcie", "H100-80GB-PCIe", []),
        ("4090", "RTX 4090", []),
        ("A10", "A10", []),
    ],
)
def test_a_name_that_several_gpus_have_means_one_and_says_so(text: str, name: str, others: list[str]) -> None:
    found = find_gpu(text)
    assert found.name == name and bool(found.note) == bool(others)
    assert all(other in found.note for other in others)


def test_every_first_word_of_a_gpus_name_finds_one() -> None:
    for name in GPUS:
        assert find_gpu(name.replace("-", " ").split()[0])
        assert find_gpu(name).note == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A10H", "no GPU is called 'A10H'; did you mean A10"),
        ("H1000", "did you mean H100"),
        ("H20", "no GPU is called 'H20'; did you mean H200"),
        ("RTX 4091", "did you mean RTX 4090"),
        ("", "no GPU is called ''"),
        ("0GiB", "the GPU 0GiB has no memory"),
    ],
)
def test_a_typo_in_a_gpu_names_the_nearest(text: str, told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        find_gpu(text)


def test_the_budget_of_nemotron_nano_2() -> None:
    budget = Budget(find_gpu("A10G").usable, utilization=0.95, reserve=round(1.3 * GiB), workspace=GiB // 2)
    assert round(budget.available / GiB, 3) == 19.657
    assert budget.to_json() == {
        "usable": find_gpu("A10G").usable,
        "utilization": 0.95,
        "reserve": round(1.3 * GiB),
        "workspace": GiB // 2,
        "available": budget.available,
    }


@pytest.mark.parametrize(
    ("name", "counts", "terms"),
    [
        ("Nemotron-Nano-12B-v2", {}, (22.929, 3.000, 0.139, 26.068)),
        ("Nemotron-Nano-12B-v2", {"mamba": 27, "attention": 4, "mlp": 25}, (21.209, 2.000, 0.134, 23.343)),
        ("Nemotron-Nano-9B-v2", {}, (16.556, 2.000, 0.134, 18.689)),
    ],
)
def test_what_nemotron_nano_2_takes_at_128k(
    name: str, counts: dict[str, int], terms: tuple[float, float, float, float]
) -> None:
    spec = published(name)
    assert in_gib(footprint(spec, workload_of(spec, LONG), counts=counts)) == terms


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("Nemotron-Nano-9B-v2", 16_384),
        ("Nemotron-Nano-12B-v2", 24_576),
        ("Nemotron-3-Nano-30B-A3B", 6_144),
        ("Nemotron-3-Super-120B-A12B", 8_192),
    ],
)
def test_kv_bytes_of_a_token(name: str, per_token: int) -> None:
    spec = published(name)
    one, two = (footprint(spec, workload_of(spec, tokens)).kv_cache for tokens in (1000, 1001))
    assert two - one == per_token
    assert footprint(spec, workload_of(spec, 1, kv="fp8")).kv_cache * 2 == per_token


def test_state_of_one_mamba_layer() -> None:
    spec = published("Nemotron-Nano-9B-v2")
    found = footprint(spec, workload_of(spec, LONG), counts={"mamba": 1})
    assert (found.conv_state, found.ssm_state) == (73_728, 5_242_880)
    assert found.conv_state + found.ssm_state == 5_316_608


def test_nano_30b_at_8192_tokens_and_8_sequences() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    kept = footprint(spec, workload_of(spec, 8192, 8))
    assert kept.kv_cache == 384 * MiB
    # transformers keeps conv_kernel columns where engines keep one less; 376.6 MiB is its figure.
    columns = spec.sizes["conv_kernel"]
    assert round((kept.ssm_state + kept.conv_state * columns / (columns - 1)) / MiB, 1) == 376.6
    narrow = footprint(spec, workload_of(spec, 8192, 8, ssm_state="bf16"))
    assert round((narrow.ssm_state + narrow.conv_state) / MiB, 2) == 190.47


@pytest.mark.parametrize(
    ("name", "sizes", "counts", "gib"),
    [
        ("Nemotron-3-Nano-30B-A3B", {"hidden": 2304, "expert": 104, "shared_ffn": 3072}, {}, 41.494),
        (
            "Nemotron-Nano-9B-v2",
            {"hidden": 4352, "mamba_head": 120, "ffn": 13824},
            {"mamba": 24, "attention": 4, "mlp": 20},
            13.034,
        ),
    ],
)
def test_weights_of_published_prunings(name: str, sizes: dict[str, int], counts: dict[str, int], gib: float) -> None:
    spec = published(name)
    assert round(footprint(spec, workload_of(spec, LONG), 0, sizes, counts).weights / GiB, 3) == gib


def test_many_candidates_at_once_are_counted_as_each_by_itself() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    rng = np.random.default_rng(0)
    sizes = {axis: rng.integers(1, spec.sizes[axis] + 1, 50) for axis in ("hidden", "expert_ffn", "mamba_head")}
    counts = {kind: rng.integers(1, 20, 50) for kind in set(spec.layers)}
    workload = workload_of(spec, 5000, 3)
    together = footprint(spec, workload, 7, sizes, counts)
    for place in range(50):
        one = footprint(
            spec,
            workload,
            7,
            {axis: int(size[place]) for axis, size in sizes.items()},
            {kind: int(count[place]) for kind, count in counts.items()},
        )
        for name, value in one.lines.items():
            assert np.broadcast_to(together.lines[name], 50)[place] == value
        assert together.total[place] == one.total


def test_a_workload_takes_from_the_config_what_is_not_said() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    assert workload_of(spec, 10) == Workload(10, 1, "bf16", "bf16", "fp32", "bf16")
    assert workload_of(spec, 10, weights="fp8") == Workload(10, 1, "fp8", "bf16", "fp32", "bf16")
    half = ModelSpec(spec.family, {**spec.config, "torch_dtype": "float16", "mamba_ssm_cache_dtype": "bfloat16"})
    assert workload_of(half, 10) == Workload(10, 1, "fp16", "fp16", "bf16", "fp16")


def test_a_llama_has_no_state() -> None:
    spec = published("Llama-3.1-8B")
    found = footprint(spec, workload_of(spec, 1))
    assert (found.kv_cache, found.conv_state, found.ssm_state) == (32 * 2 * 8 * 128 * 2, 0, 0)
    assert found.weights == 2 * 8_030_261_248


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Workload(0), "a workload of 0 tokens x 1 sequences is empty"),
        (lambda: Workload(1, kv="int4"), "kv cannot be kept in int4; choose fp32, bf16"),
        (lambda: Workload(1, ssm_state="nvfp4"), "ssm_state cannot be kept in nvfp4"),
        (lambda: Budget(GiB, utilization=1.2), "a utilization of 1.2 is not a share"),
        (lambda: Budget(GiB, reserve=-1), "cannot be negative"),
        (lambda: Budget(GiB, reserve=GiB), "nothing is left of 1.000 GiB x 1.0 after a reserve of 1.000 GiB"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        make()  # type: ignore[operator]
