"""How a judge is trained, and what is seen of it as it learns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from judge.results import share_of
from judge.reward import Rewards
from judge.rollouts import Rollout, Row, Turns
from minitron.errors import MinitronError, require_known, require_least
from minitron.files import write_text

PATIENCE: Final = 3
"""Steps in a row of which no rollout keeps to the format, after which there is nothing to learn from."""


@dataclass(frozen=True)
class Learning:
    """Group relative policy optimisation of a judge; the defaults are those of BR-RM's paper (arXiv 2510.23596), of its
    clipping and of TRL."""

    turns: Turns = "two"

    steps: int | None = None
    """Each draws rollouts and learns from them; None reads all pairs once, in both orders."""

    prompts: int = 16
    """Of a step: pairs, each in one order."""

    group: int = 8
    """Rollouts of a prompt, which are compared with each other."""

    updates: int = 1
    """Of the weights, in a step. The clips bind from the second one on."""

    learning_rate: float = 1e-6

    warmup: int = 10
    """Steps in which the learning rate rises to it."""

    kl: float = 0.01
    """Weight of the divergence from the judge as it was."""

    clip_low: float = 0.2
    """How far below 1 the ratio of probabilities counts."""

    clip_high: float = 0.28
    """How far above 1."""

    temperature: float = 1.0
    """Of what is drawn."""

    max_tokens: int = 1024
    """Of a turn, at most."""

    rewards: Rewards = field(default_factory=Rewards)

    seed: int = 0

    batch_size: int = 8
    """Rollouts in one pass of training."""

    generation_batch_size: int = 64
    """Rollouts that are drawn together, at most."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""

    checkpoint_every: int = 50
    """Steps."""

    evaluate_every: int = 50
    """Steps, where there are held-out pairs."""

    max_seconds: float | None = None
    """Stop after the step in which so much time is over, and write the judge as it is; None is no limit."""

    def __post_init__(self) -> None:
        require_known(self, {"turns": get_args(Turns)})
        least = {
            "steps": 1,
            "prompts": 1,
            "group": 2,
            "updates": 1,
            "max_tokens": 1,
            "seed": 0,
            "batch_size": 1,
            "warmup": 0,
        }
        require_least(self, least | {"generation_batch_size": 1, "checkpoint_every": 1, "evaluate_every": 1})
        for name in ("learning_rate", "clip_low", "clip_high", "temperature"):
            if not getattr(self, name) > 0:
                raise MinitronError(f"{name.replace('_', ' ')} is {getattr(self, name)}; give more than 0.")
        if not self.kl >= 0 or not self.clip_low < 1:
            raise MinitronError(f"kl is {self.kl} and clip low {self.clip_low}; give 0 or more, and less than 1.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise MinitronError(f"the time is {self.max_seconds} s; give more than 0.")
        if self.rollouts % (self.batch_size * self.updates):
            raise MinitronError(
                f"{self.prompts} prompts of {self.group} rollouts are {self.rollouts}, which is no multiple of "
                f"{self.updates} updates of batches of {self.batch_size}; choose another batch size."
            )

    @property
    def rollouts(self) -> int:
        """Of a step."""
        return self.prompts * self.group

    def steps_of(self, rows: int) -> int:
        """Steps, where there are so many prompts; raises MinitronError where they are not enough for one."""
        if rows < self.prompts:
            raise MinitronError(
                f"the pairs give {rows} prompts in both orders, and a step takes {self.prompts}; give more pairs or "
                "fewer --prompts."
            )
        return self.steps or rows // self.prompts


def leave_one_out(group: int) -> float:
    """What rewards are multiplied with, so that a reward less the mean of its group is its advantage over the others.

    r_i - sum of the others / (G - 1) = G / (G - 1) * (r_i - mean of all), exactly (Ahmadian et al., arXiv
    2402.14740)."""
    return group / (group - 1)


def scores(rows: Sequence[Row], rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """How good a judge is on pairs of which each comes in both orders, one after the other; broken ones are wrong."""
    right = [rollout.ruled == row.better for row, rollout in zip(rows, rollouts, strict=True)]
    both = [int(one) + int(other) for one, other in zip(right[::2], right[1::2], strict=True)]
    counts = [both.count(number) for number in range(3)]
    ruled = [rollout.ruled for rollout in rollouts if rollout.ruled is not None]
    return {
        "pairs": len(both),
        "accuracy": share_of(counts, [0.0, 0.5, 1.0]).to_json(),
        "right_in_both_orders": share_of(counts, [0.0, 0.0, 1.0]).to_json(),
        "broken": sum(rollout.ruled is None for rollout in rollouts) / len(rollouts),
        "took_the_first": ruled.count(1) / len(ruled) if ruled else None,
        "tokens": sum(rollout.tokens for rollout in rollouts) / len(rollouts),
    }


@dataclass
class Curve:
    """A file of JSON lines, one a step: `step`, `generated_tokens` (from the beginning), `right`, `wrong` and `broken`
    (shares), the trainer's figures, and `held_out` where the judge was tried."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, step: int) -> None:
        """Go on behind `step`: what comes after it is forgotten."""
        self.lines = [line for line in _lines(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, line: Mapping[str, Any]) -> None:
        """One more step."""
        self.lines.append(dict(line))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def tokens(self) -> int:
        """Generated so far."""
        return int(self.lines[-1]["generated_tokens"]) if self.lines else 0

    @property
    def tried(self) -> list[dict[str, Any]]:
        """The lines in which the judge was tried."""
        return [line for line in self.lines if "held_out" in line]


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return  # cut off by a kill
        if not isinstance(found, dict) or not isinstance(found.get("step"), int):
            return
        yield found


def shares(rows: Sequence[Row], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of rollouts in training."""
    broken = sum(rollout.ruled is None for rollout in rollouts)
    right = sum(rollout.ruled == row.better for row, rollout in zip(rows, rollouts, strict=True))
    count = len(rollouts)
    return {"right": right / count, "wrong": (count - right - broken) / count, "broken": broken / count}


def transcript(row: Row, rollout: Rollout, worth: float) -> dict[str, Any]:
    """A rollout as a line of a file."""
    found = {"where": row.contest.where, "order": list(row.order), "better": row.better, "reward": worth}
    return found | {key: value for key, value in asdict(rollout).items() if key in ("turns", "ruled", "broken")}
