"""Processes forked from the one that runs the tests: a new one takes ten seconds of a core to import torch and
transformers, which is not what a test is about."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

OURS = {"cli", "pipeline", "importance", "distill", "judge", "minitron"}
"""The packages that a process may forget, as if it had never imported them."""


@dataclass
class Fork:
    """A process that runs a function, and the files its streams go to."""

    pid: int
    said: Path
    code: int | None = None
    """How it ended: below zero where a signal ended it; None before `wait` or `poll` knows."""

    @property
    def stdout(self) -> str:
        return (self.said / "stdout").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return (self.said / "stderr").read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def wait(self) -> int:
        """The exit code, when it has ended."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def send_signal(self, number: int) -> None:
        """As to any process; to none where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(function: Callable[[], Any], said: Path, **environment: str) -> Fork:
    """Start `function` in a process of its own, whose streams go to files in the folder `said`; what it returns, or the
    code it exits with, is the exit code, and 1 where it raises."""
    said.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return Fork(pid, said)
    code = 1
    try:
        os.environ |= environment
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        # pytest has put others in their place.
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115, PTH123
        code = function() or 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001 -- nothing may leave the fork but its exit code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: list[str], said: Path, **environment: str) -> Fork:
    """Start `minitron ARGUMENTS`."""

    def typed() -> None:
        from cli.app import main

        sys.argv = ["minitron", *arguments]
        main()

    return fork(typed, said, **environment)


def forget() -> None:
    """Let this process import our packages anew, as a fresh one."""
    for name in list(sys.modules):
        if name.partition(".")[0] in OURS:
            del sys.modules[name]


def two(function: Callable[..., None], *given: Any) -> None:
    """Run `function(rank, *given)` in two processes; what one raises is raised here."""
    torch.multiprocessing.start_processes(function, given, nprocs=2, start_method="fork")
