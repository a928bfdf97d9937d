"""Keys, values and states in fewer than 16 bits: bytes with their scales, counted by hand, and what engines take."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from family_sizes import FAMILY_SIZES
from planning_models import published, tiny

from minitron.engines.table import ENGINES
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.caches import kept
from minitron.memory.footprint import footprint
from minitron.memory.footprint_lines import footprint_lines
from minitron.memory.gpus import find_gpu
from minitron.memory.prices import PRICES, price
from minitron.memory.questions import cautions, remedies
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, workload_of
from minitron.model.dims import matrices, parse
from minitron.model.spec import spec_of
from minitron.units import GiB

NINE = "Nemotron-Nano-9B-v2"  # 4 attention layers of 8 heads of 128, 27 Mamba layers of 128 heads of 80 with 128 states


@pytest.mark.parametrize(
    ("kv", "token"),
    [
        ("bf16", 2 * 8 * 128 * 2),
        ("fp8", 2 * 8 * 128),
        # vLLM's int8_per_token_head: an fp32 scale behind every head's keys, and behind its values.
        ("int8", 2 * 8 * (128 + 4)),
        # vLLM's nvfp4: 64 bytes of packed numbers and 8 of scales (head_size // 2 + head_size // 16).
        ("nvfp4", 2 * 8 * (64 + 8)),
    ],
)
def test_keys_and_values_of_a_token(kv: str, token: int) -> None:
    spec = published(NINE)
    assert footprint(spec, workload_of(spec, 1000, 3, kv=kv)).kv_cache == 4 * 1000 * 3 * token


@pytest.mark.parametrize(
    ("state", "layer"),
    [
        ("fp32", 128 * 80 * 128 * 4),
        ("fp16", 128 * 80 * 128 * 2),
        ("int8", 128 * 80 * (128 + 4)),
        ("fp8", 128 * 80 * (128 + 4)),
    ],
)
def test_states_of_a_sequence(state: str, layer: int) -> None:
    spec = published(NINE)
    workload = workload_of(spec, 1000, 3, ssm_state=state)
    assert footprint(spec, workload).ssm_state == 27 * 3 * layer
    term = next(term for term in footprint_lines(spec, workload) if term.name == "ssm_state")
    assert eval(re.sub(r"[,B]", "", term.filled).replace("x", "*")) == 27 * 3 * layer
    assert (
        footprint(spec, workload_of(spec, 1000, 3, ssm_state=state)).conv_state
        == footprint(spec, workload_of(spec, 1000, 3)).conv_state
    )


def test_a_latent_has_a_scale_for_itself_and_one_for_its_positions() -> None:
    """vLLM keeps two scales behind the 512 + 64 numbers of a token (MLACommonBackend.customize_spec)."""
    assert matrices(parse("kv_rank + rope_dim"), {"kv_rank": 512, "rope_dim": 64}) == [(1, 512), (1, 64)]
    assert matrices(parse("2*(head*width)"), {"head": 3, "width": 5}) == [(6, 5)]
    assert matrices(parse("channel"), {"channel": 7}) == [(1, 7)]
    spec = spec_of({"model_type": "deepseek_v3"} | FAMILY_SIZES["deepseek_v3"][0])
    keep = kept(spec, workload_of(spec, 10, kv="int8"), spec.sizes, spec.kind_counts())
    rank, positions = spec.sizes["kv_rank"], spec.sizes["rope_dim"]
    assert {one.token for one in keep.caches} == {rank + positions + 2 * 4}


@pytest.mark.parametrize(("kv", "scales"), [("fp8", 4 * 2 * 4), ("bf16", 0), ("int8", 0)])
def test_a_quantised_checkpoint_holds_the_scales_of_fp8_keys_and_values(kv: str, scales: int) -> None:
    """One of keys and one of values a layer, in fp32 or, by compressed-tensors, in bf16; a checkpoint in bf16 has none,
    and int8 finds its own."""
    spec = published(NINE)
    for weights, more in (("fp8", scales), ("int4", scales // 2), ("bf16", 0)):
        counted = footprint(spec, workload_of(spec, 1, weights=weights, kv=kv)).weights
        assert counted - footprint(spec, workload_of(spec, 1, weights=weights)).weights == more


def test_vllm_is_told_its_own_names() -> None:
    spec = published(NINE)
    load = workload_of(spec, 4096, kv="int8", ssm_state="fp16", engine=Engine("vllm"))
    line = serve_line("x", spec, load, Budget(40 * GiB))
    assert "--kv-cache-dtype int8_per_token_head " in line
    assert "--mamba-ssm-cache-dtype float16 " in line


@pytest.mark.parametrize("state", ["int8", "fp8"])
def test_a_state_that_vllm_does_not_keep_is_refused_with_those_it_does(state: str) -> None:
    told = f"vLLM does not keep Mamba states in {state}; choose --ssm-state fp32 or bf16 or fp16"
    with pytest.raises(MinitronError, match=told):
        workload_of(published(NINE), 1, ssm_state=state, engine=Engine("vllm"))


@pytest.mark.parametrize(
    ("gpu", "kv", "told"),
    [
        ("T4", "fp8", "choose --kv int8 or bf16"),
        ("T4", "int8", ""),
        ("Jetson AGX Thor", "nvfp4", "choose --kv fp8 or int8 or bf16"),
        ("H100-80GB-SXM", "nvfp4", ""),
        ("A10G", "fp8", ""),
    ],
)
def test_kernels_that_a_gpu_does_not_have(gpu: str, kv: str, told: str) -> None:
    spec, device = published(NINE), find_gpu(gpu)
    found = [
        text for text in cautions(spec, workload_of(spec, 1, kv=kv, engine=Engine("vllm")), device) if "--kv" in text
    ]
    assert len(found) == bool(told)
    assert all(told in text and "vLLM has no kernels" in text and device.name in text for text in found)


def test_a_remedy_names_what_the_engine_can_keep() -> None:
    spec = published("Llama-3.1-8B")
    for gpu, flags in (("T4", ["--kv int8"]), ("A10G", ["--kv fp8", "--kv int8"])):
        load = workload_of(spec, 4096, engine=Engine("vllm"))
        device = find_gpu(gpu)
        # Room for the weights and three quarters of the keys and values.
        room = footprint(spec, load).total - footprint(spec, load).kv_cache // 4
        found = remedies(spec, load, Budget(room, gpu=device))
        assert [remedy.flags for remedy in found if "--kv" in remedy.flags] == flags


def test_every_format_of_an_engine_is_one_of_the_table() -> None:
    from minitron.memory.formats import formats_for

    for engine in ENGINES.values():
        assert set(engine.kv or {}) <= set(formats_for("kv"))
        assert set(engine.states or {}) <= set(formats_for("state"))
        assert set(engine.kv_on) <= set(engine.kv or {})


def test_convolutions_are_kept_in_no_fewer_than_16_bits() -> None:
    with pytest.raises(MinitronError, match="conv_state cannot be kept in int8; choose fp32, bf16, fp16"):
        workload_of(tiny(), 1, conv_state="int8")


def measured() -> dict[tuple[str, str], dict[str, float]]:
    """(field, format) -> model -> KL, rounded to nearest, as benchmarks/RESULTS.md has it."""
    text = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    section = text.split("## Caches in fewer bits")[1].split("\n## ")[0]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[4] in ("-", "nearest"):
            key = ("kv", cells[2]) if cells[4] == "-" else ("ssm_state", cells[3])
            found.setdefault(key, {})[cells[0]] = float(cells[5])
    return found


def test_prices_are_those_that_were_measured() -> None:
    found = measured()
    assert PRICES
    for key, prices in PRICES.items():
        assert prices
        for model, kl in prices.items():
            assert kl == found[key][model]


def test_a_remedy_has_the_price_that_was_measured() -> None:
    spec = published(NINE)
    load = workload_of(spec, 131_072, 8)
    room = footprint(spec, load).total - footprint(spec, load).ssm_state // 4
    found = {remedy.flags: remedy for remedy in remedies(spec, load, Budget(room))}
    assert found["--ssm-state fp16"].price == price("ssm_state", "fp16") != ""
    assert found["--ssm-state fp16"].to_json()["price"].endswith("on built-in model")
    assert "SmolLM2" in found["--kv fp8"].price
    assert found["--kv int8"].price == price("kv", "int8")
    assert found["--weights fp8"].price == ""
    # Where neither is enough alone, both prices are told.
    narrow = replace(load, weights="nvfp4")
    both = footprint(spec, replace(narrow, kv="fp8", ssm_state="fp16")).total
    told = {remedy.flags: remedy.price for remedy in remedies(spec, narrow, Budget(both))}
    assert told["--ssm-state fp16 --kv fp8"].startswith("fp16 ")
    assert "; fp8 " in told["--ssm-state fp16 --kv fp8"]
