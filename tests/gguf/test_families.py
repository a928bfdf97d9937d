"""Every family that is exported says in llama.cpp what it says in transformers; others are refused with a reason."""

from pathlib import Path
from typing import Any

import pytest
from family_sizes import FAMILY_SIZES
from gguf_runs import agrees
from tiny_models import save_family

from minitron.errors import MinitronError
from minitron.gguf.export import export
from minitron.memory.gguf_families import RUN, SEEN, require_exportable
from minitron.model.families import FAMILIES
from minitron.model.spec import read_spec

TOKENS = 12
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
    number, changes = RUNS[name]
    folder = save_family(tmp_path / "model", name, **FAMILY_SIZES[name][number] | changes)
    export(folder, tmp_path / "out.gguf", "f32")
    agrees(folder, tmp_path / "out.gguf", TOKENS)


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
