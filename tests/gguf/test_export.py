"""GGUF files that `minitron export` writes: llama.cpp loads them and says what transformers says."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_runs import agrees
from tiny_models import save_family, save_hybrid, save_llama, write_text

from cli.app import run
from minitron.cut.plan import make_plan
from minitron.cut.prune import prune
from minitron.errors import MinitronError
from minitron.gguf import extra
from minitron.gguf.export import export
from minitron.gguf.tokenizers import pre_tokenizer
from minitron.model.spec import read_spec
from pipeline.exporting import Export


def installed() -> None:
    """Skip the test where the extra `gguf` is not there."""
    pytest.importorskip("conversion", reason="needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [("MEM*ME", {}), ("M-M*-", {}), ("MEM*ME", {"moe_latent_size": 20})],
    ids=["experts", "dense", "latent experts"],
)
def test_a_hybrid_says_the_same_in_llama_cpp(tmp_path: Path, pattern: str, sizes: dict[str, Any]) -> None:
    installed()
    model = save_hybrid(tmp_path / "model", pattern=pattern, **sizes)
    export(model, tmp_path / "out.gguf", "f32")
    agrees(model, tmp_path / "out.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_says_the_same_in_llama_cpp(tmp_path: Path, tied: bool) -> None:
    installed()
    model = save_llama(tmp_path / "model", tied=tied)
    export(model, tmp_path / "out.gguf", "f32")
    agrees(model, tmp_path / "out.gguf")


def test_a_hybrid_whose_experts_were_all_cut_is_no_mixture(tmp_path: Path) -> None:
    """The config of a model that lost its last mixture says nothing of experts."""
    model, cut = save_hybrid(tmp_path / "model", pattern="ME-M*-"), tmp_path / "cut"
    spec = read_spec(model)
    prune(model, make_plan(spec, {}, (0, 2, 3, 4, 5)), cut)
    config = json.loads((cut / "config.json").read_text())
    assert not [key for key in config if "expert" in key or key.startswith("moe_")]
    assert "num_experts_per_tok" in json.loads((model / "config.json").read_text())
    installed()
    export(cut, tmp_path / "out.gguf", "f32")
    agrees(cut, tmp_path / "out.gguf")


def test_mlp_layers_beside_experts_are_refused_by_name(tmp_path: Path) -> None:
    installed()
    model = save_hybrid(tmp_path / "model", pattern="ME*-")
    with pytest.raises(MinitronError, match=r"MLP layers \(-\) beside mixtures of experts \(E\)"):
        export(model, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("kind", ["f32", "bf16", "f16", "q8_0", "q4_0", "q4_k_m", "q3_k_m", "iq4_xs"])
def test_the_bytes_told_are_those_in_the_file(tmp_path: Path, kind: str) -> None:
    installed()
    import gguf

    sizes = {"hidden_size": 256, "head_dim": 32, "moe_intermediate_size": 96}
    model = save_hybrid(tmp_path / "model", pattern="ME*", **sizes)
    found = export(model, tmp_path / "out.gguf", kind)
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert found.weight_bytes == sum(int(tensor.n_bytes) for tensor in tensors)
    assert found.file_bytes == (tmp_path / "out.gguf").stat().st_size
    assert found.tensors == len(tensors)


def test_blocks_hold_what_was_rounded(tmp_path: Path) -> None:
    """Q8_0 by gguf's own reader: within half a step of 1/127 of the largest of 32 numbers, and a scale in fp16."""
    installed()
    import gguf

    model = save_llama(tmp_path / "model", hidden_size=64, intermediate_size=64)
    export(model, tmp_path / "plain.gguf", "f32")
    export(model, tmp_path / "out.gguf", "q8_0")
    plain, rounded = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("plain.gguf", "out.gguf")
    )
    name = "blk.1.ffn_down.weight"
    exact = np.array(plain[name].data).reshape(-1, 32)
    read = gguf.quants.dequantize(rounded[name].data, rounded[name].tensor_type).reshape(-1, 32)
    steps = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert (np.abs(read - exact) <= 0.57 * steps).all() and not np.array_equal(read, exact)


def test_types_that_need_an_importance_are_refused(tmp_path: Path) -> None:
    installed()
    model = save_llama(tmp_path / "model", hidden_size=256, head_dim=64, intermediate_size=256)
    with pytest.raises(MinitronError, match="importance matrix"):
        export(model, tmp_path / "out.gguf", "iq2_xxs")
    ones = {}
    for layer in range(4):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
            ones[f"blk.{layer}.{part}.weight"] = np.ones(256, dtype=np.float32)
    found = export(model, tmp_path / "out.gguf", "iq2_xxs", importance=lambda spec, checkpoint: ones)
    assert found.types["iq2_xxs"] > 10


def test_a_file_that_exists_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = save_llama(tmp_path / "model"), write_text(tmp_path / "out.gguf", sentences=1)
    before = out.read_bytes()
    assert run(["export", str(model), "--output", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    """Weights that are no numbers are told by name, and no half a file stays."""
    installed()
    from safetensors.torch import load_file, save_file

    model = save_llama(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MinitronError, match=r"blk\.2\.ffn_down\.weight holds NaN"):
        export(model, tmp_path / "out.gguf", "q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_package_is_told_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MinitronError, match=r"pip install 'minitron\[gguf\]'"):
        extra.converter()


def test_a_model_that_the_converter_does_not_know_is_told(tmp_path: Path) -> None:
    installed()
    sizes = json.loads((save_llama(tmp_path / "like") / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    model = save_family(tmp_path / "model", "olmo3", **{key: sizes[key] for key in keys}, num_hidden_layers=4)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(MinitronError, match="converter does not take"):
        export(model, tmp_path / "out.gguf")


SPLITS: list[tuple[dict[str, Any], str]] = [
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "use_regex"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}]}}, "Sequence of Split"),
    ({"pre_tokenizer": None}, "split by nothing"),
    ({"normalizer": {"type": "NFC"}}, "normalised first"),
    ({"model": {"type": "WordLevel"}}, "not BPE"),
    ({"model": {"type": "BPE", "byte_fallback": True}}, "byte_fallback"),
]


@pytest.mark.parametrize(("changes", "said"), SPLITS, ids=[said for _, said in SPLITS])
def test_only_what_splits_as_gpt2_is_called_so(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    plain = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(plain))
    assert pre_tokenizer(tmp_path) == "gpt-2"
    path.write_text(json.dumps(plain | changes))
    with pytest.raises(MinitronError, match=said):
        pre_tokenizer(tmp_path)


def test_an_unknown_type_is_refused_before_anything_is_read() -> None:
    with pytest.raises(MinitronError, match=r"no type 'q9'.*q4_k_m"):
        Export(Path("nowhere"), Path("out.gguf"), type="q9")
