"""Tasks whose right answer is known, how a judge of them speaks, and a small model that is taught to speak so."""

from __future__ import annotations

import functools
import random
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judge.contests import Contest, first_turn, material, only_turn, second_turn
from judge.instructions import Instructions
from judge.parsing import Branch

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

WORDS = re.findall(
    r"\w+",
    "river mountain lamp garden window bread horse letter winter paper stone music forest bridge doctor silver engine "
    "butter castle pencil island market orange rocket saddle temple valley wagon anchor basket candle desert feather "
    "hammer jacket kettle ladder mirror needle oven parrot rabbit shovel ticket uncle violin whale yard zebra apple "
    "button carpet dragon eagle finger glove honey iron jungle knife lemon magnet nest ocean piano queen ribbon sand",
)

TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m['role'] }} {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)

SPLIT = r"<\|\w+\|>|\[[A-Z]+( [A-Z0-9]+)*\]|\\boxed\{[12N]\}|=+|[0-9a-f]{12}|[0-9]|[a-z]+|[A-Z]+|[^\w\s]"
"""Tokens: marks, words, digits, the fences' code (which no vocabulary has) and signs."""

CODE = re.compile("[0-9a-f]{12}")

CLAIMS = ("right", "wrong")

SPECIAL = ["<pad>", "<unk>", "<|start|>", "<|end|>"]


@dataclass(frozen=True)
class Pair:
    """A question, its better answer and its worse one."""

    question: str
    better: str
    worse: str

    def row(self) -> dict[str, str]:
        """As a line of a file of pairs."""
        return {"prompt": self.question, "chosen": self.better, "rejected": self.worse}


def words(count: int, held_out: bool, dice: random.Random, asked: int, known: int) -> list[Pair]:
    """Which of two texts has the word that is asked for, one of the first `asked`; the other has another of them.

    The rest of a text is two words: no two that stand together in training do so in what is held out."""
    fillers, found = WORDS[asked : known or None], list[Pair]()
    while len(found) < count:
        right, wrong = dice.sample(WORDS[:asked], 2) if asked > 1 else (WORDS[0], dice.choice(fillers))
        texts = []
        for word in (right, wrong):
            rest = dice.sample(range(len(fillers)), 2)
            while (sum(rest) % 5 == 0) != held_out:
                rest = dice.sample(range(len(fillers)), 2)
            text = [word, *(fillers[one] for one in rest)]
            dice.shuffle(text)
            texts.append(" ".join(text))
        found.append(Pair(f"word {right}", *texts))
    return found


def sums(count: int, held_out: bool, dice: random.Random, asked: int, known: int) -> list[Pair]:
    """Which of two numbers is the sum of two below `asked`; a fifth of the sums is held out."""
    cases = [(one, other) for one in range(asked) for other in range(asked)]
    random.Random(0).shuffle(cases)
    cases = cases[: len(cases) // 5] if held_out else cases[len(cases) // 5 :]
    found = []
    for _ in range(count):
        one, other = dice.choice(cases)
        wrong = one + other + dice.choice([step for step in (-3, -2, -1, 1, 2, 3) if one + other + step >= 0])
        found.append(Pair(f"{one} + {other}", str(one + other), str(wrong)))
    return found


TASKS: dict[str, Callable[[int, bool, random.Random, int, int], list[Pair]]] = {"words": words, "sums": sums}

Pieces = list[str]
"""A text in pieces that come again, so that each is cut into tokens once."""


@dataclass(frozen=True)
class Trace:
    """What is asked, and what is to be said."""

    asked: Pieces
    said: Pieces


def said_of(question: str, texts: Sequence[str], drawn: Sequence[str]) -> list[Pieces]:
    """What is said of each answer: the question and the answer once more, and whether it is right."""
    return [[f"{question} :", text, claim] for text, claim in zip(texts, drawn, strict=True)]


def ruling(one: str, other: str, dice: random.Random) -> str:
    """The block that follows from two claims; at random where they are alike."""
    better = dice.choice("12") if one == other else "1" if one == "right" else "2"
    return f"[RANKING] \\boxed{{{better}}} [END RANKING]"


@functools.lru_cache(2**15)
def asked_of(pair: Pair, order: tuple[int, int]) -> tuple[str, str, str]:
    """What the first turn, the second and the only one ask, as TEMPLATE writes it up to what is said."""
    instructions = asked_of_instructions[0]
    contest = Contest(({"role": "user", "content": pair.question},), (pair.better, pair.worse))
    given = material(contest, order)
    first = first_turn(given, instructions)
    again = second_turn(first, "-", Branch(("instructions",), ("-", "-")), given, instructions)[-1:]
    turns = (first, again, only_turn(given, instructions))
    one, two, single = (f"<|start|> user {turn[0]['content']} <|end|> <|start|> assistant" for turn in turns)
    return one, two, single


asked_of_instructions: list[Instructions] = []
"""The one that traces are made with."""


def traces(pair: Pair, dice: random.Random) -> list[Trace]:
    """How a judge speaks, with nothing of who is right: every claim is drawn, and the ruling follows from the last."""
    order = dice.choice([(0, 1), (1, 0)])
    texts = [(pair.better, pair.worse)[place] for place in order]
    one, two, single = asked_of(pair, order)
    first, once = ([dice.choice(CLAIMS) for _ in range(2)] for _ in range(2))
    # Claims are mostly kept, so that what the first turn says is of use to the second.
    second = [claim if dice.random() < 0.75 else dice.choice(CLAIMS) for claim in first]
    noted = said_of(pair.question, texts, first)
    focus = f"[FOCUS] {dice.choice(['instructions', 'calculation'])} [END FOCUS] [ANSWER 1]"
    branch = [focus, *noted[0], "[END ANSWER 1] [ANSWER 2]", *noted[1], "[END ANSWER 2]", "<|end|>"]
    found = [Trace([one], branch)]
    for before, claims in (([one, *branch, two], second), ([single], once)):
        checked = said_of(pair.question, texts, claims)
        found.append(Trace(before, [*checked[0], *checked[1], ruling(*claims, dice), "<|end|>"]))
    return found


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word of these texts."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
    blank = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed", invert=False)
    cutter = pre_tokenizers.Sequence([split, blank])
    seen = {word for text in texts for word, _ in cutter.pre_tokenize_str(text) if not CODE.fullmatch(word)}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(seen.difference(SPECIAL))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = cutter
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<|start|>", eos_token="<|end|>"
    )
    found.chat_template = TEMPLATE
    return found


