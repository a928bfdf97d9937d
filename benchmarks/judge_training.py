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
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judge.contests import Contest, first_turn, material, only_turn, second_turn
from judge.instructions import Instructions, read_instructions
from judge.learning import Learning
from judge.parsing import parse_branch
from judge.reward import Rewards
from minitron.errors import MinitronError
from minitron.files import write_json, write_text
from minitron.progress import Advance
from pipeline.judge_training import JudgeTraining, train_judge

HEADING = "## A judge learns (`benchmarks/judge_training.py`)"

INSTRUCTIONS = """
version = 1
[[qualities]]
name = "instructions"
means = "kept"
[[qualities]]
name = "calculation"
means = "right"
[[priorities]]
name = "all"
when = "always"
order = ["instructions", "calculation"]
[turns]
branch = "{question} {answer_1} {answer_2} {qualities} {format}"
rethink = "read again {format}"
single = "{question} {answer_1} {answer_2} {format}"
"""

WORDS = (
    "river mountain lamp garden window bread horse letter winter paper stone music forest bridge doctor silver engine "
    "butter castle pencil island market orange rocket saddle temple valley wagon anchor basket candle desert feather "
    "hammer jacket kettle ladder mirror needle oven parrot rabbit shovel ticket uncle violin whale yard zebra apple "
    "button carpet dragon eagle finger glove honey iron jungle knife lemon magnet nest ocean piano queen ribbon sand"
).split()

TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m['role'] }} {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)

SPLIT = r"<\|\w+\|>|\[[A-Z]+( [A-Z0-9]+)*\]|\\boxed\{[12N]\}|=+|[0-9a-f]{12}|[0-9]|[a-z]+|[A-Z]+|[^\w\s]"
"""Tokens: marks, words, digits, the fences' code (which no vocabulary has) and signs."""

CODE = re.compile("[0-9a-f]{12}")

CLAIMS = ("right", "wrong")


@dataclass(frozen=True)
class Pair:
    """A question, its better answer and its worse one."""

    question: str
    better: str
    worse: str

    def row(self) -> dict[str, str]:
        """As a line of a file of pairs."""
        return {"prompt": self.question, "chosen": self.better, "rejected": self.worse}


