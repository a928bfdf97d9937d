"""Fixtures shared by all tests: tiny checkpoints and a short text, made once a session; treat them as read-only."""

import os

# Before torch is imported: two threads on a busy machine spin against each other, and no test may reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What torch.compile makes is made by this thread: a pool of its own would not survive the forks of tests/forks.py.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from pathlib import Path

import pytest
import tiny_models


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