class Cut:
    """Traces as tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer, self._known = tokenizer, dict[str, list[int]]()

    def ids(self, pieces: Pieces) -> list[int]:
        """Of a text in pieces."""
        found = list[int]()
        for piece in pieces:
            if piece not in self._known:
                self._known[piece] = self._tokenizer(piece, add_special_tokens=False)["input_ids"]
            found += self._known[piece]
        return found

    def batch(self, every: Sequence[Trace], device: str) -> dict[str, torch.Tensor]:
        """Of traces, padded on the right; what is asked has no label."""
        pairs = [(self.ids(trace.asked), self.ids(trace.said)) for trace in every]
        width = max(len(one) + len(other) for one, other in pairs)
        rest = [width - len(one) - len(other) for one, other in pairs]
        rows = [one + other + [0] * left for (one, other), left in zip(pairs, rest, strict=True)]
        labels = [[-100] * len(one) + other + [-100] * left for (one, other), left in zip(pairs, rest, strict=True)]
        masks = [[1] * (width - left) + [0] * left for left in rest]
        found = {"input_ids": rows, "labels": labels, "attention_mask": masks}
        return {name: torch.tensor(value).to(device) for name, value in found.items()}


def taught(folder: Path, setting: Namespace, instructions: Instructions) -> dict[str, Any]:
    """Write a model that knows the format and nothing else; returns what it took."""
    asked_of_instructions[:] = [instructions]
    dice, make = random.Random(setting.seed), TASKS[setting.task]
    torch.manual_seed(setting.seed)
    known = make(setting.pairs, False, dice, setting.asked, setting.known)
    every = [*known, *make(2000, True, dice, setting.asked, setting.known)]
    tokenizer = tokenizer_of([" ".join([*one.asked, *one.said]) for pair in every for one in traces(pair, dice)])
    heads = setting.hidden // 32
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=setting.hidden,
        intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model, cut = LlamaForCausalLM(config).to(setting.device), Cut(tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=setting.sft_rate, betas=(0.9, 0.95), weight_decay=0.0)
    started, step, loss = time.monotonic(), 0, torch.zeros(())
    while step < setting.sft_steps and (spent := time.monotonic() - started) < setting.sft_seconds:
        drawn = [dice.choice(known) for _ in range(setting.sft_batch // 3)]
        batch = cut.batch([one for pair in drawn for one in traces(pair, dice)], setting.device)
        left = 1 - max(step / setting.sft_steps, spent / setting.sft_seconds)
        for group in optimiser.param_groups:
            group["lr"] = setting.sft_rate * min(1.0, (step + 1) / 50, 3 * left + 0.02)
        with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.dtype == "bf16"):
            loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(f"format: step {step}, loss {loss.item():.3f}, {spent:.0f} s", file=sys.stderr, flush=True)
        step += 1
    model.float().cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "steps": step,
        "traces": step * setting.sft_batch,
        "loss": loss.item(),
        "seconds": time.monotonic() - started,
        "parameters": sum(each.numel() for each in model.parameters()),
    }
