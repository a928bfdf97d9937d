"""Which parts may be kept in fewer bits: embedding and output layer as far as engines read them so."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from family_sizes import FAMILY_SIZES
from planning_models import tiny
from tiny_models import save_family, save_llama

from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS, HEAD_ENGINES
from minitron.memory.precision import precision_of, tally_of, weight_bytes
from minitron.memory.workload import Engine, Workload, workload_of
from minitron.model.spec import ModelSpec, read_spec
from minitron.search import format_choices as choices
from minitron.search.format_choices import OUTSIDE, format_choices, types_written, weight_of, written_of
from minitron.search.offered_formats import forms_for, parts_of

VLLM, LLAMA_CPP, PLAIN = Engine("vllm"), Engine("llama.cpp"), Engine()


def served(spec: ModelSpec, engine: Engine) -> Workload:
    return workload_of(spec, 64, engine=engine)


def test_an_output_layer_is_a_part_where_it_has_numbers_of_its_own(tmp_path: Path) -> None:
    for tied in (False, True):
        spec = read_spec(save_llama(tmp_path / f"{tied}", tied=tied))
        for engine in (VLLM, PLAIN):
            assert ("lm_head" in parts_of(spec, served(spec, engine))) != tied
            assert "embedding" not in parts_of(spec, served(spec, engine))
        own = {"embedding"} if tied else {"embedding", "lm_head"}
        assert set(parts_of(spec, served(spec, LLAMA_CPP))) == {"attention", "mlp"} | own


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1"])
def test_an_output_layer_that_vllm_keeps_plain_is_not_offered(family: str, tmp_path: Path) -> None:
    spec = read_spec(
        save_family(tmp_path / "model", family, **FAMILY_SIZES[family][0] | {"tie_word_embeddings": False})
    )
    assert "lm_head" not in parts_of(spec, served(spec, VLLM))
    assert "lm_head" in parts_of(spec, served(spec, PLAIN))


def test_an_output_layer_may_stay_plain_where_all_else_is_in_fewer_bits() -> None:
    spec = tiny()
    workload = served(spec, VLLM)
    assert forms_for("lm_head", ["int8", "int4"], workload) == ["bf16", "int8", "int4"]
    assert forms_for("mlp", ["int8", "int4"], workload) == ["int8", "int4"]
    assert set(HEAD_ENGINES) == {form.method for form in FORMATS.values() if form.written}
    found = {dict(one.parts)["lm_head"] for one in format_choices(spec, workload, ["int8", "int4"])}
    assert "bf16" in found and found & {"int8", "int4"}


def test_what_is_chosen_for_an_output_layer_is_counted_as_it_is_written() -> None:
    spec = tiny(hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    workload = served(spec, VLLM)
    for one in format_choices(spec, workload, ["bf16", "int8", "int4"]):
        if one.quantised:
            form, keep = written_of(one.to_json(), spec.parameters().by_component) or ("", {})
            planned = precision_of(spec, form, keep)
            counted = weight_bytes(spec, tally_of(spec, planned), spec.sizes)[0]
            assert counted == footprint(spec, one.on(workload)).weights


def test_types_of_embedding_and_output_layer_are_those_of_the_file() -> None:
    spec = tiny("ME*M", hidden_size=256, moe_intermediate_size=256, n_routed_experts=8)
    found = format_choices(spec, served(spec, LLAMA_CPP), ["q8_0", "q4_k", "iq2_xxs"])
    assert {dict(one.parts)["embedding"] for one in found} == {"q8_0", "q4_k", "iq2_xxs"}
    for one in found:
        written = types_written(one.to_json(), spec.parameters().by_component)
        assert written is not None
        assert {"embedding", "lm_head"} <= set(written[1])
        assert written[1] == dict(one.parts)


def test_the_prior_weighs_what_is_outside_layers_by_its_share_of_all(tmp_path: Path) -> None:
    tied, apart = (read_spec(save_llama(tmp_path / f"{own}", tied=own)).parameters() for own in (True, False))
    assert weight_of(apart, "lm_head") == pytest.approx(OUTSIDE["lm_head"] * apart.active)
    assert weight_of(apart, "embedding") == pytest.approx(OUTSIDE["embedding"] * apart.active)
    assert weight_of(tied, "embedding") == pytest.approx(sum(OUTSIDE.values()) * tied.active)
    assert weight_of(apart, "mlp") == apart.active_by_component["mlp"]


def test_many_parts_in_many_types_are_looked_through_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No assignment of all that there are beats those that are found."""
    rows: list[list[tuple[str, str]]] = [[(part, form) for form in "wxyz"] for part in "abcde"]
    size = {pair: 3 ** "zyxw".index(pair[1]) * (7 + 3 * "abcde".index(pair[0])) for row in rows for pair in row}
    cost = {pair: 4.0 ** "wxyz".index(pair[1]) * (5 - "abcde".index(pair[0])) for row in rows for pair in row}

    def all_of(pairs: Any, what: dict[tuple[str, str], Any]) -> Any:
        return sum(what[pair] for pair in pairs)

    monkeypatch.setattr(choices, "MANY", 64)
    found = list(choices._front(rows, lambda *pair: size[pair], lambda *pair: cost[pair], 1000))
    assert len(found) < 4**5 // 4
    for chosen, taken, lost in found:
        assert (taken, lost) == (all_of(chosen, size), all_of(chosen, cost))
    for pairs in product(*rows):
        assert any(a <= all_of(pairs, size) and b <= all_of(pairs, cost) + 1e-9 for _, a, b in found)


def test_what_somebody_keeps_of_the_output_layer_is_not_searched() -> None:
    spec = tiny()
    workload = replace(served(spec, VLLM), keep={"lm_head": "bf16"})
    for one in format_choices(spec, workload, ["bf16", "int8"]):
        assert "lm_head" not in one.of and one.to_json()["lm_head"] == "bf16"
