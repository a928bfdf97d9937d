"""Fixtures shared by the tests of the chain, made once a session; treat them as read-only."""

from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of layer, and a second one of Mamba: what is searched and measured grows with the number of layers,
    and what the chain does with them does not."""
    return tiny_models.save_hybrid(tmp_path_factory.mktemp("short_hybrid") / "model", pattern="ME*-M")
