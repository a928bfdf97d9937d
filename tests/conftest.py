"""Fixtures shared by all tests: tiny checkpoints and a short text, made once a session; treat them as read-only."""

import os

# Before torch is imported: two threads on a busy machine spin against each other, and no test may reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What torch.compile makes is made by this thread: a pool of its own would not survive the forks of tests/forks.py.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import gc
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny_models

from cli import invocation, show
from cli.app import COMMANDS
from cli.schemas import PLAN, SCHEMAS, schema


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def what_is_printed_obeys_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command prints with --json in any test is held against the schema of that command; the document of a
    plan, which is long, in tests of its own."""
    printed = show.document
    invocation.remember([])  # that of the test before is none of this one's

    def checked(value: Any) -> None:
        printed(value)
        typed = invocation._typed
        command = next((word for word in typed if word in COMMANDS), "")
        if command == PLAN and any(word.startswith("--solve") for word in typed):
            command = "solve"
        if command in SCHEMAS:
            jsonschema.validate(json.loads(json.dumps(value, default=show._plain)), schema(command))

    monkeypatch.setattr(show, "document", checked)


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 5 KB of plain sentences."""
    return tiny_models.write_text(tmp_path_factory.mktemp("text") / "short.txt")


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NemotronH `MEM*-ME*`: 2 KV groups, 2 B/C groups, 6 experts (2 a token), a shared expert."""
    return tiny_models.save_hybrid(tmp_path_factory.mktemp("hybrid") / "model")


@pytest.fixture(scope="session")
def tiny_hybrid_latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with routed experts in a latent space of 16."""
    return tiny_models.save_hybrid(tmp_path_factory.mktemp("latent") / "model", moe_latent_size=16)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers with an output layer of its own."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def tiny_llama_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers whose output layer is its embedding."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("llama_tied") / "model", tied=True)
