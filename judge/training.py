"""A judge trained by reinforcement: TRL's GRPOTrainer, with rollouts and reward of ours.

The advantage of a rollout is its reward less the mean of the others of its group (leave one out), undivided by their
deviation; it is given to every token that the judge said, in both turns.  Weights are trained in fp32.

    checkpoints/checkpoint-N    the trainer's; whole.json is written last
    curve.jsonl                 see judge.learning.Curve
    rollouts.jsonl              of each step the rollouts of one prompt
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from judge.generating import Drawn, Ids, batches, continued, ends_of, pad_of
from judge.instructions import Instructions
from judge.learning import PATIENCE, Curve, Learning, leave_one_out, scores, shares, transcript
from judge.local import LocalModel
from judge.reward import reward_of
from judge.rollouts import Roller, Rollout, Row
from minitron.errors import MinitronError, NotFinite
from minitron.files import read_sealed, remove, write_sealed, write_text
from minitron.measure.rendering import Renderer
from minitron.model.identity import file_hashes, first_changed
from minitron.model.loading import find_device, load_model
from minitron.progress import Advance, Progress, silent

CHECKPOINTS: Final = "checkpoints"
CURVE: Final = "curve.jsonl"
ROLLOUTS: Final = "rollouts.jsonl"

_WHOLE: Final = "whole.json"
"""In a checkpoint: the sums of its files."""

_FIGURES: Final = ("loss", "grad_norm", "kl", "entropy", "clip_ratio/region_mean")
"""What is kept of the trainer's own."""


@dataclass(frozen=True)
class Trained:
    """What training left."""

    model: PreTrainedModel
    curve: Curve
    stopped: bool
    """Whether the time was over before the steps were."""


