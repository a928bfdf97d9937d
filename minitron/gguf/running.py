"""A GGUF file run by llama.cpp (PyPI: xllamacpp) on the CPU: what it says next, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from minitron.errors import MinitronError
from minitron.foreign import told
from minitron.gguf.extra import engine

_QUIET: Final = -1
_REMEDY: Final = "export it again, with the versions that pyproject.toml names"


def opened(path: Path, context: int = 512, *, threads: int = 1, verbosity: int = _QUIET) -> Any:
    """llama.cpp's server with the file, answering in this process; states and compute buffer for one sequence."""
    xllamacpp = engine()
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.warmup = settings.fit_params = settings.endpoint_metrics = False
    settings.verbosity = verbosity
    with told(f"llama.cpp does not load {path}", _REMEDY):
        return xllamacpp.Server(settings)


def continued(server: Any, prompt: Sequence[int], tokens: int) -> list[tuple[int, float]]:
    """The likeliest tokens behind the token ids of `prompt`, each with its log-probability in nats."""
    answer = server.handle_completions(
        {
            "prompt": [int(token) for token in prompt],
            "n_predict": tokens,
            "temperature": 0.0,
            "n_probs": 1,
            "cache_prompt": False,
            "ignore_eos": False,
        }
    )
    if "choices" not in answer:
        raise MinitronError(f"llama.cpp does not answer ({answer!r:.200}); {_REMEDY}.")
    content = answer["choices"][0]["logprobs"]["content"]
    return [(int(one["id"]), float(one["logprob"])) for one in content]


def distribution(server: Any, prompt: Sequence[int], vocabulary: int, printable: int) -> list[float]:
    """The log-probability of every token behind the token ids of `prompt`.

    The server leaves out tokens that are half a character, so that it is made to say the token `printable`; the
    probabilities are those from before."""
    answer = server.handle_completions(
        {
            "prompt": [int(token) for token in prompt],
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": vocabulary,
            "cache_prompt": True,
            "logit_bias": [[printable, 1000.0]],
        }
    )
    if "choices" not in answer:
        raise MinitronError(f"llama.cpp does not answer ({answer!r:.200}); {_REMEDY}.")
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = [float("-inf")] * vocabulary
    for one in likely:
        found[int(one["id"])] = float(one["logprob"])
    return found
