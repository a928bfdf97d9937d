"""A judge learns: by `minitron judge-train`, one turn beside two at equal generated tokens.

    PYTHONPATH=. python benchmarks/judge_training.py --out runs/judge-training [--device cuda] [--seconds 120]

A small transformer is made from nothing and taught the format alone, by supervised training on traces whose claims and
rulings are drawn at random: it rules at chance.  Then it learns from outcomes.  The right answer is known by
construction: of two answers one keeps the constraint that the question states (`--task words`: has the word that was
asked for) or is the sum that was asked for (`--task sums`).  Pairs on which it is tried have words, or sums, that no
pair of training has.

Writes training.json (the settings, both curves) and training.md into the folder; what a time limit cut short is
written too.  Beside torch and transformers it takes trl, accelerate, datasets and their own needs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from judge_tasks import INSTRUCTIONS, TASKS, taught

from judge.instructions import read_instructions
from judge.learning import Learning
from judge.reward import Rewards
from minitron.errors import MinitronError
from minitron.files import read_json, write_json, write_text
from minitron.progress import Advance
from pipeline.judge_training import JudgeTraining, train_judge

HEADING = "## A judge learns (`benchmarks/judge_training.py`)"


@contextmanager
def told(description: str, total: float, unit: str) -> Iterator[Advance]:
    """A line now and then."""
    done, last = 0.0, 0.0

    def advance(amount: float, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last > 5:
            last = time.monotonic()
            print(f"{description}: {done:,.0f} of {total:,.0f} {unit} {note}", file=sys.stderr, flush=True)

    yield advance


def arm(turns: str, judge: Path, setting: argparse.Namespace) -> dict[str, Any]:
    """What came of one way to read."""
    learning = Learning(
        turns=turns,  # type: ignore[arg-type]
        steps=setting.steps,
        prompts=setting.prompts,
        group=setting.group,
        updates=setting.updates,
        learning_rate=setting.learning_rate,
        kl=setting.kl,
        max_tokens=setting.max_tokens,
        rewards=Rewards(broken=setting.broken),
        seed=setting.seed,
        batch_size=setting.batch_size,
        generation_batch_size=max(setting.prompts * setting.group, 2 * setting.held_out),
        checkpoint_every=10**6,
        evaluate_every=setting.evaluate_every,
        max_seconds=setting.seconds,
    )
    folder = setting.out
    request = JudgeTraining(
        judge,
        folder / "pairs.jsonl",
        folder / f"judge-{turns}",
        learning,
        held_out=folder / "held-out.jsonl",
        held_out_pairs=setting.held_out,
        instructions=folder / "instructions.toml",
        dtype=setting.dtype,
        device=setting.device,
    )
    found = train_judge(request, overwrite=True, progress=told).results
    return {name: found[name] for name in ("steps", "generated_tokens", "stopped", "before", "after", "curve")}


def at(curve: Sequence[Mapping[str, Any]], tokens: float) -> Mapping[str, Any] | None:
    """The last trial within so many generated tokens."""
    return next((one for one in reversed(curve) if "held_out" in one and one["generated_tokens"] <= tokens), None)


def markdown(found: Mapping[str, Any]) -> str:
    """A section of RESULTS.md."""
    setting, arms = found["setting"], found["arms"]
    lines = [HEADING, "", found["told"], ""]
    most = min(one["generated_tokens"] for one in arms.values() if "curve" in one)
    titles = {"one": "one turn", "two": "two turns"}
    lines.append(
        "| generated tokens | " + " | ".join(f"{titles[name]}: right | both orders | broken" for name in arms) + " |"
    )
    lines.append("|--:|" + "--:|--:|--:|" * len(arms))
    points = 10
    for point in range(points + 1):
        tokens, cells = most * point / points, []
        for one in arms.values():
            trial = at(one["curve"], tokens)
            if trial is None:
                cells += ["-", "-", "-"]
                continue
            seen = trial["held_out"]
            cells += [
                f"{seen['accuracy']['value']:.1%}",
                f"{seen['right_in_both_orders']['value']:.1%}",
                f"{seen['broken']:.1%}",
            ]
        lines.append(f"| {tokens:,.0f} | " + " | ".join(cells) + " |")
    for name, one in arms.items():
        low, high = one["after"]["accuracy"]["interval"]
        lines += [
            "",
            f"{titles[name].capitalize()}: {one['steps']:,} steps, {one['generated_tokens']:,} generated tokens, "
            f"{one['curve'][-1]['seconds']:.0f} s; at the end {one['after']['accuracy']['value']:.1%} "
            f"({low:.1%} to {high:.1%}), from {one['before']['accuracy']['value']:.1%}.",
        ]
    _ = setting
    return "\n".join(lines) + "\n"


def options() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), default="words")
    parser.add_argument("--asked", type=int, default=8, help="words that may be asked for, or largest number of a sum")
    parser.add_argument("--known", type=int, default=0, help="words in all; 0 is all there are")
    parser.add_argument("--judge", type=Path, help="a judge that knows the format already")
    parser.add_argument("--arms", nargs="+", default=["one", "two"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=None, help="of an arm")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=0.001)
    parser.add_argument("--broken", type=float, default=-100.0)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--sft-seconds", type=float, default=1e9)
    parser.add_argument("--sft-batch", type=int, default=48)
    parser.add_argument("--sft-rate", type=float, default=2e-3)
    parser.add_argument("--read", action="store_true", help="supervised training on what is asked, too")
    return parser.parse_args()


def main() -> None:
    """Teach the format, then let both arms learn."""
    setting = options()
    torch.set_float32_matmul_precision("high")
    setting.out = setting.out.resolve()
    setting.out.mkdir(parents=True, exist_ok=True)
    write_text(setting.out / "instructions.toml", INSTRUCTIONS)
    instructions = read_instructions(setting.out / "instructions.toml")
    dice, make = random.Random(setting.seed + 1), TASKS[setting.task]
    for name, held_out, count in (("pairs", False, setting.pairs), ("held-out", True, setting.held_out)):
        rows = [json.dumps(pair.row()) for pair in make(count, held_out, dice, setting.asked, setting.known)]
        write_text(setting.out / f"{name}.jsonl", "\n".join(rows) + "\n")
    judge = setting.judge or setting.out / "judge"
    about = read_json(judge / "taught.json") if setting.judge else taught(judge, setting, instructions)
    write_json(judge / "taught.json", about)
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in vars(setting).items()}
    found: dict[str, Any] = {"setting": shown | {"out": ""}, "format": about, "torch": torch.__version__, "arms": {}}
    if setting.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    for turns in setting.arms:
        try:
            found["arms"][turns] = arm(turns, judge, setting)
        except MinitronError as error:
            print(f"{turns}: {error}", file=sys.stderr)
            found.setdefault("failed", {})[turns] = str(error)
        write_json(setting.out / "training.json", found)
    found["told"] = f"{about['parameters']:,} parameters, on {found.get('gpu', 'one CPU core')}."
    if found["arms"]:
        write_text(setting.out / "training.md", markdown(found))
        print(markdown(found))


if __name__ == "__main__":
    main()
