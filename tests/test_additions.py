"""One of each kind is added in one place, before the command line is imported, and used through the command line.

A toy is a few lines for a process of its own, which imports our packages anew: what else knew the names of a table
would refuse it."""

import json
import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import forks
import numpy as np
import pytest
import tiny_models
import torch
from slow_importance import loaded, record
from transformers import AutoTokenizer

from minitron.cut.scores import load_scores
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model

Minitron = Callable[..., forks.Fork]
Document = Callable[..., dict[str, Any]]
CONFIG = Path(__file__).parent / "reference" / "models" / "Llama-3.1-8B.json"

TOYS: Final[dict[str, str]] = {
    "estimator": """
        from importance.score.estimators import ESTIMATORS, Estimator, Statistic

        def absolute(activations):
            import torch
            return activations.abs().sum((0, 1), dtype=torch.float64)

        ESTIMATORS["toy"] = Estimator(
            {"absolute": Statistic(absolute, None)},
            lambda evidence: 3 * evidence.sums["absolute"],
            summary="thrice what it adds up to",
            source="nobody",
        )
    """,
    "loss": """
        from distill.losses.divergences import DIVERGENCES, Divergence, forward_kl

        def toy(log_q, log_p, factor):
            losses, slopes = forward_kl(log_q, log_p)
            return losses * factor, slopes * factor

        DIVERGENCES["toy"] = Divergence(
            "F KL(p ∥ q)", "nobody", terms=toy, parameter=2, letter="F", highest=10
        )
    """,
    "gpu": """
        from minitron.memory.gpus import GPUS, Gpu

        GPUS["Toy"] = Gpu("Toy", usable_GiB=1, bandwidth=100, capability=(8, 0), source="nobody")
    """,
    "format": """
        from minitron.memory.formats import FORMATS, Format

        FORMATS["toy"] = Format(
            "toy", bits=6, group=32, group_bytes=1, row_bytes=4, uses=("weights", "kv"), native=(99, 0),
            config_names=("toy_quant",), origin="estimated", note="six bits", source="nobody",
        )
    """,
    "family": """
        from minitron.model.families import FAMILIES
        from minitron.model.families.decoders import attention, gated_mlp, pre_norm, rotary_decoder

        FAMILIES["cwm"] = rotary_decoder(
            "cwm",
            layer=pre_norm(attention(), gated_mlp()),
            summary="attention and a gated MLP",
        )
    """,
}
"""kind -> the lines that add a toy of it; of a family one that transformers knows and Minitron does not."""


@pytest.fixture
def minitron(tmp_path: Path) -> Minitron:
    """Runs a command line in a process that knows a toy."""

    def with_toy(kind: str, *arguments: object) -> forks.Fork:
        def typed() -> int:
            forks.forget()
            exec(textwrap.dedent(TOYS[kind]), {})
            from cli.app import run

            return run([str(one) for one in arguments])

        done = forks.fork(typed, tmp_path / "said")
        done.wait()
        return done

    return with_toy


@pytest.fixture
def document(minitron: Minitron) -> Document:
    """Runs one and returns its JSON."""
    return partial(document_of, minitron)


def document_of(minitron: Minitron, kind: str, *arguments: object) -> dict[str, Any]:
    done = minitron(kind, *arguments, "--json")
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "command", "option", "listed"),
    [
        ("estimator", "score", "--estimator", "toy: thrice what it adds up to"),
        ("estimator", "compress", "--estimator", "toy: thrice what it adds up to"),
        ("loss", "distill", "--loss", "sampled:12, toy:2."),
        ("format", "plan", "--weights", ", toy (quantised"),
        ("format", "compare", "--kv", ", toy; default:"),
    ],
)
def test_help_lists_it(minitron: Minitron, kind: str, command: str, option: str, listed: str) -> None:
    done = minitron(kind, command, "--help-all")
    assert done.code == 0, done.stderr
    assert listed in " ".join(done.stdout.split())
    assert option in done.stdout