def words(count: int, held_out: bool, dice: random.Random, length: int = 3) -> list[Pair]:
    """Which of two lists of words has the word that was asked for."""
    # Words of all kinds stand in all texts; those that are asked for in training are asked for nowhere else.
    asked = WORDS[len(WORDS) * 3 // 4 :] if held_out else WORDS[: len(WORDS) * 3 // 4]
    found = []
    for _ in range(count):
        word = dice.choice(asked)
        others = dice.sample([one for one in asked if one != word], 2 * length)
        better = [word, *others[: length - 1]]
        dice.shuffle(better)
        found.append(Pair(f"word {word}", " ".join(better), " ".join(others[length:])))
    return found


def sums(count: int, held_out: bool, dice: random.Random, most: int = 20) -> list[Pair]:
    """Which of two numbers is the sum."""
    cases = [(one, other) for one in range(most) for other in range(most)]
    random.Random(0).shuffle(cases)
    cases = cases[: len(cases) // 5] if held_out else cases[len(cases) // 5 :]
    found = []
    for _ in range(count):
        one, other = dice.choice(cases)
        wrong = one + other + dice.choice([step for step in (-3, -2, -1, 1, 2, 3) if one + other + step >= 0])
        found.append(Pair(f"{one} + {other}", str(one + other), str(wrong)))
    return found


TASKS: dict[str, Callable[[int, bool, random.Random], list[Pair]]] = {"words": words, "sums": sums}


@dataclass(frozen=True)
class Trace:
    """A prompt of messages, and what is to be said."""

    asked: tuple[Mapping[str, Any], ...]
    said: str


def claims(one: str, other: str) -> str:
    """Of both answers."""
    return f"first {one} second {other}"


def ruling(one: str, other: str, dice: random.Random) -> str:
    """The block that follows from two claims; at random where they are alike."""
    better = dice.choice("12") if one == other else "1" if one == "right" else "2"
    return f"[RANKING] \\boxed{{{better}}} [END RANKING]"


def traces(pair: Pair, instructions: Instructions, dice: random.Random) -> list[Trace]:
    """How a judge speaks, with nothing of who is right: every claim is drawn, and the ruling follows from the last."""
    contest = Contest(({"role": "user", "content": pair.question},), (pair.better, pair.worse))
    given = material(contest, dice.choice([(0, 1), (1, 0)]))
    first = [dice.choice(CLAIMS) for _ in range(2)]
    # Claims are mostly kept, so that what the first turn says is of use to the second.
    second = [one if dice.random() < 0.75 else dice.choice(CLAIMS) for one in first]
    focus = dice.choice(["instructions", "calculation"])
    branch = (
        f"[FOCUS] {focus} [END FOCUS] [ANSWER 1] {first[0]} [END ANSWER 1] [ANSWER 2] {first[1]} [END ANSWER 2]"
    )
    rethink = f"{claims(*second)} {ruling(*second, dice)}"
    asked = first_turn(given, instructions)
    again = second_turn(asked, branch, parse_branch(branch, instructions.names), given, instructions)
    once = [dice.choice(CLAIMS) for _ in range(2)]
    single = f"{claims(*once)} {ruling(*once, dice)}"
    return [Trace(asked, branch), Trace(again, rethink), Trace(only_turn(given, instructions), single)]


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word of these texts."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
    blank = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed", invert=False)
    cutter = pre_tokenizers.Sequence([split, blank])
    seen = sorted({word for text in texts for word, _ in cutter.pre_tokenize_str(text) if not CODE.fullmatch(word)})
    special = ["<pad>", "<unk>", "<|start|>", "<|end|>"]
    vocabulary = {word: number for number, word in enumerate([*special, *(one for one in seen if one not in special)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = cutter
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<|start|>", eos_token="<|end|>"
    )
    found.chat_template = TEMPLATE
    return found


def rendered(tokenizer: PreTrainedTokenizerFast, trace: Trace) -> tuple[list[int], int]:
    """(tokens of a trace, how many of them are asked)."""
    asked = tokenizer.apply_chat_template(list(trace.asked), tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, f"{trace.said} <|end|>")]
    return ids[0] + ids[1], len(ids[0])


def taught(folder: Path, setting: argparse.Namespace, instructions: Instructions) -> dict[str, Any]:
    """Write a model that knows the format and nothing else; returns what it took."""
    dice, make = random.Random(setting.seed), TASKS[setting.task]
    torch.manual_seed(setting.seed)
    both = [*make(2000, False, dice), *make(2000, True, dice)]
    every = [trace for pair in both for trace in traces(pair, instructions, dice)]
    tokenizer = tokenizer_of([f"{trace.asked[0]['content']} {trace.asked[-1]['content']} {trace.said} user assistant 0123456789" for trace in every])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=setting.hidden,
            intermediate_size=3 * setting.hidden,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.hidden // 32,
            num_key_value_heads=setting.hidden // 32,
            max_position_embeddings=1024,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    ).to(setting.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=setting.sft_rate, betas=(0.9, 0.95), weight_decay=0.0)
    started, loss = time.monotonic(), torch.zeros(())
    for step in range(setting.sft_steps):
        batch = [rendered(tokenizer, trace) for _ in range(setting.sft_batch // 3) for trace in traces(dice.choice(both[:2000]), instructions, dice)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([one + [0] * (width - len(one)) for one, _ in batch], device=setting.device)
        places = torch.arange(width, device=setting.device)
        asked = torch.tensor([count for _, count in batch], device=setting.device)[:, None]
        ends = torch.tensor([len(one) for one, _ in batch], device=setting.device)[:, None]
        # What is asked is read too, a little: from it a model made from nothing learns what a text looks like.
        labels = ids.masked_fill((places >= ends) | ((places < asked) & (not setting.read)), -100)
        for group in optimiser.param_groups:
            group["lr"] = setting.sft_rate * min(1.0, (step + 1) / 50)
        loss = model(input_ids=ids, attention_mask=(places < ends).long(), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(f"format: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "steps": setting.sft_steps,
        "loss": loss.item(),
        "seconds": time.monotonic() - started,
        "parameters": sum(each.numel() for each in model.parameters()),
    }


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
    lines.append("| generated tokens | " + " | ".join(f"{titles[name]}: right | both orders | broken" for name in arms) + " |")
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
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--sft-batch", type=int, default=48)
    parser.add_argument("--sft-rate", type=float, default=2e-3)
    parser.add_argument("--read", action="store_true", help="supervised training on what is asked, too")
    return parser.parse_args()


def main() -> None:
    """Teach the format, then let both arms learn."""
    setting = options()
    setting.out = setting.out.resolve()
    setting.out.mkdir(parents=True, exist_ok=True)
    write_text(setting.out / "instructions.toml", INSTRUCTIONS)
    instructions = read_instructions(setting.out / "instructions.toml")
    dice, make = random.Random(setting.seed + 1), TASKS[setting.task]
    for name, held_out, count in (("pairs", False, setting.pairs), ("held-out", True, setting.held_out)):
        rows = [json.dumps(pair.row()) for pair in make(count, held_out, dice)]
        write_text(setting.out / f"{name}.jsonl", "\n".join(rows) + "\n")
    judge = setting.out / "judge"
    about = taught(judge, setting, instructions)
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
