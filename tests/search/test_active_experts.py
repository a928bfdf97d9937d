"""How many experts a token is sent to, as a size: against transformers' own models, and brute force."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_sizes import FAMILY_SIZES
from planning_models import WORKLOAD, published, random_scores, tiny
from safetensors.torch import load_file
from tiny_models import save_family, save_hybrid
from transformers import AutoModelForCausalLM

from cli.app import run
from importance.search.damage import Coordinates
from minitron.cut.plan import make_plan
from minitron.errors import MinitronError
from minitron.memory.budget import Budget
from minitron.memory.footprint import footprint
from minitron.memory.gpus import find_gpu
from minitron.memory.limits import Limits
from minitron.memory.loads import load_of
from minitron.memory.workload import Engine, workload_of
from minitron.model.axes import ACTIVE, EXPERT
from minitron.model.configs import config_of
from minitron.model.spec import read_spec, spec_of
from minitron.search.depth import depths
from minitron.search.format_choices import format_choices
from minitron.search.lattice import Lattice, LatticeOptions, parse_widths
from minitron.search.search import build_lattice, search
from minitron.search.search_steps import default_widths

TOP = "num_experts_per_tok"


def mixtures() -> list[Any]:
    """Configs of language models whose tokens are sent to two experts or more."""
    found = []
    for model_type, configs in FAMILY_SIZES.items():
        for number, sizes in enumerate(configs):
            spec = spec_of({"model_type": model_type} | sizes)
            if spec.sizes.get(ACTIVE, 1) > 1 and not spec.is_inside:
                found.append(pytest.param(model_type, sizes, id=f"{model_type}-{number}"))
    return found


def unused_in_transformers(config: Any) -> int:
    """The parameters that a token does not use of the model that transformers builds, by its own modules."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # Gemma 4's router asks the config at every token.
    (top,) = {module.top_k for module in model.modules() if hasattr(module, "top_k")} or {config.top_k_experts}
    experts = [tensor for name, tensor in model.named_parameters() if ".experts." in name]
    return sum(tensor.numel() // len(tensor) * (len(tensor) - top) for tensor in experts)


@pytest.mark.parametrize(("model_type", "sizes"), mixtures())
def test_a_token_uses_what_transformers_model_uses(model_type: str, sizes: dict[str, Any]) -> None:
    spec = spec_of({"model_type": model_type} | sizes)
    key, whole = spec.key(ACTIVE), spec.parameters()
    if spec.axis(ACTIVE).fixed:
        assert key not in default_widths(spec, LatticeOptions(work=True))
        return
    assert spec.named_sizes[key] == spec.experts_per_token == 2
    left = spec.resized({key: 1})
    assert left.sizes == spec.sizes | {ACTIVE: 1}
    found = left.parameters()
    assert whole.total - whole.active == unused_in_transformers(config_of(spec))
    assert found.total - found.active == unused_in_transformers(config_of(left))
    assert found.total == whole.total and found.active < whole.active
    with pytest.raises(MinitronError, match="more than the"):
        spec.resized({key: spec.sizes[EXPERT] + 1})


def test_it_is_written_under_every_spelling_that_a_config_has() -> None:
    sizes = FAMILY_SIZES["bailing_hybrid"][0]
    both = {"model_type": "bailing_hybrid", **sizes, TOP: 2, "num_experts_per_token": 2}
    left = spec_of(both).resized({spec_of(both).key(ACTIVE): 1})
    assert (left.config[TOP], left.config["num_experts_per_token"]) == (1, 1)
    alone = {key: value for key, value in both.items() if key != "num_experts_per_token"}
    assert spec_of(alone).key(ACTIVE) == TOP
    assert spec_of(alone).resized({TOP: 1}).experts_per_token == 1


def test_it_is_searched_where_the_work_for_a_token_is_limited_and_only_there() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    assert TOP not in default_widths(spec)
    assert default_widths(spec, LatticeOptions(work=True))[TOP] == (6, 5, 4, 3)
    assert default_widths(spec, LatticeOptions(most={TOP: 0.4}))[TOP] == (6, 5, 4)
    assert TOP not in default_widths(spec, LatticeOptions(work=True, leave=[TOP]))
    # A token sent to many is sent to fewer in steps.
    many = default_widths(published("Nemotron-3-Super-120B-A12B"), LatticeOptions(work=True))[TOP]
    assert many == (22, 20, 16, 12)
    assert TOP not in default_widths(published("Nemotron-Nano-12B-v2"), LatticeOptions(work=True))


def test_as_many_experts_stay_as_a_token_is_sent_to() -> None:
    spec = tiny(n_routed_experts=8, num_experts_per_tok=4)
    widths = {"n_routed_experts": "8,6,4", TOP: "4,2,1"}
    with pytest.raises(MinitronError, match="n_routed_experts = 2 is less than the 4 experts"):
        parse_widths(spec, widths | {"n_routed_experts": "2"})
    lattice = Lattice(spec, depths(spec, WORKLOAD, 8), parse_widths(spec, widths) | {"n_routed_experts": (8, 4, 2)})
    found = {
        (one.sizes["n_routed_experts"], one.sizes[TOP])
        for one in search(lattice, WORKLOAD, Budget(2**30), top=100).candidates
    }
    assert found == {(8, 4), (8, 2), (8, 1), (4, 4), (4, 2), (4, 1), (2, 2), (2, 1)}


@pytest.mark.parametrize("scored", [False, True])
def test_what_a_token_no_longer_uses_counts_as_if_it_were_cut(scored: bool) -> None:
    spec = tiny(num_experts_per_tok=4)
    scores = random_scores(spec) if scored else None
    widths = {TOP: "4,3,2,1", "moe_intermediate_size": "24,16", "n_routed_experts": "6,4"}
    lattice = Lattice(spec, (tuple(range(8)),), parse_widths(spec, widths))
    whole = replace(lattice, widths={key: sizes for key, sizes in lattice.widths.items() if key != TOP})

    def architecture(sizes: Any) -> Any:
        return sizes["moe_intermediate_size"], sizes["n_routed_experts"]

    plain = {
        architecture(one.sizes): one.score
        for one in search(whole, WORKLOAD, Budget(2**30), scores=scores, top=100).candidates
    }
    found = search(lattice, WORKLOAD, Budget(2**30), scores=scores, top=100).candidates
    assert len(found) == 16
    for one in found:
        lost = plain[architecture(one.sizes)] - one.score
        gone = 4 - one.sizes[TOP]
        # Two linears of each of so many experts, in the two layers that have some, by hand.
        numbers = 2 * 2 * 32 * one.sizes["moe_intermediate_size"]
        if scored and one.sizes["moe_intermediate_size"] < 24:
            assert gone * numbers < lost < gone * numbers * 24 / 16 if gone else lost == pytest.approx(0)
        else:
            assert lost == pytest.approx(gone * numbers)


def test_speed_and_memory_of_many_are_those_of_each() -> None:
    # llama.cpp loads no layers with and without experts in one model.
    spec = tiny("MEM*ME*E", num_experts_per_tok=4, moe_intermediate_size=512)
    workload = workload_of(spec, 64, 2)
    tops = np.array([4, 3, 2, 1])
    for name in ("plain", "vllm", "llama.cpp"):
        served = workload_of(spec, 64, 2, engine=Engine(name))
        many = footprint(spec, served, None, {ACTIVE: tops}).total
        alone = [footprint(spec.resized({TOP: int(top)}), served, None).total for top in tops]
        assert np.broadcast_to(many, tops.shape).tolist() == alone
    load = load_of(spec, workload, {ACTIVE: tops})
    for place, top in enumerate(tops.tolist()):
        own = load_of(spec.resized({TOP: top}), workload)
        assert [np.broadcast_to(one.share, 4)[place] for one in load.experts] == [one.share for one in own.experts]
        assert np.broadcast_to(load.activation_bytes, 4)[place] == own.activation_bytes


def test_a_limit_of_active_parameters_or_of_speed_is_kept_with_fewer_experts() -> None:
    spec = tiny(num_experts_per_tok=4)
    options = LatticeOptions(work=True)
    lattice = build_lattice(spec, WORKLOAD, layers=8, options=options)
    most = spec.parameters().active - 2 * 2 * 2 * 32 * 24
    found = search(lattice, WORKLOAD, Budget(2**30, limits=Limits(active_parameters=most)))
    assert found.best.sizes[TOP] == 2
    assert found.best.measures["active_parameters"] == spec.resized(found.best.sizes).parameters().active <= most
    # The measured search has a curve of it, as of any other size.
    (setting,) = [one for one in Coordinates(lattice).settings(TOP) if one.sizes == {TOP: 3}]
    assert setting.cut == 0.25
    gpu = find_gpu("H100-80GB-SXM")
    spec = published("Nemotron-3-Nano-30B-A3B")
    workload = workload_of(spec, 8192, 64)
    fast = Lattice(spec, (tuple(range(52)),), parse_widths(spec, {TOP: "6,5,4,3"}))
    speeds = [
        one.measures["throughput"]
        for one in search(
            fast, workload, Budget(gpu.usable, gpu=gpu, limits=Limits(throughput=1.0, prompt=4096))
        ).candidates
    ]
    assert speeds == sorted(speeds) and len(set(speeds)) == 4


def test_it_is_searched_beside_formats() -> None:
    spec = published("Nemotron-3-Nano-30B-A3B")
    gpu = find_gpu("L4")
    workload = workload_of(spec, 32768)
    lattice = build_lattice(spec, workload, options=LatticeOptions(work=True))
    lattice = replace(lattice, formats=format_choices(spec, workload, ["bf16", "int8", "int4"]))
    # It takes no bytes, and is not left out for that where a lattice is thinned.
    thinned = lattice.thinned(1000, lambda points: np.zeros(points.shape))
    assert thinned.widths[TOP] == (6, 5, 4, 3) and len(thinned.widths["hidden_size"]) == 1
    limits = Limits(active_parameters=3_000_000_000)
    found = search(lattice, workload, Budget(gpu.usable, 0.95, gpu=gpu, limits=limits)).best
    assert found.formats is not None and found.sizes[TOP] < 6
    assert spec.resized(found.sizes, found.kept).parameters().active == found.measures["active_parameters"] <= 3e9


def test_prune_writes_it_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = save_hybrid(tmp_path / "model"), tmp_path / "out"
    assert run(["prune", str(model), "--set", f"{TOP}=1", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["sizes"][TOP] == 1
    before, after = json.loads((model / "config.json").read_text()), json.loads((out / "config.json").read_text())
    assert (before[TOP], after[TOP]) == (2, 1)
    assert load_file(model / "model.safetensors").keys() == load_file(out / "model.safetensors").keys()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        # transformers' own way: the same files with another number in the config.
        other = AutoModelForCausalLM.from_pretrained(model, num_experts_per_tok=1)(tokens).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(tokens).logits, other)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(model)(tokens).logits, other)
    assert run(["prune", str(model), "--set", f"{TOP}=3", "-o", str(tmp_path / "no")]) == 2
    assert f"{TOP} = 3 is more than the model's 2; pruning only cuts" in capsys.readouterr().err
    assert (
        run(["prune", str(model), "--set", f"{TOP}=2", "--set", "n_routed_experts=1", "-o", str(tmp_path / "no")]) == 2
    )
    assert f"{TOP} = 2 is more than the 1 experts" in capsys.readouterr().err


def test_groups_of_experts_stay_valid(tmp_path: Path) -> None:
    sizes = FAMILY_SIZES["deepseek_v3"][0] | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, TOP: 4}
    model = save_family(tmp_path / "model", "deepseek_v3", **sizes)
    out = tmp_path / "out"
    assert run(["prune", str(model), "--set", f"{TOP}=3", "-o", str(out)]) == 0
    built = AutoModelForCausalLM.from_pretrained(out)
    assert built(torch.arange(8)[None]).logits.isfinite().all()
    plan = make_plan(read_spec(model), {TOP: 3}, tuple(range(len(read_spec(model).layers))))
    assert plan.has_indices(read_spec(model)) and plan.sizes == {TOP: 3}
