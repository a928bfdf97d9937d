"""Every family that is exported says in llama.cpp what it says in transformers; others are refused with a reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_sizes import FAMILY_SIZES
from tiny_models import save_family

from minitron.errors import MinitronError
from minitron.gguf.export import export
from minitron.memory.gguf_families import RUN, SEEN, require_exportable
from minitron.model.families import FAMILIES
from minitron.model.loading import load_model, load_tokenizer
from minitron.model.spec import read_spec

TOKENS = 12
PROMPT = [5, 17, 42, 200, 9]
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    **dict.fromkeys(("llama", "qwen3", "olmo2", "seed_oss", "apertus"), (0, {})),
    **dict.fromkeys(("lfm2", "lfm2_moe", "falcon_h1", "mamba2", "mixtral"), (0, {})),
    **dict.fromkeys(("mistral", "exaone4", "granite", "arcee", "granitemoe", "nemotron_h"), (1, {})),
    "olmo3": (0, {}),
    "granitemoeshared": (1, {"head_dim": 8}),
    "qwen3_moe": (0, {"mlp_only_layers": []}),
}
"""Family -> which of its tiny configs, and what is changed of it."""


@pytest.mark.parametrize("name", sorted(RUN))
def test_what_is_exported_says_the_same(tmp_path: Path, name: str) -> None:
    pytest.importorskip("conversion", reason="needs the extra gguf")
    pytest.importorskip("xllamacpp", reason="needs the extra gguf")
    from benchmarks.llama_cpp_runs import distribution, opened

    number, changes = RUNS[name]
    folder = save_family(tmp_path / "model", name, **FAMILY_SIZES[name][number] | changes)
    export(folder, tmp_path / "out.gguf", "f32")
    model, server, ids = load_model(folder, dtype=torch.float32), opened(tmp_path / "out.gguf"), list(PROMPT)
    (printable,) = load_tokenizer(folder)("a")["input_ids"]
    for _ in range(TOKENS):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
        found = np.array(distribution(server, ids, len(expected), printable))
        # The KV cache is in fp16.
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert found.argmax() == expected.argmax()
        ids.append(int(expected.argmax()))


def test_every_family_is_run_or_refused_with_a_reason() -> None:
    families = {family.name for family in FAMILIES.values()}
    assert set(RUN) <= families and set(SEEN) <= families
    assert not set(RUN) & set(SEEN)
    assert sorted(RUN) == sorted(RUNS)


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [
        ("mistral", 0, "with a sliding window"),
        ("olmo3", 1, "heads that are together not as wide"),
        ("arcee", 0, "biases in its linears"),
        ("smollm3", 1, "something else than transformers"),
        ("zamba2", 0, "the converter does not know it"),
        ("mamba2", 1, "an output layer that shares the embedding"),
        ("qwen3_moe", 1, "layers without experts beside those with"),
    ],
)
def test_what_was_not_seen_to_agree_is_refused(tmp_path: Path, name: str, number: int, told: str) -> None:
    spec = read_spec(save_family(tmp_path / "model", name, **FAMILY_SIZES[name][number]))
    with pytest.raises(MinitronError, match=told):
        require_exportable(spec)
