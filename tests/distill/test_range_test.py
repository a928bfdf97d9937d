"""The range test of the learning rate: what it tries, what it takes, and that a run goes on from it bit for bit."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from distilling import RECIPE, Killed, require_equal, weights

from distill.recipe import Recipe
from distill.run import range_test
from distill.run.distillation import Distillation
from distill.run.range_test import HIGHEST, LOWEST, MOST_TRIALS, RangeTest, Trial, trial_steps
from distill.run.recipe_file import read_recipe
from distill.run.result import DistillResult
from distill.run.train import distill
from minitron.errors import MinitronError
from minitron.progress import Advance

AUTO = replace(RECIPE, learning_rate="auto")


def run_trials(loss: Callable[[float], float | None]) -> RangeTest:
    test = RangeTest(4, ())
    while (rate := test.next_rate) is not None:
        assert LOWEST <= rate <= HIGHEST and rate not in {trial.learning_rate for trial in test.trials}
        test = replace(test, trials=(*test.trials, Trial(rate, loss(rate))))
        assert len(test.trials) <= MOST_TRIALS
    return test


@pytest.mark.parametrize("best", [3e-5, 1e-4, 2.3e-4, 4e-4, 1e-3, 3.1e-3, 2e-2])
def test_the_vertex_of_a_parabola_is_found(best: float) -> None:
    found = run_trials(lambda rate: 0.1 + 0.01 * math.log(rate / best) ** 2)
    assert found.found == pytest.approx(best, rel=0.05)
    # Three rates about the best, two between them, and one more for every factor of 4 from the first.
    assert len(found.trials) <= 5 + math.ceil(abs(math.log(best / 4e-4, 4)) - 0.5)


def test_rates_with_a_loss_that_is_not_finite_are_left_out() -> None:
    found = run_trials(lambda rate: None if rate > 1e-3 else -rate)
    assert found.found == 8e-4
    with pytest.raises(MinitronError, match="not finite at any learning rate"):
        _ = run_trials(lambda rate: None).found


def test_what_never_turns_ends_at_the_bounds() -> None:
    assert len(run_trials(lambda rate: rate).trials) <= MOST_TRIALS
    assert len(run_trials(lambda rate: -rate).trials) <= MOST_TRIALS


def test_trials_are_a_share_of_the_run() -> None:
    lengths = [trial_steps(Recipe(steps=steps)) for steps in (1, 4, 40, 1000, 10**6)]
    assert lengths == [1, 4, 8, 20, 100]


@pytest.fixture(scope="module")
def found(
    student: Path, tiny_hybrid: Path, short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DistillResult, list[str]]:
    """A run whose learning rate is found, in trials of two steps, and what it told."""
    notes, folder = list[str](), tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_test, "FEWEST_STEPS", 2)
        asked = Distillation(student, tiny_hybrid, short_text, folder / "out")
        return distill(asked, AUTO, note=notes.append), notes


def test_a_run_is_that_of_the_rate_which_was_found(
    found: tuple[DistillResult, list[str]], student: Path, tiny_hybrid: Path, short_text: Path, tmp_path: Path
) -> None:
    result, notes = found
    assert result.range_test is not None
    test = RangeTest.of(result.range_test)
    assert test.steps == 2 and test.next_rate is None and test.found == result.recipe.learning_rate
    card = (result.output / "README.md").read_text()
    (told,) = (note for note in notes if "range test" in note)
    share = f"{2 * len(test.trials) / 8:.1%}"
    assert told in card and f"Learning rate {test.found:g}" in told and share in told
    assert f"learning rate: {result.recipe.learning_rate}" in card
    assert json.loads(json.dumps(result.to_json()))["range_test"] == result.range_test
    plain = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    require_equal(distill(plain, replace(RECIPE, learning_rate=test.found)), result)


def test_a_range_test_that_was_killed_goes_on_with_the_next_trial(
    found: tuple[DistillResult, list[str]],
    student: Path,
    tiny_hybrid: Path,
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(range_test, "FEWEST_STEPS", 2)
    done = list[str]()

    @contextmanager
    def progress(description: str, total: float, unit: str) -> Iterator[Advance]:
        def advance(amount: float, note: str = "") -> None:
            if description == "finding the learning rate":
                done.append(note)
                if len(done) == 3:
                    raise Killed

        yield advance

    asked = Distillation(student, tiny_hybrid, short_text, tmp_path / "out")
    with pytest.raises(Killed):
        distill(asked, AUTO, progress=progress)
    again = distill(asked, AUTO, progress=progress)
    require_equal(again, found[0])
    assert again.range_test == found[0].range_test
    assert len(set(done)) == len(done) == len(RangeTest.of(again.range_test or {}).trials)
    assert weights(again.output).keys() == weights(student).keys()


def test_a_recipe_file_may_leave_the_rate_to_be_found(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('learning_rate = "auto"\n[[stages]]\nsteps = 3\n[[stages]]\nsteps = 4\n')
    assert [stage.recipe.learning_rate for stage in read_recipe(tmp_path / "recipe.toml")] == ["auto", "auto"]
    (tmp_path / "other.toml").write_text('learning_rate = "car"\n[[stages]]\nsteps = 3\n')
    with pytest.raises(MinitronError, match="learning_rate is 'car'"):
        read_recipe(tmp_path / "other.toml")
    with pytest.raises(MinitronError, match="drop the minimum learning rate"):
        Recipe(steps=3, learning_rate="auto", minimum_learning_rate=1e-5)