def require_trl() -> ModuleType:
    """The package trl; raises MinitronError where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import trl
    except ImportError as error:
        raise MinitronError(
            f"judges are trained by the package trl, which cannot be imported ({error}); run "
            "`pip install 'minitron[rl]'`."
        ) from None
    module: ModuleType = trl
    return module


def train(
    judge: LocalModel,
    rows: Sequence[Row],
    instructions: Instructions,
    learning: Learning,
    work: Path,
    *,
    held_out: Sequence[Row] = (),
    progress: Progress = silent,
) -> Trained:
    """Train the judge on `rows`, each a pair in one order; `held_out` are pairs in both orders.  Called again with the
    same arguments it goes on from its newest checkpoint in `work`.

    Raises MinitronError where trl is missing, where no rollout keeps to the format for PATIENCE steps, and where a loss
    is not finite."""
    trl = require_trl()
    steps, device = learning.steps_of(len(rows)), find_device(judge.device)
    if device.index:
        raise MinitronError(f"the trainer takes the first GPU, not {device}; hide others by CUDA_VISIBLE_DEVICES.")
    with Renderer(judge.tokenizer) as renderer, progress("training the judge", steps, "steps") as advance:
        roller = Roller(judge, instructions, renderer, learning.turns)
        roller.prompt(rows[0])  # starts the renderer's process before there is much to copy
        model = load_model(judge.folder, dtype=torch.float32, device=device)
        model.requires_grad_(True)
        school = _School(roller, rows, held_out, learning, work, steps, advance)
        with warnings.catch_warnings():
            # Of TRL, that rollout_func may change; of transformers, about names that the trainer calls itself.
            warnings.simplefilter("ignore")
            trainer = trl.GRPOTrainer(
                model=model,
                reward_funcs=[school.reward],
                args=_config(trl, learning, work, steps, device, judge.dtype),
                train_dataset=_dataset(len(rows)),
                processing_class=judge.tokenizer,
                callbacks=[_Watch(school)],
                rollout_func=school.rollouts,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.create_model_card = lambda **_: None
            school.use(trainer)
            newest = _newest(work / CHECKPOINTS)
            school.begin(0 if newest is None else int(newest.name.rpartition("-")[2]) // learning.updates)
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        return Trained(trainer.accelerator.unwrap_model(trainer.model), school.curve, school.step < steps)


def _config(trl: ModuleType, learning: Learning, work: Path, steps: int, device: torch.device, dtype: str) -> Any:
    batches_of_step = learning.rollouts // learning.batch_size
    return trl.GRPOConfig(
        output_dir=str(work / CHECKPOINTS),
        # Groups, and how often they are learned from.
        num_generations=learning.group,
        generation_batch_size=learning.rollouts,
        per_device_train_batch_size=learning.batch_size,
        gradient_accumulation_steps=batches_of_step // learning.updates,
        num_iterations=1,
        max_steps=steps * learning.updates,
        # The loss.
        beta=learning.kl,
        epsilon=learning.clip_low,
        epsilon_high=learning.clip_high,
        loss_type="dapo",
        scale_rewards="none",
        reward_weights=[leave_one_out(learning.group)],
        temperature=learning.temperature,
        mask_truncated_completions=False,
        # Steps of the optimiser.
        learning_rate=learning.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=learning.warmup * learning.updates,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=learning.seed,
        bf16=device.type == "cuda" and dtype == "bf16",
        use_cpu=device.type == "cpu",
        gradient_checkpointing=learning.activation_checkpointing,
        # What is kept and told.
        save_strategy="steps",
        save_steps=learning.checkpoint_every * learning.updates,
        save_total_limit=2,
        logging_steps=learning.updates,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def _dataset(rows: int) -> Any:
    from datasets import Dataset

    # The trainer is given numbers: what they ask is made where it is answered.
    return Dataset.from_dict({"prompt": [str(number) for number in range(rows)]})


class _School:
    """What the trainer calls: rollouts and their reward, and what is written of them."""

    def __init__(
        self,
        roller: Roller,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        learning: Learning,
        work: Path,
        steps: int,
        advance: Advance,
    ) -> None:
        self.roller, self.rows, self.held_out, self.learning = roller, rows, held_out, learning
        self.steps, self.advance, self.work = steps, advance, work
        self.curve, self.step = Curve(work / CURVE), 0
        self._started, self._barren = time.monotonic(), 0
        self._tally: dict[str, Any] = {}
        self._trainer: Any = None

    def use(self, trainer: Any) -> None:
        """The trainer whose model answers."""
        self._trainer = trainer

    def begin(self, step: int) -> None:
        """Go on behind `step`."""
        self.step = step
        self.curve.begin(step)
        path = self.work / ROLLOUTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        write_text(path, "".join(f"{line}\n" for line in lines[: step * self.learning.group]))
        if step:
            self.advance(step)
        elif self.held_out:
            tried = self.tried()
            self.curve.lines.clear()
            self.curve.begin(-1)
            self.curve.add({"step": 0, "generated_tokens": 0, "seconds": 0.0, "held_out": tried})
        self._started = time.monotonic() - (self.curve.lines[-1]["seconds"] if self.curve.lines else 0.0)

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        most = self.learning.max_seconds
        return most is not None and time.monotonic() - self._started >= most

    def rollouts(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """What GRPOTrainer asks of a rollout_func."""
        found = self.roller.roll([self.rows[int(prompt)] for prompt in prompts], self._say(self.learning.temperature))
        return {
            "prompt_ids": [list(one.prompt) for one in found],
            "completion_ids": [list(one.completion) for one in found],
            "env_mask": [list(one.mask) for one in found],
            "logprobs": None,
            "rollout": found,
        }

    def reward(self, prompts: Sequence[str], rollout: Sequence[Rollout], **_: Any) -> list[float]:
        """What GRPOTrainer asks of a reward function."""
        rows = [self.rows[int(prompt)] for prompt in prompts]
        names, worth = self.roller.instructions.names, self.learning.rewards
        found = [
            reward_of(one.turns[0] if self.learning.turns == "two" else None, one.turns[-1], row.better, names, worth)
            for row, one in zip(rows, rollout, strict=True)
        ]
        told = [transcript(*each) for each in zip(rows, rollout, found, strict=True)]
        with (self.work / ROLLOUTS).open("a", encoding="utf-8") as file:
            for line in told[: self.learning.group]:
                file.write(json.dumps({"step": self.step + 1} | line) + "\n")
        self._tally = shares(rows, rollout) | {
            "reward": sum(found) / len(found),
            "tokens": sum(one.tokens for one in rollout),
        }
        self._require_format(rollout)
        return found

    def _require_format(self, rollouts: Sequence[Rollout]) -> None:
        self._barren = self._barren + 1 if all(one.ruled is None for one in rollouts) else 0
        if self._barren == PATIENCE:
            reason = max({one.broken for one in rollouts}, key=[one.broken for one in rollouts].count)
            raise MinitronError(
                f"the judge kept to the format in none of the last {PATIENCE * len(rollouts):,} rollouts (mostly: "
                f"{reason}); read {self.work / ROLLOUTS}, and raise --max-tokens, teach the judge the format first by "
                "supervised training, or give other --instructions."
            )

    def log(self, figures: Mapping[str, Any]) -> None:
        """A step is done."""
        loss = figures["loss"]
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of step {self.step + 1} is {loss}; lower --learning-rate, and run again.")
        self.step += 1
        tally = dict(self._tally)
        line = {
            "step": self.step,
            "generated_tokens": self.curve.tokens + tally.pop("tokens"),
            "seconds": round(time.monotonic() - self._started, 2),
            **tally,
            **{name.partition("/")[0]: figures[name] for name in _FIGURES if name in figures},
        }
        last = self.step == self.steps or self.is_over
        if self.held_out and (last or self.step % self.learning.evaluate_every == 0):
            line["held_out"] = self.tried()
        self.curve.add(line)
        self.advance(1, f"right {tally['right']:.1%}, broken {tally['broken']:.1%}")

    def tried(self) -> dict[str, Any]:
        """The judge's scores on the held-out pairs, by its most likely words."""
        return scores(self.held_out, self.roller.roll(self.held_out, self._say(0.0)))

    def _say(self, temperature: float) -> Callable[[Sequence[Ids]], list[Drawn]]:
        model: PreTrainedModel = self._trainer.accelerator.unwrap_model(self._trainer.model)
        tokenizer = self.roller.judge.tokenizer
        ends = ends_of(model, tokenizer)
        pad, half = pad_of(tokenizer, ends), bool(self._trainer.args.bf16)

        def say(prompts: Sequence[Ids]) -> list[Drawn]:
            found: dict[int, Drawn] = {}
            was, places = model.training, [len(prompt) for prompt in prompts]
            model.eval()
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
                for batch in batches(places, self.learning.generation_batch_size, pads=self.roller.judge.pads_exactly):
                    asked = [prompts[place] for place in batch]
                    drawn = continued(
                        model, asked, self.learning.max_tokens, ends=ends, pad=pad, temperature=temperature
                    )
                    found.update(zip(batch, drawn, strict=True))
            model.train(was)
            return [found[place] for place in range(len(prompts))]

        return say


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells the school what the trainer does."""

    def __init__(self, school: _School) -> None:
        self._school = school

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A time that is over ends training at the end of a step."""
        if state.global_step % self._school.learning.updates == 0 and self._school.is_over:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """Figures of a step; those of the whole run, which come last, have another key for the loss."""
        if "loss" in logs:
            self._school.log(logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is complete."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files = sorted(path for path in folder.iterdir() if path.is_file())
        write_sealed(folder / _WHOLE, dict(zip((path.name for path in files), file_hashes(files), strict=True)))


def _newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is whole; those behind it are removed."""
    found = list(checkpoints.glob("checkpoint-*")) if checkpoints.is_dir() else []
    for folder in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if (folder / _WHOLE).is_file():
            sums = {folder / name: digest for name, digest in read_sealed(folder / _WHOLE).items()}
            if all(path.is_file() for path in sums) and first_changed(sums) is None:
                return folder
        remove(folder)
    return None
