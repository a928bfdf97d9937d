"""Tokens of a step where none are asked for."""

import pytest

from distill.batch import SHORT
from distill.recipe import Recipe


@pytest.mark.parametrize(
    ("given", "processes", "wanted"),
    [
        ({"tokens": SHORT}, 1, 1024),
        ({"tokens": SHORT + 4096}, 1, 4096),
        ({"steps": 1024}, 1, 1024),
        ({"steps": 1025}, 1, 4096),
        ({"tokens": 2**16, "sequence_length": 4096}, 1, 4096),
        ({"tokens": 2**16, "sequence_length": 300}, 1, 900),
        ({"tokens": SHORT}, 2, 1024),
        ({"tokens": SHORT}, 3, 3 * 512),
        ({"tokens": SHORT}, 8, 8 * 512),
        ({"tokens": 2 * SHORT, "sequence_length": 1024}, 8, 8 * 1024),
        ({"tokens": SHORT, "batch_tokens": 2048}, 3, 2048),
    ],
)
def test_whole_sequences_for_every_process(
    given: dict[str, int], processes: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    assert Recipe(**given).batch_tokens == wanted  # type: ignore[arg-type]


def test_a_number_of_processes_that_torchrun_did_not_set_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert Recipe(tokens=SHORT).batch_tokens == 1024
