"""Checkpoints that are quantised already: every byte of what their configs name, and what is not known is said.

Expected bytes are those of released checkpoints, or the shapes that the writers of a format give their tensors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planning_models import MODELS, published, tiny

from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.footprint_lines import footprint_lines
from minitron.memory.formats import STORED
from minitron.memory.precision import precision_of, tally, tally_of, weight_bytes
from minitron.memory.questions import cautions, remedies
from minitron.memory.serve_line import serve_line
from minitron.memory.workload import Engine, workload_of
from minitron.model.spec import ModelSpec, spec_of
from minitron.search.search import build_lattice, search
from minitron.units import GiB

CHECKPOINTS = json.loads((MODELS.parent / "quantized_checkpoints.json").read_text())
FACTS = json.loads((MODELS.parent / "families_facts.json").read_text())
NANO = "Nemotron-3-Nano-30B-A3B"
LLAMA = published("Llama-3.1-8B")
LINEARS = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)} | {
    "gate": (14336, 4096),
    "up": (14336, 4096),
    "down": (4096, 14336),
}
"""[outputs, inputs] of the linears of a layer of Llama-3.1-8B."""
HEAD = (128256, 4096)


def quantised(section: Any, spec: ModelSpec = LLAMA) -> ModelSpec:
    return replace(spec, config={**spec.config, "quantization_config": section})


def bytes_of(spec: ModelSpec) -> int:
    return sum(weight_bytes(spec, tally_of(spec, precision_of(spec, STORED)), spec.sizes))


def origin_of(spec: ModelSpec) -> str:
    return footprint_lines(spec, workload_of(spec, 8))[0].origin


def by_hand(matrix: Any, head: Any = lambda rows, columns: 2 * rows * columns) -> int:
    """Bytes of Llama-3.1-8B where `matrix` and `head` give those of a linear with everything beside it."""
    layer = sum(matrix(*shape) for shape in LINEARS.values())
    norms = 2 * 4096 * (2 * 32 + 1)
    return 32 * layer + norms + 2 * HEAD[0] * HEAD[1] + head(*HEAD)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
CT = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}


def ct(weights: dict[str, Any], layout: str, **more: Any) -> dict[str, Any]:
    return {**CT, "format": layout, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, **more}}}


def gptq(bits: int, group: int) -> Any:
    # qweight and qzeros are int32 words, scales fp16, g_idx an int32 for every input.
    def size(rows: int, columns: int) -> int:
        groups = ceil(columns, group)
        return columns * bits // 32 * rows * 4 + groups * (rows * bits // 32 * 4) + groups * rows * 2 + columns * 4

    return size


def awq(rows: int, columns: int) -> int:
    groups = columns // 128
    return columns * (rows // 8) * 4 + groups * (rows // 8) * 4 + groups * rows * 2


def packed(bits: int, group: int) -> Any:
    # weight_packed in int32 words of 32 // bits numbers, weight_scale bf16, weight_shape two int64.
    return lambda rows, columns: rows * ceil(columns, 32 // bits) * 4 + rows * (columns // group) * 2 + 16


def blocks(rows: int, columns: int) -> int:
    return rows * columns + ceil(rows, 128) * ceil(columns, 128) * 4


def nvfp4(scales: int) -> Any:
    return lambda rows, columns: rows * columns // 2 + rows * columns // 16 + scales


@pytest.mark.parametrize(
    ("section", "matrix"),
    [
        (GPTQ, gptq(4, 128)),
        ({**GPTQ, "bits": 8, "group_size": 64, "desc_act": True}, gptq(8, 64)),
        ({**GPTQ, "bits": 3}, gptq(3, 128)),
        ({**GPTQ, "bits": 2}, gptq(2, 128)),
        ({"bits": 4, "group_size": 128, "desc_act": False}, gptq(4, 128)),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, awq),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, awq),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, blocks),
        ({"quant_method": "fp8", "activation_scheme": "static"}, lambda rows, columns: rows * columns + 8),
        ({"quant_method": "fbgemm_fp8"}, lambda rows, columns: rows * columns + 4 * rows + 4),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
            lambda rows, columns: rows * columns + 8,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}, nvfp4(8)),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "ignore": ["lm_head"]}, nvfp4(4)),
        (
            ct({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized"),
            lambda rows, columns: rows * columns + 2 * rows,
        ),
        (
            ct({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized"),
            lambda rows, columns: rows * columns + 2 * rows,
        ),
        (ct({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}, "pack-quantized"), packed(4, 128)),
        (ct({"num_bits": 3, "type": "int", "strategy": "group", "group_size": 64}, "pack-quantized"), packed(3, 64)),
        (
            ct(
                {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                "nvfp4-pack-quantized",
                input_activations={"num_bits": 4, "type": "float"},
            ),
            nvfp4(8),
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            lambda rows, columns: rows * columns + 4 * rows + 1,
        ),
    ],
)
def test_what_a_config_names_is_counted_as_its_files_hold_it(section: dict[str, Any], matrix: Any) -> None:
    spec = quantised(section)
    assert bytes_of(spec) == by_hand(matrix)
    assert origin_of(spec) == "published"


def test_the_output_layer_is_quantised_where_the_config_says_so() -> None:
    assert bytes_of(quantised({**GPTQ, "lm_head": True})) == by_hand(gptq(4, 128), gptq(4, 128))
    everything = {**ct({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized"), "ignore": []}
    rows = lambda rows, columns: rows * columns + 2 * rows  # noqa: E731
    assert bytes_of(quantised(everything)) == by_hand(rows, rows)


def test_modules_that_a_list_names_stay_as_they_are() -> None:
    """The same module under the names by which each method calls it."""
    whole = bytes_of(quantised({"quant_method": "fp8", "weight_block_size": [128, 128]}))
    for names, count in (
        (["model.layers.0.mlp.down_proj", "lm_head"], 1),
        (["model.layers.1*.mlp.down_proj"], 11),
        (["down_proj"], 32),
        (["re:.*layers\\.(0|1)\\.mlp\\.down_proj$"], 2),
        ([r"model\.layers\.\d\.mlp\.down_proj"], 10),
        (["model.language_model.layers.3.mlp.down_proj"], 1),
        (["proj"], 0),
    ):
        for key in ("modules_to_not_convert", "ignored_layers", "ignore"):
            section = {"quant_method": "fp8", "weight_block_size": [128, 128], key: names}
            rows, columns = LINEARS["down"]
            assert bytes_of(quantised(section)) - whole == count * (2 * rows * columns - blocks(rows, columns)), names


def test_groups_and_single_modules_have_schemes_of_their_own() -> None:
    down, up = LINEARS["down"], LINEARS["up"]
    wide = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    narrow = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}
    mixed = {
        **CT,
        "format": "mixed-precision",
        "config_groups": {
            "a": {**wide, "format": "float-quantized"},
            "b": {**narrow, "format": "pack-quantized"},
        },
    }
    all_narrow = by_hand(packed(4, 128))
    rows = down[0] * down[1] + 2 * down[0]
    assert bytes_of(quantised(mixed)) == all_narrow + 32 * (rows - packed(4, 128)(*down))
    dynamic = {**GPTQ, "dynamic": {"-:.*up_proj": {}, "+:.*layers\\.0\\..*down_proj": {"bits": 8, "group_size": 32}}}
    expected = by_hand(gptq(4, 128)) + 32 * (2 * up[0] * up[1] - gptq(4, 128)(*up))
    assert bytes_of(quantised(dynamic)) == expected + gptq(8, 32)(*down) - gptq(4, 128)(*down)
    layers = {f"model.layers.{layer}.mlp.up_proj": {"quant_algo": "FP8"} for layer in range(5)}
    layers["model.layers.9.self_attn.o_proj"] = {"quant_algo": "NVFP4", "group_size": 16}
    each = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    plain = by_hand(lambda rows, columns: 2 * rows * columns)
    saved = 5 * (up[0] * up[1] - 8) + 2 * 4096 * 4096 - nvfp4(8)(4096, 4096)
    assert bytes_of(quantised(each)) == plain - saved


def test_a_released_list_of_modules_gives_the_released_bytes() -> None:
    mamba = [
        f"backbone.layers.{layer}.mixer.{name}" for layer in (4, 11, 18, 25, 32, 41) for name in ("in_proj", "out_proj")
    ]
    attention = [f"backbone.layers.*.mixer.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    section = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "exclude_modules": ["lm_head", "backbone.embeddings", *mamba, *attention, "backbone.layers.*.mixer.conv1d"],
    }
    # The router of this checkpoint is in fp32, which its config does not tell: 23 layers of 128 x 2688, and 128 biases.
    router = 2 * 23 * (128 * 2688 + 128)
    assert bytes_of(quantised(section, published(NANO))) + router == CHECKPOINTS[f"{NANO}-NVFP4"]["bytes"]


@pytest.mark.parametrize(
    ("name", "sizes"), [("gpt-oss-120b", {}), ("gpt-oss-20b", {"num_hidden_layers": 24, "num_local_experts": 32})]
)
def test_mxfp4_is_counted_as_it_was_released(name: str, sizes: dict[str, int]) -> None:
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    section = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    config = {**FACTS["gpt-oss-120b"]["config"], "model_type": "gpt_oss", **sizes, "quantization_config": section}
    assert bytes_of(spec_of(config)) == CHECKPOINTS[name]["bytes"]


@pytest.mark.parametrize(
    ("section", "told", "least", "most"),
    [
        ({"quant_method": "quark"}, "does not say in how many bits", 14.9, 15),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "does not know the layout of aqlm", 14.9, 15),
        ({"quant_method": "mxfp4"}, "none of the modules", 14.9, 15),
        ({"quant_method": "something new", "bits": 3}, "does not know the layout of something new", 4, 5),
        ({"quant_method": "exl2", "bits": 4.25}, "does not know the layout of exl2", 5, 6),
        ({"quant_method": "modelopt", "quant_algo": "FP2"}, "quant_algo fp2", 14.9, 15),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "no config_groups", 8, 9),
        ({"quant_method": "auto-round", "bits": 4}, "not known to the byte", 5, 6),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            "byte",
            5,
            6,
        ),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "byte", 8, 9),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}},
            },
            "byte",
            5,
            6,
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "byte",
            5.2,
            5.4,
        ),
    ],
)
def test_what_is_not_known_is_said_and_no_number_is_called_exact(
    section: dict[str, Any], told: str, least: float, most: float
) -> None:
    spec = quantised(section)
    line = footprint_lines(spec, workload_of(spec, 8))[0]
    assert line.origin == "estimated"
    assert told in line.note
    assert least * GiB < line.bytes < most * GiB
    notes = cautions(spec, workload_of(spec, 8), None)
    assert any(told in note and "estimate" in note for note in notes)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"quant_method": "gptq", "bits": "four"}, "quantization_config.bits is 'four'"),
        ({"quant_method": "gptq", "bits": 0}, "0 bits"),
        ({"quant_method": "awq", "w_bit": True}, "w_bit is True"),
        ({"quant_method": "fp8", "modules_to_not_convert": 3}, "modules_to_not_convert is 3"),
        ("fp8", "is 'fp8', not an object"),
    ],
)
def test_what_is_no_quantisation_is_refused_by_name(section: Any, told: str) -> None:
    with pytest.raises(MinitronError, match=told):
        workload_of(quantised(section), 8)


@pytest.mark.parametrize("section", [None, {}, {"quant_method": "compressed-tensors", "format": "dense"}])
def test_a_config_that_quantises_nothing_is_of_a_plain_model(section: Any) -> None:
    spec = quantised(section)
    assert spec.quantisation is None
    assert workload_of(spec, 8).weights == "bf16"
    assert origin_of(spec) == "exact"


def test_it_may_stand_in_the_config_of_the_text_model_or_under_its_older_name() -> None:
    section = {"quant_method": "awq", "bits": 4, "group_size": 128}
    for config in ({"compression_config": section}, {"text_config": {"quantization_config": section}}):
        spec = replace(LLAMA, config={**LLAMA.config, **config})
        assert bytes_of(spec) == by_hand(awq)


def test_scores_and_plans_of_a_model_are_those_of_the_model_in_plain_numbers() -> None:
    assert quantised(GPTQ).fingerprint == LLAMA.fingerprint


def test_every_candidate_counts_as_the_model_that_it_is() -> None:
    """The layers that stay keep what the config says of them by their old numbers."""
    section = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1.", "layers.3.mixer"]}
    spec = quantised(section, tiny("MEM*MM*"))
    for kept in ([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 5], [0, 2, 6]):
        left = spec.resized({"hidden_size": 16}, tuple(kept))
        both = tally(spec, precision_of(spec, STORED), [kept]).first
        assert weight_bytes(spec, both, left.sizes) == weight_bytes(
            left, tally_of(left, precision_of(left, STORED)), left.sizes
        )
    twice = spec.resized({}, (0, 1, 3, 4, 5, 6)).resized({}, (1, 2, 5))
    assert bytes_of(twice) == bytes_of(spec.resized({}, (1, 3, 6)))


def test_a_search_counts_in_the_formats_of_the_model() -> None:
    spec = quantised(GPTQ)
    workload = workload_of(spec, 1024)
    found = search(
        build_lattice(spec, workload, lattice={"intermediate_size": "14336,7168"}), workload, Budget(16 * GiB)
    )
    assert found.parent.footprint.weights == by_hand(gptq(4, 128))
    for candidate in found.candidates:
        left = spec.resized(candidate.sizes, candidate.kept)
        assert candidate.footprint.weights == footprint(left, workload).weights
    offered = {remedy.flags for remedy in remedies(spec, workload, Budget(4 * GiB))}
    assert not any("--weights fp8" in flags for flags in offered)


def test_keys_and_values_that_have_scales_are_told() -> None:
    section = ct({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized")
    spec = quantised({**section, "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}})
    assert bytes_of(spec) - bytes_of(quantised(section)) == 32 * 2 * 2
    assert any("--kv fp8" in note for note in cautions(spec, workload_of(spec, 8), None))


def test_cases_that_were_reported(tmp_path: Path) -> None:
    """A file beside config.json may be the only one that says it."""
    from minitron.model.spec import read_spec

    (tmp_path / "config.json").write_text(json.dumps(dict(LLAMA.config)))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps(
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
        )
    )
    assert bytes_of(read_spec(tmp_path)) == by_hand(lambda rows, columns: rows * columns + 8)
    assert math.isclose(bytes_of(read_spec(tmp_path / "config.json")) / GiB, 8.458, rel_tol=1e-3)


def test_the_line_that_serves_says_where_keys_and_values_are_not_kept_as_the_files_were_made_for() -> None:
    """vLLM's resolve_kv_cache_dtype_string: `auto` is what the config's quantisation names."""
    spec = quantised({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "ignore": []})
    plain = quantised({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": []})
    for one, kv, flag in (
        (spec, None, "--kv-cache-dtype bfloat16 "),
        (spec, "fp8", "--kv-cache-dtype fp8 "),
        (plain, None, ""),
        (plain, "fp8", "--kv-cache-dtype fp8 "),
    ):
        workload = workload_of(one, 1024, kv=kv, engine=Engine("vllm"))
        line = serve_line("x", one, workload, Budget(80 * 2**30))
        assert flag in line if flag else "--kv-cache-dtype" not in line
