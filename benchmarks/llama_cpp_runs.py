"""A GGUF file run by llama.cpp (PyPI: xllamacpp) on the CPU: what it says next, token by token, and its buffers.

    python benchmarks/llama_cpp_runs.py llama-server -m model.gguf -c 4096 ...

loads what such a line asks for, read by llama.cpp's own parser, and prints its log.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
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


_PARSE: Final = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
"""common_params_parse(int, char **, common_params &, llama_example, void (*)(int, char **)) of common/arg.cpp."""

_SERVER: Final = 7
"""LLAMA_EXAMPLE_SERVER."""

_HEADER: Final = 16
"""Bytes of a Python object in front of what an xllamacpp.CommonParams holds: a common_params."""

_LOUD: Final = 4
_BUFFER: Final = re.compile(r"(?<!REPACK )(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")


def parsed(words: Sequence[str]) -> Any:
    """The settings that llama-server takes from a command line, by llama.cpp's own parser."""
    xllamacpp = engine()
    (library,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    parse = ctypes.CDLL(str(library))[_PARSE]
    parse.restype = ctypes.c_bool
    settings = xllamacpp.CommonParams()
    given = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words), None)
    if not parse(len(words), given, ctypes.c_void_p(id(settings) + _HEADER), _SERVER, None):
        raise MinitronError(f"llama-server does not take {' '.join(words)}.")
    return settings


def buffers(words: Sequence[str]) -> dict[str, float]:
    """name -> MiB of the buffers of which llama.cpp's log tells where a `llama-server` line is run, in a process of its
    own."""
    line = [sys.executable, __file__, *words]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    found: dict[str, float] = {}
    for name, size in _BUFFER.findall(ran.stdout + ran.stderr):
        found[name] = found.get(name, 0.0) + float(size)
    if ran.returncode or "compute" not in found:
        raise MinitronError(f"llama.cpp did not load it: {(ran.stdout + ran.stderr)[-500:]}")
    return found


def main() -> None:
    """Load what the command line asks for, and end before anything is served."""
    settings = parsed(sys.argv[1:])
    settings.warmup = settings.fit_params = settings.endpoint_metrics = False
    settings.verbosity = _LOUD
    server = engine().Server(settings)
    sys.stderr.flush()
    # Its threads are still at work; nothing is kept.
    os._exit(0 if server is not None else 1)


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


if __name__ == "__main__":
    main()
