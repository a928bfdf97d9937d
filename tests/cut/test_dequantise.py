"""`prune --dequantise`: quantised folders in, bf16 folders out, the same as what was quantised but for its rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import random_scores
from family_sizes.base import DECODER
from quantising import is_linear, quantise_folder
from safetensors.torch import load_file, save_file
from tiny_models import save_family
from torch import Tensor

from cli import app
from minitron.cut.magnitude import weight_magnitude
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.memory.footprint import footprint
from minitron.memory.workload import workload_of
from minitron.model.dequantised import open_plain
from minitron.model.loading import load_model
from minitron.model.stored import read_stored_spec

Packer = Callable[[str, Tensor], dict[str, Tensor]]


def rows(_: str, weight: Tensor) -> dict[str, Tensor]:
    scale = (weight.abs().amax(1, keepdim=True).float() / 448).bfloat16()
    return {".weight": (weight.float() / scale.float()).to(torch.float8_e4m3fn), ".weight_scale": scale}


def blocks(_: str, weight: Tensor) -> dict[str, Tensor]:
    """Blocks of 16 x 16."""
    tall, wide = (-(-size // 16) for size in weight.shape)
    scale = torch.rand(tall, wide, generator=torch.Generator().manual_seed(0)) + 0.5
    spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)[: weight.shape[0], : weight.shape[1]]
    return {".weight": (weight.float() / spread).to(torch.float8_e4m3fn), ".weight_scale_inv": scale}


def words(_: str, weight: Tensor) -> dict[str, Tensor]:
    """Four bits in groups of 8, as compressed-tensors packs them."""
    groups = weight.float().unflatten(1, (-1, 8))
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    numbers = (groups / scale.float()[..., None]).round().clamp(-8, 7).flatten(1).long() + 8
    packed = (numbers.unflatten(1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    return {".weight_packed": packed, ".weight_scale": scale, ".weight_shape": torch.tensor(weight.shape)}


def mixed(name: str, weight: Tensor) -> dict[str, Tensor]:
    found = words(name, weight) if "down_proj" in name else rows(name, weight)
    return found | ({".k_scale": torch.ones(1)} if "k_proj" in name else {})


def group(layout: str, targets: list[str], **weights: Any) -> dict[str, Any]:
    return {"format": layout, "targets": targets, "weights": weights}


CT = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
FLOATS = group("float-quantized", ["Linear"], num_bits=8, type="float", strategy="channel")
WORDS = group("pack-quantized", ["Linear"], num_bits=4, type="int", strategy="group", group_size=8)
KINDS: dict[str, tuple[Packer, dict[str, Any] | None]] = {
    "rows": (rows, {**CT, "format": "float-quantized", "config_groups": {"group_0": FLOATS}}),
    "blocks": (blocks, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "words": (words, {**CT, "format": "pack-quantized", "config_groups": {"group_0": WORDS}}),
    "mixed": (
        mixed,
        {
            **CT,
            "format": "mixed-precision",
            "config_groups": {"a": {**WORDS, "targets": ["re:.*down_proj"]}, "b": FLOATS},
        },
    ),
    "cast": (lambda _, weight: {".weight": weight.to(torch.float8_e4m3fn)}, None),
}


def undone(pieces: dict[str, Tensor]) -> Tensor:
    """In float64, from the definition of each layout."""
    if ".weight_packed" in pieces:
        packed, scale = pieces[".weight_packed"].long(), pieces[".weight_scale"].double()
        numbers = ((packed[..., None] >> (4 * torch.arange(8))) & 15).flatten(1).double() - 8
        return numbers * scale.repeat_interleave(8, 1)
    weight = pieces[".weight"].double()
    if ".weight_scale_inv" in pieces:
        scale = pieces[".weight_scale_inv"].double().repeat_interleave(16, 0).repeat_interleave(16, 1)
        return weight * scale[: weight.shape[0], : weight.shape[1]]
    return weight * pieces[".weight_scale"].double() if ".weight_scale" in pieces else weight


@pytest.fixture(params=list(KINDS))
def folder(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Path:
    pack, section = KINDS[request.param]
    return quantise_folder(tiny_llama, tmp_path / "quantised", pack, section)


@pytest.fixture
def expected(folder: Path, tiny_llama: Path, request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Every tensor of the folder in bf16."""
    (pack, _) = KINDS[request.node.callspec.params["folder"]]
    return {
        name: undone(pack(name.removesuffix(".weight"), tensor)).bfloat16() if is_linear(name) else tensor
        for name, tensor in load_file(tiny_llama / "model.safetensors").items()
    }