def test_an_estimator(
    minitron: Minitron, document: Document, tiny_llama: Path, short_text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.safetensors"
    line = ["score", tiny_llama, "--data", short_text, "-o", output, "--samples", 3, "--sequence-length", 32]
    line += ["--layer-scores", "none", "--device", "cpu", "--dtype", "fp32", "--estimator"]
    assert document("estimator", *line, "toy")["settings"]["estimator"] == "toy"
    found = load_scores(output)
    blocks = token_blocks(AutoTokenizer.from_pretrained(tiny_llama), short_text, sequence_length=32, samples=3)
    model, _ = loaded(tiny_llama)
    for layer in range(4):
        mlp, attention = (f"model.layers.{layer}.{part}" for part in ("mlp.down_proj", "self_attn.o_proj"))
        seen = record(model, blocks, mlp, attention)
        absolute = np.abs(seen[mlp][0]).sum((0, 1))
        np.testing.assert_allclose(found.importance["ffn", layer], 3 * absolute, rtol=1e-4)
        heads = 3 * np.abs(seen[attention][0]).sum((0, 1)).reshape(4, 12)
        np.testing.assert_allclose(found.importance["query_head", layer], np.sqrt((heads**2).sum(1)), rtol=1e-4)
    refused = minitron("estimator", *line, "toys", "--overwrite")
    assert refused.code == 2
    assert "there is no estimator 'toys'; use one of best, " in refused.stderr and "random, toy." in refused.stderr


def test_a_loss(minitron: Minitron, tiny_llama: Path, short_text: Path, tmp_path: Path) -> None:
    student = tiny_models.save_llama(tmp_path / "student", seed=1, num_hidden_layers=2)
    line = ["distill", student, "--teacher", tiny_llama, "--data", short_text, "--steps", 1, "--sequence-length", 16]
    line += ["--batch-tokens", 64, "--validation-sequences", 2, "--dtype", "fp32", "--device", "cpu"]

    def loss(name: str) -> float:
        done = minitron("loss", *line, "-o", tmp_path / name.replace(":", "-"), "--loss", name)
        assert done.code == 0, done.stderr
        found = re.search(r"64 of 64 tokens, .*, loss ([0-9.]+);", done.stderr)
        assert found is not None, done.stderr
        return float(found[1])

    plain = loss("forward_kl")
    assert plain > 0.1
    # The bar shows four places.
    assert loss("toy") == pytest.approx(2 * plain, abs=2e-4)
    assert loss("toy:3.5") == pytest.approx(3.5 * plain, abs=3e-4)
    refused = minitron("loss", *line, "-o", tmp_path / "x", "--loss", "toys")
    assert refused.code == 2
    assert "there is no loss 'toys'; choose one of forward_kl, " in refused.stderr and "sampled, toy." in refused.stderr


def test_a_gpu(minitron: Minitron, document: Document, tiny_llama: Path) -> None:
    found = document("gpu", "plan", tiny_llama, "--gpu", "toy", "--context", 64, "--utilization", 0.75)
    assert found["gpu"]["name"] == "Toy"
    assert found["gpu"]["bandwidth_GB_per_s"] == 100
    assert found["budget"]["usable_bytes"] == 2**30
    assert found["budget"]["available_bytes"] == 3 * 2**28
    # It is the smallest of the table, and a tiny model asks for no more.
    assert document("gpu", "plan", tiny_llama, "--solve", "gpu", "--context", 64)["value"] == "Toy"
    refused = minitron("gpu", "plan", tiny_llama, "--gpu", "Toyy", "--context", 64)
    assert refused.code == 2
    assert "no GPU is called 'Toyy'; did you mean Toy," in refused.stderr


def test_a_format(document: Document) -> None:
    found = document("format", "plan", CONFIG, "--gpu", "A10G", "--context", "1k", "--weights", "toy", "--kv", "toy")
    # Rows x columns of q, k, v, o, gate, up and down: 6 bits a number, a byte for 32 of a row and 4 bytes a row.
    matrices = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)]
    layer = sum(rows * (columns * 6 // 8 + columns // 32 + 4) for rows, columns in matrices)
    rest = 2 * (2 * 128_256 * 4096 + (2 * 32 + 1) * 4096)
    lines = found["parent"]["lines_bytes"]
    assert lines["weights"] == 32 * layer + rest
    # Keys and values have the scales of their groups: 6 + 8 / 32 bits.
    assert lines["kv_cache"] == 32 * 1024 * (2 * 8 * 128 * 25 // 32)
    assert any("A10G has no native TOY (compute capability 8.6, 99.0 is needed)" in text for text in told(found))


def test_a_family(minitron: Minitron, document: Document, short_text: Path, tmp_path: Path) -> None:
    sizes = {key: value for key, value in tiny_models.LLAMA_SIZES.items() if key != "head_dim"}
    model = tiny_models.save_family(tmp_path / "model", "cwm", **sizes)
    line = ["prune", model, "--data", short_text, "--samples", 3, "--sequence-length", 32, "--dtype", "fp32"]
    line += ["--set", "hidden_size=24", "--set", "intermediate_size=40", "--set", "num_hidden_layers=3"]
    found = document("family", *line, "-o", tmp_path / "small")["results"]
    assert found["layers"] == "***"
    small = load_model(tmp_path / "small", dtype=torch.float32)
    assert found["parameters"] == small.num_parameters()
    up = small.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert tuple(up.shape) == (40, 24)
    refused = minitron("estimator", *line, "-o", tmp_path / "other")
    assert refused.code == 2
    assert "model_type is 'cwm', which Minitron does not support" in refused.stderr


def told(value: Any) -> list[str]:
    """Every text in a JSON document."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in told(part)]
