"""Quantised folders: to the byte what a plan counts, complete or absent, and back in wherever a model goes in."""

import importlib.util
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from quantising import save_wide_hybrid, save_wide_llama
from safetensors.torch import load_file, save_file

from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError, NotFinite
from minitron.memory.footprint import footprint
from minitron.memory.formats import FORMATS
from minitron.memory.precision import precision_of, tally_of, weight_bytes
from minitron.memory.stored import stored_origin
from minitron.memory.workload import workload_of
from minitron.model.dequantised import open_plain
from minitron.model.loading import load_model
from minitron.model.spec import read_spec
from minitron.model.stored import quantisation_in, read_stored_spec
from minitron.quantise.packing import faked, on_grid, pieces
from minitron.quantise.scales import plain_scales
from minitron.quantise.wanted import Wanted
from minitron.quantise.writing import Nearest, Rounded, quantise

PLAIN = [name for name, form in FORMATS.items() if form.written and form.inputs != "static"]
EXPERTS = {"moe_intermediate_size": 48, "hidden_size": 64, "num_hidden_layers": 2}


class Seen(Nearest):
    """Rounds to nearest, and tells of inputs what calibration would."""

    @property
    def sees_inputs(self) -> bool:
        return True

    def rounded(self, *arguments: Any) -> Any:
        for one in super().rounded(*arguments):
            yield Rounded(one.matrix, one.numbers, one.scales, 3.0)

    def largest_kv(self, module: str) -> float:
        return 900.0 if module.endswith("k_proj") else 2.0


def size_of(folder: Path) -> int:
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose hidden size 32 alone divides, of the groups of int4, and whose MLP 128 does."""
    return save_wide_llama(tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid with routed experts whose widths groups divide."""
    return save_wide_hybrid(tmp_path_factory.mktemp("hybrid") / "model")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.written])
@pytest.mark.parametrize("model", ["wide", "hybrid"])
def test_what_is_written_is_what_was_planned_and_is_read_back(
    name: str, model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(model)
    result = quantise(source, tmp_path / "out", Wanted(name), Seen())
    spec = read_spec(source)
    counted = sum(weight_bytes(spec, tally_of(spec, precision_of(spec, name)), spec.sizes))
    assert size_of(tmp_path / "out") == result.weight_bytes == result.planned_bytes == counted
    # The config and the headers say the same of it.
    stored = read_stored_spec(tmp_path / "out")
    assert footprint(stored, workload_of(stored, 8)).weights == counted
    assert stored.quantisation is not None
    assert stored_origin(stored, stored.quantisation) == "exact"
    by_config = read_spec(tmp_path / "out")
    assert footprint(by_config, workload_of(by_config, 8)).weights == counted - _beside(source, by_config)
    # Every matrix is what its format makes of the source's, every other tensor the source's own in bf16.
    plain, ours, _ = open_plain(tmp_path / "out", dequantise=True)
    theirs = load_file(source / "model.safetensors")
    quantised = 0
    for tensor, weight in theirs.items():
        found = ours.tensor(tensor)
        if torch.equal(found.float(), weight.to(found.dtype).float()):
            continue
        quantised += 1
        form = FORMATS[name].in_groups(32) if name == "int4" else FORMATS[name]
        error = (found.float() - weight).abs().max() / weight.abs().max()
        assert 0 < error < {4: 0.2, 8: 0.08}[form.bits]
    assert quantised == sum(result.formats.values())
    # What is loaded is what `prune --dequantise` writes.
    prune(tmp_path / "out", make_plan(plain, {}, tuple(range(len(spec.layers)))), tmp_path / "back", dequantise=True)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        one, other = (load_model(tmp_path / folder, dtype=torch.float32)(ids).logits for folder in ("out", "back"))
    assert torch.equal(one, other)
    assert plain.sizes == spec.sizes


def _beside(source: Path, spec: Any) -> int:
    """What the files hold in fp32 that a config cannot say: the router and its bias."""
    kept = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if "mixer.gate" in name}
    return sum(2 * tensor.numel() for tensor in kept.values())


def test_a_mixture_by_component_stands_in_the_config(wide: Path, tmp_path: Path) -> None:
    result = quantise(wide, tmp_path / "out", Wanted("nvfp4a16", {"attention": "bf16"}))
    assert result.formats == {"nvfp4a16": 3 * len(read_spec(wide).layers)}
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kept = {f"model.layers.{n}.self_attn.{p}_proj" for n in range(len(read_spec(wide).layers)) for p in "qkvo"}
    assert set(section["ignore"]) == kept | {"lm_head", "model.embed_tokens"}
    assert json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"] == {
        "quant_algo": "W4A16_NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": section["ignore"],
    }