def test_alone_it_writes_the_whole_model_in_bf16(folder: Path, expected: dict[str, Tensor], tmp_path: Path) -> None:
    output = tmp_path / "plain"
    assert app.run(["prune", str(folder), "--dequantise", "-o", str(output)]) == 0
    found = load_file(output / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
        assert tensor.dtype == torch.bfloat16 if is_linear(name) else tensor.dtype == expected[name].dtype
    config = json.loads((output / "config.json").read_text())
    assert "quantization_config" not in config
    assert config.get("dtype", "bfloat16") == "bfloat16"
    assert json.loads((output / "minitron.json").read_text())["note"]["dequantised"].endswith("to bf16")
    load_model(output)
    # What is in plain numbers is not to be made so again.
    assert app.run(["prune", str(output), "--dequantise", "-o", str(tmp_path / "twice")]) == 2


def test_a_cut_is_that_of_the_model_in_bf16(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    spec = open_plain(folder, dequantise=True)[0]
    whole = make_plan(spec, {}, tuple(range(len(spec.layers))))
    prune(folder, whole, plain, dequantise=True)
    spec, checkpoint, _ = open_plain(folder, dequantise=True)
    sizes = {"intermediate_size": spec.sizes["ffn"] // 2}
    fallback = weight_magnitude(checkpoint, spec)
    plan = make_plan(spec, sizes, (0, 2), random_scores(spec), fallback=fallback)
    written = prune(folder, plan, tmp_path / "small", dequantise=True)
    prune(plain, plan, tmp_path / "same")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "same"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    files = load_file(folder / "model.safetensors").values()
    assert written.source_weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in files)


def test_scores_are_those_of_a_copy_in_bf16(tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    pack, section = KINDS["rows"]
    folder = quantise_folder(tiny_llama, tmp_path / "quantised", pack, section)
    words = ["--set", "intermediate_size=16", "--data", str(short_text), "--samples", "2", "--sequence-length", "16"]
    assert app.run(["prune", str(folder), "--dequantise", *words, "-o", str(tmp_path / "small")]) == 0
    assert app.run(["prune", str(folder), "--dequantise", "-o", str(tmp_path / "plain")]) == 0
    assert app.run(["prune", str(tmp_path / "plain"), *words, "-o", str(tmp_path / "same")]) == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "same"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "quantised", "same", "small"]


def test_gpt_oss_as_it_is_released(tmp_path: Path) -> None:
    """Experts in MXFP4, gate and up interleaved, inputs last; read by transformers the same numbers come out."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 64}
    plain = save_family(tmp_path / "plain", "gpt_oss", **(DECODER | sizes))
    generator = torch.Generator().manual_seed(0)

    def pack(_: str, weight: Tensor) -> dict[str, Tensor]:
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32)
        return {
            "_blocks": torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator),
            "_scales": torch.randint(118, 124, shape, dtype=torch.uint8, generator=generator),
        }

    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    section = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    folder = quantise_folder(plain, tmp_path / "mxfp4", pack, section, wanted=lambda name: name.endswith("_proj"))
    stored = load_file(folder / "model.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    spec = read_stored_spec(folder)
    assert footprint(spec, workload_of(spec, 8)).weights == size
    assert app.run(["prune", str(folder), "--dequantise", "-o", str(tmp_path / "bf16")]) == 0
    mine = load_model(tmp_path / "bf16").state_dict()
    from transformers import AutoModelForCausalLM, Mxfp4Config

    dequantise = Mxfp4Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=dequantise)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "cannot turn into bf16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "cannot turn into bf16"),
        ({"quant_method": "something new"}, "cannot turn into bf16"),
    ],
)
def test_what_cannot_be_undone_is_refused(tiny_llama: Path, tmp_path: Path, section: dict[str, Any], told: str) -> None:
    folder = quantise_folder(tiny_llama, tmp_path / "quantised", rows, section)
    with pytest.raises(MinitronError, match=told):
        open_plain(folder, dequantise=True)


def test_a_layout_that_is_not_that_of_the_config_writes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    folder = quantise_folder(
        tiny_llama,
        tmp_path / "quantised",
        lambda _, weight: {".qweight": weight.int(), ".scales": torch.ones(1)},
        {"quant_method": "fp8"},
    )
    spec, *_ = open_plain(folder, dequantise=True)
    with pytest.raises(MinitronError, match=r"stored as .*qweight \(I32\)"):
        prune(folder, make_plan(spec, {}, tuple(range(len(spec.layers)))), tmp_path / "plain", dequantise=True)
    assert not (tmp_path / "plain").exists()


def test_a_tensor_that_nothing_knows_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = quantise_folder(tiny_llama, tmp_path / "quantised", *KINDS["rows"])
    held = load_file(folder / "model.safetensors")
    save_file(held | {"adapter.weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MinitronError, match=r"adapter\.weight"):
        open_plain(folder, dequantise=True)
