"""The commands that are killed, on tiny models: what they read, and what stands at their output before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tiny_models

_SCORING: Final = ("--samples", "2", "--sequence-length", "16", "--dtype", "fp32", "--layer-scores", "none")
_SCORE: Final = ("--samples", "2", "--sequence-length", "16", "--dtype", "fp32", "--layer-scores", "none")
_TRAINING: Final = (
    *("--sequence-length", "16", "--batch-tokens", "32", "--dtype", "fp32", "--learning-rate", "0.01"),
    *("--validation-sequences", "2", "--checkpoint-every", "1", "--validate-every", "1"),
)
_COMPRESS: Final = (
    *(*_SCORING, "--trial-samples", "2", "--combinations", "4"),
    *("--distill-sequence-length", "16", "--batch-tokens", "32", "--tokens", "96", "--dtype", "fp32"),
    *("--no-speed", "--evaluate", "2", "--finalists", "2", "--finalist-tokens", "32"),
)
_BUDGET: Final = (
    *("--budget", "80000", "--weights", "fp32", "--context", "32", "--lattice", "intermediate_size=32,48,64"),
)
_RECIPE: Final = """
sequence_length = 16
batch_tokens = 32
precision = "fp32"
validation_sequences = 2
checkpoint_every = 1
[[stages]]
steps = 2
[[stages]]
steps = 1
"""


@dataclass(frozen=True)
class Inputs:
    """A folder of what is read: models, texts, scores; and a sandbox of outputs, which is emptied."""

    folder: Path

    @property
    def sandbox(self) -> Path:
        """Where all outputs are."""
        return self.folder / "sandbox"

    @property
    def output(self) -> Path:
        """The output of the command."""
        return self.sandbox / "out"

    def path(self, name: str) -> str:
        """What is read."""
        return str(self.folder / name)

    def make(self) -> None:
        """Write the models and texts."""
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 96, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
        tiny_models.save_llama(self.folder / "model", **sizes)
        tiny_models.save_llama(self.folder / "student", seed=1, **(sizes | {"intermediate_size": 48}))
        tiny_models.write_text(self.folder / "text.txt", sentences=60)
        (self.folder / "recipe.toml").write_text(f'data = ["{self.folder / "text.txt"}"]\n{_RECIPE}')
        self.clear()

    def clear(self) -> None:
        """Empty the sandbox."""
        shutil.rmtree(self.sandbox, ignore_errors=True)
        self.sandbox.mkdir()


Line = Callable[[Inputs], list[str]]


def _score(inputs: Inputs, *more: str) -> list[str]:
    return ["score", inputs.path("model"), "--data", inputs.path("text.txt"), *_SCORE, "-o", str(inputs.output), *more]


def _prune(inputs: Inputs, *more: str) -> list[str]:
    how = ["--set", "intermediate_size=48", "--data", inputs.path("text.txt"), *_SCORING]
    return ["prune", inputs.path("model"), *how, "-o", str(inputs.output), *more]


def _distill(inputs: Inputs, *more: str) -> list[str]:
    models = [inputs.path("student"), "--teacher", inputs.path("model")]
    return ["distill", *models, "-o", str(inputs.output), "--device", "cpu", *more]


def _plain(inputs: Inputs, *more: str) -> list[str]:
    return _distill(inputs, "--data", inputs.path("text.txt"), "--steps", "3", *_TRAINING, *more)


def _plan(inputs: Inputs, name: str, *more: str) -> list[str]:
    budget = [*_BUDGET]
    return ["plan", inputs.path("model"), *budget, "-o", str(inputs.sandbox / name), *more]


def _quantise(inputs: Inputs, *more: str) -> list[str]:
    how = ["--format", "fp8", "--data", inputs.path("text.txt"), "--samples", "2", "--sequence-length", "32"]
    return ["quantize", inputs.path("model"), *how, "-o", str(inputs.output), *more]


def _compress(inputs: Inputs, *more: str) -> list[str]:
    how = ["--data", inputs.path("text.txt"), *_BUDGET, *_COMPRESS]
    return ["compress", inputs.path("model"), *how, "-o", str(inputs.output), *more]


COMMANDS: Final[dict[str, Line]] = {
    "plan -o FOLDER": lambda inputs: _plan(inputs, "out"),
    "plan -o FILE": lambda inputs: _plan(inputs, "out.json"),
    "score": _score,
    "score --offload": lambda inputs: _score(inputs, "--offload", "--offload-folder", str(inputs.sandbox)),
    "prune": _prune,
    "prune --overwrite": lambda inputs: _prune(inputs, "--overwrite"),
    "quantize": _quantise,
    "distill": _plain,
    "distill --overwrite": lambda inputs: _plain(inputs, "--overwrite"),
    "distill --select best": lambda inputs: _plain(inputs, "--select", "best", "--learning-rate", "3"),
    "distill --cache-teacher": lambda inputs: _plain(
        inputs, "--loss", "sampled:4", "--cache-teacher", str(inputs.sandbox / "cache")
    ),
    "distill --recipe": lambda inputs: _distill(inputs, "--recipe", inputs.path("recipe.toml")),
    "compress": _compress,
    "compress --steps-of": lambda inputs: _compress(inputs, "--steps-of", "0.1"),
}
"""Name -> command line; with --overwrite an output of other content stands there before."""


def prepare(name: str, inputs: Inputs) -> None:
    """What stands in the sandbox before a command."""
    inputs.clear()
    if name.endswith("--overwrite"):
        inputs.output.mkdir()
        (inputs.output / "config.json").write_text("{}")
        (inputs.output / "old.txt").write_text("old")
