"""Rollouts of two forced turns, their reward and what is counted of them; no trainer is needed."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from judge_school import BRANCH, END, RANKING, Actor, save_instructions, save_judge, save_pairs

from judge.benchmark import read_benchmark
from judge.contests import first_turn, material, second_turn
from judge.generating import Drawn, Ids
from judge.instructions import read_instructions
from judge.learning import Curve, Learning, leave_one_out, scores, shares
from judge.local import LocalModel
from judge.parsing import parse_branch
from judge.reward import Rewards, reward_of
from judge.rollouts import Roller, Rollout, Row, in_both_orders
from judge.speaking import Speaking
from minitron.errors import MinitronError
from minitron.measure.rendering import Renderer


@pytest.fixture(scope="module")
def school(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalModel, list[Row], Path]:
    folder = tmp_path_factory.mktemp("school")
    judge = save_judge(tiny_llama, folder / "judge")
    rows = list(in_both_orders(read_benchmark(save_pairs(folder / "pairs.jsonl")).contests))
    return LocalModel(judge, Speaking(), "fp32", "cpu"), rows, save_instructions(folder / "instructions.toml")


def test_a_rollout_is_the_conversation_that_judging_has_and_only_what_was_said_counts(
    school: tuple[LocalModel, list[Row], Path],
) -> None:
    judge, rows, file = school
    instructions, actor = read_instructions(file), Actor(judge.folder)
    with Renderer(judge.tokenizer) as renderer:
        found = Roller(judge, instructions, renderer).roll(rows[:2], lambda prompts: actor(None, prompts, 0))
    assert [row.better for row in rows[:2]] == [1, 2]
    for row, rollout in zip(rows, found, strict=False):
        given = material(row.contest, row.order, judge.specials)
        asked = first_turn(given, instructions)
        again = second_turn(asked, BRANCH, parse_branch(BRANCH, instructions.names), given, instructions)
        said = RANKING.format(rollout.ruled)
        whole = judge.tokenizer.apply_chat_template(
            [*again, {"role": "assistant", "content": said}], tokenize=False, add_generation_prompt=False
        )
        assert judge.tokenizer.decode([*rollout.prompt, *rollout.completion]) == whole
        own = [one for one, mine in zip(rollout.completion, rollout.mask, strict=True) if mine]
        assert judge.tokenizer.decode(own) == f"{BRANCH}</s>{said}</s>"
        assert rollout.tokens == len(own) and rollout.turns == (BRANCH, said) and not rollout.broken


@pytest.mark.parametrize("end", [END, None, 1])
def test_a_turn_that_is_cut_off_or_ends_otherwise_is_closed_by_the_template(
    school: tuple[LocalModel, list[Row], Path], end: int | None
) -> None:
    judge, rows, file = school
    actor = Actor(judge.folder)

    def say(prompts: Sequence[Ids]) -> list[Drawn]:
        return [(ids, end) for ids, _ in actor(None, prompts, 0)]

    with Renderer(judge.tokenizer) as renderer:
        rollout = Roller(judge, read_instructions(file), renderer).roll(rows[:1], say)[0]
    first = len(actor.ids(BRANCH)) + (end is not None)
    assert rollout.mask[:first] == (1,) * first and rollout.mask[first] == 0
    # One behind what was said first, whoever wrote it, one behind what was asked, and what the judge ends with.
    assert rollout.completion[len(actor.ids(BRANCH)) :].count(END) == 2 + (end == END)
    assert rollout.ruled is not None


def test_a_broken_first_turn_asks_no_second_and_one_turn_asks_one(school: tuple[LocalModel, list[Row], Path]) -> None:
    judge, rows, file = school
    instructions, actor = read_instructions(file), Actor(judge.folder)

    def stammering(prompts: Sequence[Ids]) -> list[Drawn]:
        found = actor(None, prompts, 0)
        return [(actor.ids("[FOCUS] wit"), END), *found[1:]] if len(actor.calls) == 1 else found

    with Renderer(judge.tokenizer) as renderer:
        found = Roller(judge, instructions, renderer).roll(rows[:3], stammering)
        assert actor.calls == [3, 2]
        assert found[0].ruled is None and found[0].broken.startswith("turn 1: ") and len(found[0].turns) == 1
        assert set(found[0].mask) == {1} and all(one.ruled for one in found[1:])
        once = Roller(judge, instructions, renderer, "one").roll(rows[:2], lambda prompts: actor(None, prompts, 0))
    assert actor.calls == [3, 2, 2]
    assert all(set(one.mask) == {1} and len(one.turns) == 1 and one.ruled for one in once)


def test_the_reward_of_a_judge_that_reads_once_looks_at_its_only_turn() -> None:
    assert [reward_of(None, RANKING.format(n), 1, ()) for n in (1, 2)] == [0.0, -1.0]
    assert reward_of(None, "1", 1, (), Rewards(1, 0, -3)) == -3


@pytest.mark.parametrize("group", [2, 3, 8])
def test_leave_one_out_is_the_mean_of_the_others(group: int) -> None:
    dice = torch.Generator().manual_seed(group)
    rewards = torch.randint(-100, 1, (5, group), generator=dice, dtype=torch.float64)
    for row in rewards:
        expected = [row[i] - sum(row[j] for j in range(group) if j != i) / (group - 1) for i in range(group)]
        scaled = leave_one_out(group) * row
        torch.testing.assert_close(scaled - scaled.mean(), torch.stack(expected))


def test_scores_count_both_orders_and_broken_ones_as_wrong(school: tuple[LocalModel, list[Row], Path]) -> None:
    rows = school[1]
    ruled = [1, 2, 1, 1, None, 2]  # of rows whose better answers are 1, 2, 1, 2, 1, 2
    rollouts = [Rollout((1,), (2,), (1,), ("",), one) for one in ruled]
    found = scores(rows, rollouts)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["right_in_both_orders"]["value"] == pytest.approx(1 / 3)
    assert (found["pairs"], found["broken"], found["took_the_first"]) == (3, 1 / 6, 3 / 5)
    assert shares(rows, rollouts) == {"right": 4 / 6, "wrong": 1 / 6, "broken": 1 / 6}


def test_a_curve_goes_on_behind_a_step_and_forgets_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    lines = [json.dumps({"step": step, "generated_tokens": 10 * step}) for step in range(4)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "gene')
    curve = Curve(path)
    curve.begin(2)
    assert [line["step"] for line in curve.lines] == [0, 1, 2] and curve.tokens == 20
    curve.add({"step": 3, "generated_tokens": 31, "held_out": {}})
    assert path.read_text().splitlines()[:3] == lines[:3] and len(curve.tried) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"group": 1}, "group is 1"),
        ({"turns": "three"}, "no turns 'three'"),
        ({"learning_rate": 0.0}, "learning rate is 0.0"),
        ({"kl": -1.0}, "kl is -1.0"),
        ({"prompts": 3, "batch_size": 16}, "no multiple"),
        ({"max_seconds": 0.0}, "the time is 0.0"),
    ],
)
def test_what_cannot_be_learned_with_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(MinitronError, match=said):
        Learning(**wrong)  # type: ignore[arg-type]


def test_steps_are_one_pass_unless_they_are_given() -> None:
    assert Learning(prompts=4).steps_of(11) == 2 and Learning(prompts=4, steps=7).steps_of(11) == 7
    with pytest.raises(MinitronError, match="fewer --prompts"):
        Learning(prompts=4).steps_of(3)


def test_rewards_are_in_order() -> None:
    for right, wrong, broken in itertools.permutations((0.0, -1.0, -100.0)):
        if (right, wrong, broken) != (0.0, -1.0, -100.0):
            with pytest.raises(MinitronError, match="rewards are"):
                Rewards(right, wrong, broken)