def test_an_output_layer_that_is_the_embedding_is_named_among_those_that_stay(wide: Path, tmp_path: Path) -> None:
    """vLLM builds its module by config.json, and would want scales for it (benchmarks/loading.py)."""
    model = load_model(wide, dtype=torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    for form, names in (("nvfp4a16", {"lm_head", "model.embed_tokens"}), ("int8", {"lm_head", "model.embed_tokens"})):
        quantise(tmp_path / "tied", tmp_path / form, Wanted(form))
        section = json.loads((tmp_path / form / "config.json").read_text())["quantization_config"]
        assert set(section["ignore"]) == names
        assert read_spec(tmp_path / form).is_tied


@pytest.mark.parametrize(
    ("form", "keep", "method"),
    [
        ("nvfp4a16", {"attention": "fp8"}, "modelopt"),
        ("nvfp4", {"mlp": "fp8"}, "modelopt"),
        ("int4", {"attention": "int8"}, "compressed-tensors"),
        ("int8", {"mlp": "fp8-dynamic"}, "compressed-tensors"),
    ],
)
def test_formats_that_one_method_describes_stand_together(
    form: str, keep: dict[str, str], method: str, wide: Path, tmp_path: Path
) -> None:
    result = quantise(wide, tmp_path / "out", Wanted(form, keep), Seen())
    assert size_of(tmp_path / "out") == result.planned_bytes
    stored = read_spec(tmp_path / "out")
    assert footprint(stored, workload_of(stored, 8)).weights == result.planned_bytes
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["quant_method"] == method
    # A regular expression of compressed-tensors is matched from the beginning: one of its own kind, and no other.
    if method == "compressed-tensors":
        (special,) = (one for one in section["config_groups"].values() if one["targets"] != ["Linear"])
        modules = [name.removesuffix(".weight") for name in load_file(wide / "model.safetensors") if "proj" in name]
        # The format of more matrices, those of attention, is the one of the class.
        part = "mlp"
        assert special["weights"]["num_bits"] == FORMATS[keep.get("mlp", form)].bits
        assert len(special["targets"]) == 3
        for module in modules:
            means = any(re.match(target.removeprefix("re:"), module) for target in special["targets"])
            assert means == (f".{part}." in module)


def test_a_width_that_no_group_divides_is_kept_and_named(tmp_path: Path) -> None:
    source = tiny_models.save_llama(tmp_path / "model", hidden_size=64, intermediate_size=72, head_dim=32)
    result = quantise(source, tmp_path / "out", Wanted("int4"))
    layers = len(read_spec(source).layers)
    assert set(result.left) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(layers)}
    assert "72 columns are no multiple of 32" in next(iter(result.left.values()))
    assert size_of(tmp_path / "out") == result.planned_bytes


def test_scales_of_inputs_keys_and_values(wide: Path, tmp_path: Path) -> None:
    result = quantise(wide, tmp_path / "out", Wanted("fp8", kv="fp8"), Seen())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    at = "model.layers.1.self_attn."
    assert float(tensors[at + "q_proj.input_scale"]) == torch.tensor(3.0) / 448
    assert float(tensors[at + "k_proj.k_scale"]) == torch.tensor(900.0) / 448
    assert float(tensors[at + "v_proj.v_scale"]) == torch.tensor(2.0) / 448
    assert result.weight_bytes == result.planned_bytes == size_of(tmp_path / "out")
    assert read_spec(tmp_path / "out").quantisation.kv == "fp8"  # type: ignore[union-attr]
    # What a plan counts of the source, of the folder, and of its config alone is what was written.
    source, written, told = read_spec(wide), read_stored_spec(tmp_path / "out"), read_spec(tmp_path / "out")
    for spec, weights in ((source, "fp8"), (written, None), (told, None)):
        assert footprint(spec, workload_of(spec, 1, weights=weights, kv="fp8")).weights == result.weight_bytes
    load_model(tmp_path / "out")


