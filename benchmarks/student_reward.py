"""A student that learns from a judge's verdicts: the recipe of docs/judge.md by TRL's GRPOTrainer, as small as it goes.

    PYTHONPATH=. python benchmarks/student_reward.py [--steps 40] [--student FOLDER]

The student goes on with the first words of held-out passages; a stand-in for a judge, which speaks the judge's formats
and prefers the answer with more different words, compares what it wrote with the teacher's most likely words, in both
orders and two turns, by Minitron's prompts, parser and reward.  Told is what share of other prompts the student's most
likely words win, as it learns.  The table goes into benchmarks/RESULTS.md.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from results import RESULTS, write_section
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from minitron import builtin
from minitron.measure.text import token_blocks
from minitron.model.loading import load_model, load_tokenizer
from pipeline import Contest, Rewards, first_turn, material, parse_branch, read_instructions, reward_of, second_turn

INSTRUCTIONS = read_instructions()
PROMPT = 16
"""Tokens."""

BRANCH = "[FOCUS]\n{quality}\n[END FOCUS]\n[ANSWER 1]\nnone\n[END ANSWER 1]\n[ANSWER 2]\nnone\n[END ANSWER 2]"
RANKING = "[RANKING]\n\\boxed{{{winner}}}\n[END RANKING]"


def stand_in(messages: list[dict[str, str]], answers: tuple[str, str]) -> str:
    """What the judge says to the messages of a turn that shows these answers."""
    if len(messages) < 3:
        return BRANCH.format(quality=next(iter(INSTRUCTIONS.names)))
    first, second = (len(set(answer.lower().split())) for answer in answers)
    return RANKING.format(winner=1 if first >= second else 2)


def verdict(prompt: str, mine: str, theirs: str) -> float:
    """1 where the judge prefers `mine` in both orders, 0 where the orders disagree, -1 where it loses both."""
    pair = Contest(({"role": "user", "content": prompt},), (mine, theirs))
    worth = 0.0
    for order in ((0, 1), (1, 0)):
        given = material(pair, order)
        shown = (mine, theirs) if order == (0, 1) else (theirs, mine)
        said = stand_in(first_turn(given, INSTRUCTIONS), shown)
        again = second_turn(
            first_turn(given, INSTRUCTIONS), said, parse_branch(said, INSTRUCTIONS.names), given, INSTRUCTIONS
        )
        ruled = stand_in(again, shown)
        mine_is = 1 if order == (0, 1) else 2
        worth += reward_of(said, ruled, mine_is, INSTRUCTIONS.names, Rewards(right=0.5, wrong=-0.5, broken=-1.0))
    return worth


def answers(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> list[str]:
    """The most likely words after each prompt."""
    ids = tokenizer(prompts, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model.eval()
    with torch.no_grad():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return list(tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True))


def prompts_of(tokenizer: Any, text: Path, count: int) -> list[str]:
    """First words of passages, of the same number of tokens each, so that none is padded."""
    found = []
    for block in token_blocks(tokenizer, text, sequence_length=64, samples=4 * count):
        told = tokenizer.decode(block[:PROMPT].tolist())
        if len(tokenizer(told, add_special_tokens=False)["input_ids"]) == PROMPT:
            found.append(told)
    return found[:count]


class Watch(TrainerCallback):
    """The share of held-out prompts that the student wins."""

    def __init__(self, model: Any, tokenizer: Any, held_out: list[str], theirs: list[str], tokens: int) -> None:
        self.model, self.tokenizer, self.held_out, self.theirs, self.tokens = model, tokenizer, held_out, theirs, tokens
        self.rows: list[tuple[int, float, float, float]] = []

    def try_it(self, step: int) -> None:
        mine = answers(self.model, self.tokenizer, self.held_out, self.tokens)
        worth = [verdict(*one) for one in zip(self.held_out, mine, self.theirs, strict=True)]
        shares = [sum(value == wanted for value in worth) / len(worth) for wanted in (1.0, 0.0, -1.0)]
        self.rows.append((step, *shares))
        print(step, *(f"{share:.1%}" for share in shares), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step % 10 == 0:
            self.try_it(state.global_step)
            self.model.train()


def main() -> None:
    """Parse the command line, train, write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", type=Path, default=builtin.MODEL)
    parser.add_argument("--teacher", type=Path, default=builtin.MODEL)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.teacher)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    cpu = torch.device("cpu")
    prompts = prompts_of(tokenizer, builtin.DISTILL, 256)
    held_out = prompts_of(tokenizer, builtin.HELDOUT, 64)
    teacher = load_model(options.teacher, dtype=torch.float32, device=cpu)
    every = [*prompts, *held_out]
    theirs = dict(zip(every, answers(teacher, tokenizer, every, options.tokens), strict=True))
    student = load_model(options.student, dtype=torch.float32, device=cpu).requires_grad_(True)
    watch = Watch(student, tokenizer, held_out, [theirs[prompt] for prompt in held_out], options.tokens)
    watch.try_it(0)

    def reward(prompts: list[str], completions: list[str], **named: Any) -> list[float]:
        return [verdict(prompt, mine, theirs[prompt]) for prompt, mine in zip(prompts, completions, strict=True)]

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=student,
            reward_funcs=[reward],
            args=GRPOConfig(
                output_dir=folder, num_generations=8, per_device_train_batch_size=64, max_steps=options.steps,
                max_completion_length=options.tokens, learning_rate=options.rate, beta=0.0, bf16=False, use_cpu=True,
                scale_rewards="none", save_strategy="no", report_to="none", logging_steps=10, disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            callbacks=[watch],
        )  # fmt: skip
        trainer.train()
    seconds = time.monotonic() - started
    lines = ["## A student learns from verdicts (`benchmarks/student_reward.py`)", ""]
    lines += ["| step | wins | orders disagree | losses |", "|--:|--:|--:|--:|"]
    lines += [f"| {step} | {win:.1%} | {tie:.1%} | {loss:.1%} |" for step, win, tie, loss in watch.rows]
    lines += [
        "",
        f"`{options.student.name}` against its teacher's most likely {options.tokens} tokens, on {len(held_out)} "
        f"held-out beginnings of {PROMPT} tokens. The judge is a stand-in that prefers more different words; its "
        "verdicts in two turns and both orders are the reward (1, 0, -1). TRL's GRPOTrainer, 8 beginnings of "
        f"8 answers a step, {options.rate:g}, no KL, fp32, {seconds:.0f} s.",
        "",
    ]
    section = "\n".join(lines)
    write_section(options.results, section)
    print(section)


if __name__ == "__main__":
    main()
