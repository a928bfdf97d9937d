"""The bytes that config.json alone promises are those that the file holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_family, save_hybrid, save_llama, write_text

from cli.app import run
from minitron.errors import MinitronError
from minitron.gguf.export import export
from minitron.memory.formats import gguf_format
from minitron.memory.precision import precision_of, tally_of, weight_bytes
from minitron.model.spec import read_spec

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
EIGHT = {"hidden_size": 256, "n_routed_experts": 8, "moe_shared_expert_intermediate_size": 256}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (save_llama, WIDE | {"num_hidden_layers": 9}),
    "tied llama": (save_llama, WIDE | {"tied": True}),
    "narrow llama": (save_llama, {}),
    "SmolLM2's widths": (
        save_llama,
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "head_dim": 64,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "num_hidden_layers": 2,
            "tied": True,
        },
    ),
    "eight experts": (save_hybrid, EIGHT | {"pattern": "ME*MEM*E"}),
    "latent experts": (save_hybrid, {"pattern": "ME*", "moe_latent_size": 64, "hidden_size": 64}),
    "dense": (save_hybrid, {"pattern": "M-M*-M-M-", "hidden_size": 256}),
}


def require_gguf() -> None:
    for package in ("conversion", "xllamacpp"):
        pytest.importorskip(package, reason="needs the extra gguf")


def counted(model: Path, kind: str) -> int:
    spec = read_spec(model)
    return int(weight_bytes(spec, tally_of(spec, precision_of(spec, gguf_format(kind))), spec.sizes)[0])


@pytest.mark.parametrize("label", MODELS)
def test_what_is_counted_is_what_is_written(tmp_path: Path, label: str) -> None:
    require_gguf()
    import gguf

    save, sizes = MODELS[label]
    model = save(tmp_path / "model", **sizes)
    for kind in ("bf16", "q8_0", "q4_k_m", "q3_k_m", "iq4_xs"):
        export(model, tmp_path / "out.gguf", kind, overwrite=True)
        written = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors)
        assert counted(model, kind) == written, kind


OWN = {
    "llama": {"attention": "q8_0", "mlp": "q3_k", "embedding": "iq2_xxs", "lm_head": "q5_k"},
    "tied llama": {"attention": "q5_k", "embedding": "iq4_xs"},
    "narrow llama": {"mlp": "q4_k", "attention": "iq4_xs"},
    "eight experts": {"ssm": "q6_k", "moe_routed": "q3_k", "moe_shared": "bf16"},
    "latent experts": {"ssm": "q5_0", "moe_latent_proj": "q8_0", "moe_routed": "q4_0"},
    "dense": {"ssm": "q4_1", "mlp": "q2_k", "lm_head": "q8_0"},
}


@pytest.mark.parametrize("label", OWN)
def test_parts_in_types_of_their_own_are_counted_as_they_are_written(
    tmp_path: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    require_gguf()
    save, sizes = MODELS[label]
    model = save(tmp_path / "model", **sizes)
    keep = [word for part, kind in OWN[label].items() for word in ("--keep", f"{part}={kind}")]
    for kind in ("q4_k_s", "bf16"):
        asked = ["export", str(model), "--format", kind, *keep, "--json"]
        assert run([*asked, "--output", str(tmp_path / f"{kind}.gguf")]) == 0
        written = json.loads(capsys.readouterr().out)["results"]
        assert run(asked) == 0
        assert json.loads(capsys.readouterr().out)["results"]["weight_bytes"] == written["weight_bytes"]
        if label != "narrow llama":
            assert set(OWN[label].values()) <= set(written["types"])


@pytest.mark.parametrize("keep", ["ssm=q5_k", "attention=q9", "norm=q8_0"])
def test_a_part_or_a_type_that_is_not_there(tmp_path: Path, keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_llama(tmp_path / "model")
    assert run(["export", str(model), "--format", "q4_k_m", "--keep", keep]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"--keep {keep} is not a part of this model that a GGUF file keeps in a type of its own" in told


@pytest.mark.parametrize("label", [pytest.param("tied llama", marks=pytest.mark.slow), "eight experts"])
def test_types_that_need_an_importance_matrix_compute_it_from_text(
    tmp_path: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    require_gguf()
    save, sizes = MODELS[label]
    model = save(tmp_path / "model", **sizes)
    text, out = write_text(tmp_path / "text.txt"), tmp_path / "out.gguf"
    for kind in ("iq3_xxs", "iq2_xxs"):
        asked = ["export", str(model), "--output", str(out), "--format", kind, "--overwrite", "--json"]
        assert run(asked) == 2
        assert "give text with --data" in capsys.readouterr().err
        assert run([*asked, "--data", str(text), "--samples", "4", "--sequence-length", "32"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert results["types"][kind] > 3
        assert results["weight_bytes"] == counted(model, kind)


def test_without_a_file_the_bytes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a config.json alone: 8.5 bits for each number of a matrix, 32 for each of a norm."""
    model = save_llama(tmp_path / "model", hidden_size=64, head_dim=32, intermediate_size=96)
    (model / "model.safetensors").unlink()
    assert run(["export", str(model), "--format", "q8_0", "--json"]) == 0
    matrices = 2 * 300 * 64 + 4 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 96)
    expected = matrices * 34 // 32 + 4 * 9 * 64
    assert json.loads(capsys.readouterr().out)["results"] == {"weight_bytes": expected}


def test_a_family_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    keys = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = save_family(tmp_path / "model", "olmo3", **keys, intermediate_size=48, vocab_size=300)
    with pytest.raises(MinitronError, match="not known before it is written"):
        counted(model, "q8_0")