def test_joined_matrices_share_their_scale(wide: Path, tmp_path: Path) -> None:
    quantise(wide, tmp_path / "out", Wanted("nvfp4"), Seen())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    at = "model.layers.0."
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        assert len({float(tensors[f"{at}{name}.weight_scale_2"]) for name in names}) == 1


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs nvidia-modelopt")
@pytest.mark.parametrize(("name", "kv"), [("fp8", "bf16"), ("fp8", "fp8"), ("nvfp4", "fp8"), ("nvfp4a16", "bf16")])
def test_folders_are_what_modelopt_exports(name: str, kv: str, tmp_path: Path) -> None:
    """Names, config and, for the same largest numbers, every number.  modelopt keeps FP8's scales of joined matrices
    apart, where an engine rounds all but one of them anew: those are compared matrix by matrix."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    source = tiny_models.save_llama(tmp_path / "model", hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    config = {"fp8": mtq.FP8_DEFAULT_CFG, "nvfp4": mtq.NVFP4_DEFAULT_CFG, "nvfp4a16": mtq.W4A16_NVFP4_CFG}[name]
    if kv == "fp8":
        config = {**config, "quant_cfg": [*config["quant_cfg"], *mtq.FP8_KV_CFG["quant_cfg"]]}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model = mtq.quantize(model, config, lambda one: one(torch.arange(3, 60)[None]))
    with torch.no_grad():
        export_hf_checkpoint(model, dtype=torch.float32, export_dir=tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    form = FORMATS[name]
    limit = 448 * (6 if name == "nvfp4" else 1)

    class Same(Seen):
        def rounded(self, *arguments: Any) -> Any:
            for one in super().rounded(*arguments):
                read = float(theirs[f"{one.matrix.module}.input_scale"]) * limit if form.inputs else None
                yield Rounded(one.matrix, one.numbers, one.scales, read)

        def largest_kv(self, module: str) -> float:
            return float(theirs[f"{module}.k_scale" if module.endswith("k_proj") else f"{module}.v_scale"]) * 448

    quantise(source, tmp_path / "ours", Wanted(name, kv=kv), Same(search=False))
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(ours) == set(theirs)
    plain = load_file(source / "model.safetensors")
    for tensor_name, tensor in theirs.items():
        found = ours[tensor_name]
        if tensor_name.endswith(("input_scale", ".k_scale", ".v_scale")):
            assert torch.allclose(found, tensor, rtol=1e-6)
        elif name == "fp8" and f"{tensor_name}_scale" in theirs:
            scales = plain_scales(form, [plain[tensor_name]])[0]
            made = pieces(form, on_grid(form, plain[tensor_name], scales), scales)
            assert torch.equal(made[".weight_scale"], theirs[f"{tensor_name}_scale"])
            assert torch.equal(made[".weight"].float(), tensor.float())
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        elif not (name == "fp8" and tensor_name.endswith("weight_scale")):
            # What is not quantised was fp32 and is written in bf16.
            assert torch.equal(found.float(), tensor.to(found.dtype).float()), tensor_name
            assert found.shape == tensor.shape
    for file, key in (("config.json", "quantization_config"), ("hf_quant_config.json", "quantization")):
        one, other = (json.loads((tmp_path / folder / file).read_text())[key] for folder in ("theirs", "ours"))
        ignored = next(name for name in ("ignore", "exclude_modules") if name in one)
        assert set(one.pop(ignored)) == set(other.pop(ignored))
        assert {**one, "producer": None} == {**other, "producer": None}


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_what_stays_of_a_hybrid_is_listed_by_its_own_names(name: str, tmp_path: Path) -> None:
    """modelopt 0.47 writes `lm_head.\\0backbone.pt_name_sentinel` for these: every name here is a module of the files,
    or the beginning of some, and every matrix of the files is either quantised or meant by one of them."""
    source = save_wide_hybrid(tmp_path / "model")
    quantise(source, tmp_path / "out", Wanted(name), Seen())
    found = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    beside = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
    assert found == beside
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    matrices = {key.removesuffix(".weight") for key, one in tensors.items() if key.endswith(".weight") and one.ndim > 1}
    kept = {module for module in matrices if f"{module}.weight_scale" not in tensors}
    assert "lm_head" in kept
    meant = {module for module in matrices if any(fnmatch(module, pattern) for pattern in found)}
    assert meant == kept
    assert all(any(fnmatch(module, pattern) for module in kept) for pattern in found)
    for part in ("conv1d", "mixer.gate", "embeddings"):
        assert any(part in module for module in kept)


def test_plain_rounding_is_that_of_the_packers(wide: Path, tmp_path: Path) -> None:
    quantise(wide, tmp_path / "out", Wanted("int8"), Nearest(search=False))
    weight = load_file(wide / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    # By hand: rows are divided by their largest number, a 127.5th of it rounded to bf16.
    scale = (weight.double().abs().amax(1, keepdim=True) / 127.5).bfloat16().double()
    expected = ((weight.double() / scale).round().clamp(-128, 127) * scale).bfloat16()
    found = open_plain(tmp_path / "out", dequantise=True)[1].tensor("model.layers.0.mlp.up_proj.weight")
    assert float((found != expected).float().mean()) < 1e-3
    form = FORMATS["int8"]
    assert torch.equal(found, faked(form, weight, plain_scales(form, [weight])[0]).bfloat16())


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (lambda: Wanted("int3"), "int3 is no format that Minitron writes; choose fp8, fp8-dynamic"),
        (lambda: Wanted("bf16"), "--format bf16 is not quantised"),
        (lambda: Wanted("int8", kv="int8"), "cannot be kept in int8; choose bf16 or fp8"),
        (lambda: Wanted("fp8"), "give --data with text, or choose --format fp8-dynamic"),
        (lambda: Wanted("nvfp4"), "choose --format nvfp4a16"),
        (lambda: Wanted("int8", kv="fp8"), "--kv fp8 writes scales of keys and values"),
        (lambda: Wanted("int8", {"embedding": "int8"}), "it is no linear"),
        (lambda: Wanted("int8", {"moe": "bf16"}), "--keep moe=bf16 is not a part of this model"),
        (lambda: Wanted("int8", {"mlp": "nvfp4a16"}), "cannot stand in one checkpoint"),
    ],
)
def test_what_cannot_be_written_is_said(wanted: Any, told: str, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(MinitronError, match=re.escape(told)):
        quantise(wide, tmp_path / "out", wanted())
    assert sorted(tmp_path.iterdir()) == []


def test_a_quantised_source_and_one_that_is_not_finite_are_named(wide: Path, tmp_path: Path) -> None:
    quantise(wide, tmp_path / "once", Wanted("int8"))
    with pytest.raises(MinitronError, match=r"once is quantised .* --dequantise"):
        quantise(tmp_path / "once", tmp_path / "out", Wanted("int4"))
    broken = tiny_models.save_llama(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        quantise(broken, tmp_path / "out", Wanted("int8"))
    assert not (tmp_path / "out").exists()


def test_experts_that_are_one_tensor_are_refused_by_name(tmp_path: Path) -> None:
    from family_sizes import FAMILY_SIZES

    source = tiny_models.save_family(tmp_path / "model", "granitemoe", **FAMILY_SIZES["granitemoe"][0])
    with pytest.raises(MinitronError, match=r"experts of a layer are one tensor.*--keep moe_routed=bf16"):
        quantise(source, tmp_path / "out", Wanted("int8"))
    result = quantise(source, tmp_path / "out", Wanted("int8", {"moe_routed": "bf16"}))
    assert size_of(tmp_path / "out") == result.planned_bytes
    assert quantisation_in(tmp_path / "out") is not None


@pytest.mark.parametrize("form", ["fp8", "int4", "int8", "fp8-dynamic", "nvfp4a16"])
@pytest.mark.parametrize("save", [save_wide_llama, save_wide_hybrid])
def test_scales_of_keys_and_values_are_counted_in_every_layout(form: str, save: Any, tmp_path: Path) -> None:
    source = save(tmp_path / "model")
    result = quantise(source, tmp_path / "out", Wanted(form, kv="fp8"), Seen())
    assert result.weight_bytes == result.planned_bytes == size_of(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kept = {tensor.dtype for name, tensor in tensors.items() if name.endswith((".k_scale", ".v_scale"))}
    # As modelopt and as llmcompressor write them.
    assert kept == {torch.float32 if FORMATS[form].method == "modelopt" else torch.bfloat16}
    load = workload_of(read_spec(source), 1, weights=form, kv="fp8")
    assert footprint(read_spec(source), load).weights == size_of(tmp_path / "out")
    if save is save_wide_llama:  # routers are in fp32 where the source is, and no config says so
        told = read_spec(tmp_path / "out")
        assert footprint(told, workload_of(told, 1)).weights == size_of(tmp_path / "out")
