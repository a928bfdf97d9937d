"""What parts of scoring take."""

from pathlib import Path

import pytest
from slow_importance import blocks_of, loaded, quick

from importance.score import clock
from importance.score.clock import PARTS, Clock


def test_the_time_of_an_inner_part_is_not_that_of_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    found = Clock()
    now[0] = 5.0
    with found.part("outer"):
        now[0] = 6.0
        with found.part("inner"):
            now[0] = 8.0
        with pytest.raises(ValueError, match="failed"), found.part("inner"):
            now[0] = 12.0
            raise ValueError("failed")
        now[0] = 12.5
    now[0] = 100.0
    with found.part("last"):
        now[0] = 101.0
    assert found.seconds == {"outer": 1.5, "inner": 6.0, "last": 1.0}


@pytest.mark.parametrize(
    ("options", "absent"),
    [({"refit": False}, {"second moments", "surgeon and ridges", "layers"}), ({"layers": "iterative"}, set())],
)
def test_what_is_not_asked_for_takes_no_time(tiny_hybrid: Path, options: dict[str, object], absent: set[str]) -> None:
    model, spec = loaded(tiny_hybrid)
    seconds = quick(model, spec, blocks_of(2), **options).settings[PARTS]
    every = {clock.PASS, clock.CHANNELS, clock.MOMENTS, clock.COVARIANCE, clock.STATES, clock.BASES, clock.REMOVAL}
    assert set(seconds) == (every | {clock.LAYERS}) - absent
