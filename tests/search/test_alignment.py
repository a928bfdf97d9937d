"""Widths of experts against what transformers runs."""

import pytest
import torch
from family_sizes import FAMILY_SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from minitron.errors import MinitronError
from minitron.model.spec import spec_of
from minitron.search.alignment import multiple_for_experts
from minitron.search.search_steps import LatticeOptions, default_sizes, parse_widths

WIDTHS = {"nemotron_h": "moe_intermediate_size", "qwen3_moe": "moe_intermediate_size", "gpt_oss": "intermediate_size"}


def runs(model_type: str, dtype: torch.dtype, **sizes: int) -> bool:
    config = AutoConfig.for_model(model_type, **FAMILY_SIZES[model_type][0] | sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    try:
        with torch.no_grad():
            model(torch.arange(3, 15)[None])
    except RuntimeError as error:
        assert "16 bytes" in str(error)
        return False
    return True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("model_type", "width"), WIDTHS.items())
def test_widths_that_transformers_cannot_run_are_refused(model_type: str, width: str, dtype: str) -> None:
    whole = FAMILY_SIZES[model_type][0] | {"dtype": dtype, "hidden_size": 32, width: 32}
    spec = spec_of({"model_type": model_type} | whole)
    for key in (width, "hidden_size"):
        for size in (24, 28, 30, 31):
            is_run = runs(model_type, getattr(torch, dtype), **{"hidden_size": 32, width: 32} | {key: size})
            assert (size % multiple_for_experts(spec, key) == 0) == is_run, (key, size)
            if is_run:
                assert parse_widths(spec, {key: str(size)}) == {key: (size,)}
            else:
                with pytest.raises(MinitronError, match=f"{key} = {size} is no multiple of .*; choose"):
                    parse_widths(spec, {key: str(size)})


def test_a_search_by_a_smaller_multiple_offers_none() -> None:
    sizes = FAMILY_SIZES["qwen3_moe"][0] | {"dtype": "bfloat16", "moe_intermediate_size": 64}
    spec = spec_of({"model_type": "qwen3_moe"} | sizes)
    options = LatticeOptions({"moe_intermediate_size": 2}, {"moe_intermediate_size": 0.5})
    assert default_sizes(spec, "expert_ffn", options) == (64, 56, 48, 40, 32)


def test_other_widths_are_free() -> None:
    spec = spec_of({"model_type": "llama"} | FAMILY_SIZES["llama"][0] | {"dtype": "bfloat16"})
    assert {key: multiple_for_experts(spec, key) for key in spec.keys} == dict.fromkeys(spec.keys, 1)
