"""Keys that a config leaves out or that its class ignores, on published models: counts made with transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.app import run
from minitron.errors import MinitronError
from minitron.model.spec import spec_of

REFERENCE = Path(__file__).parents[1] / "reference"
FACTS = json.loads((REFERENCE / "families_facts.json").read_text())
MISTRAL_7B = FACTS["Mistral-7B-v0.1"]["config"] | {"model_type": "mistral"}
NANO_30B = json.loads((REFERENCE / "models/Nemotron-3-Nano-30B-A3B.json").read_text())["config"]


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (without(MISTRAL_7B, "num_key_value_heads"), 7_241_732_096),
        (without(MISTRAL_7B, "tie_word_embeddings"), 7_241_732_096),
        (MISTRAL_7B | {"attention_bias": True, "mlp_bias": True}, 7_241_732_096),
        (without(NANO_30B, "num_key_value_heads"), 31_577_940_288 + 6 * 2 * (8 - 2) * 128 * 2688),
        (without(NANO_30B, "use_conv_bias"), 31_577_940_288),
        (NANO_30B | {"mlp_bias": True}, 31_578_087_488),
    ],
    ids=["mistral heads", "mistral tie", "mistral has no biases", "nemotron_h heads", "nemotron_h taps", "mlp_bias"],
)
def test_parameters(config: dict[str, Any], parameters: int) -> None:
    assert spec_of(config).parameters().total == parameters


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_size"])
def test_what_a_llama_cannot_do_without_is_named(key: str) -> None:
    llama = FACTS["Llama-3.2-1B"]["config"] | {"model_type": "llama"}
    for config in (without(llama, key), llama | {key: None}):
        with pytest.raises(MinitronError, match=key):
            spec_of(config).parameters()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mtp_hybrid_override_pattern": "*E|", "num_nextn_predict_layers": 1}, "mtp_hybrid_override_pattern"),
        ({"mtp_layers_block_type": ["attention", "rwkv"], "num_nextn_predict_layers": 1}, "mtp_layers_block_type"),
        ({"hybrid_override_pattern": "MEM*|"}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": 7}, "hybrid_override_pattern"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok"),
        ({"num_experts_per_tok": "six"}, "num_experts_per_tok"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_a_value_that_is_none_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(MinitronError, match=named):
        spec_of(NANO_30B | change).parameters()


@pytest.mark.parametrize("value", [None, "swoosh"])
@pytest.mark.parametrize("offload", [False, True], ids=["in memory", "layer by layer"])
def test_an_activation_that_is_none_is_named(
    tiny_llama: Path,
    short_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    value: str | None,
    offload: bool,
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"hidden_act": value}))
    asked = ["--data", str(short_text), "--samples", "2", "--sequence-length", "16", "-o", str(tmp_path / "scores")]
    assert run(["score", str(tmp_path / "model"), *asked, *(["--offload"] if offload else [])]) == 2
    told = capsys.readouterr().err
    assert ("swoosh" if value else "hidden_act") in told and "correct the config.json" in told
