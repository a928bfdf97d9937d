"""Kill, run again, compare: each kill is a process forked from one that has imported everything."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kills.changes import Changes, stop_clocks
from kills.commands import COMMANDS, Inputs, prepare

_LIMIT: Final = 300.0
"""Seconds after which a process that should have ended is killed and told of."""

_MODULES: Final = (
    *("distill.run.stages", "distill.run.train", "importance.score.calibrate", "importance.search.sieves"),
    *(
        "minitron.cut.prune",
        "minitron.measure.evaluate",
        "minitron.report.html",
        "pipeline.chain",
        "pipeline.finalists",
    ),
)
_SPECIAL: Final = ".told"


@dataclass(frozen=True)
class Kill:
    """One kill."""

    command: str
    number: int
    """Changes before it."""

    torn: bool
    """Whether the file that is opened next is half written."""

    change: str
    """What was about to be changed."""


@dataclass
class Findings:
    """What came of some kills."""

    tried: Counter[str] = field(default_factory=Counter)
    """By command."""

    codes: Counter[str] = field(default_factory=Counter)
    """How the command ended that was run again."""

    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The findings as lines of text."""
        lines = [f"{count:6} kills of {name}" for name, count in sorted(self.tried.items())]
        lines += [f"{count:6} times {code} when run again" for code, count in sorted(self.codes.items())]
        kinds = Counter(line.partition(":")[0] for line in self.violations)
        lines += [f"{kinds[kind]:6} {kind}" for kind in ("other exit codes", "differences", "leftovers", "hangs")]
        return "\n".join([f"{self.tried.total():6} kills tried", *lines, *self.violations])


class Campaign:
    """The commands on the inputs in a folder, and how they end undisturbed."""

    def __init__(self, folder: Path, commands: list[str] | None = None) -> None:
        self.inputs = Inputs(folder)
        self.inputs.make()
        self.whole: dict[str, dict[str, bytes]] = {}
        self.changes: dict[str, list[str]] = {}
        self._import()
        for name in commands or list(COMMANDS):
            prepare(name, self.inputs)
            code = self.run(name, counts=True)
            if code != 0:
                raise RuntimeError(f"{name} ended with {code} undisturbed: {self._told()}")
            self.whole[name] = _contents(self.inputs.sandbox)
            self.changes[name] = json.loads((self.inputs.folder / "changes.json").read_text())

    def kills(self) -> Iterator[Kill]:
        """Every kill there is."""
        for name, changes in self.changes.items():
            for number, change in enumerate(changes):
                yield Kill(name, number, False, change)
                if change.startswith(("open ", "safetensors ")):
                    yield Kill(name, number, True, change)

    def sample(self, count: int, seed: int) -> list[Kill]:
        """So many of them, all commands in turn, or all where there are no more."""
        chance = random.Random(seed)
        rows = {name: [kill for kill in self.kills() if kill.command == name] for name in self.changes}
        for row in rows.values():
            chance.shuffle(row)
        found: list[Kill] = []
        while len(found) < count and any(rows.values()):
            found += [row.pop() for row in rows.values() if row]
        return found[:count]

    def try_all(self, kills: list[Kill], findings: Findings) -> None:
        """Carry out kills, and add what came of them."""
        for kill in kills:
            prepare(kill.command, self.inputs)
            findings.tried[kill.command] += 1
            where = f"{kill.command}, killed before change {kill.number}{' torn' if kill.torn else ''} ({kill.change})"
            died = self.run(kill.command, kill=kill)
            if died not in (-signal.SIGKILL, 0):
                findings.violations.append(f"other exit codes: {where}: {died} before the kill: {self._told()}")
            code = self.run(kill.command)
            told = self._told()
            done = code == 2 and "exists already" in told
            findings.codes[f"exit {code}{' (exists already)' if done else ''}"] += 1
            if code is None:
                findings.violations.append(f"hangs: {where}")
            elif code != 0 and not done:
                findings.violations.append(f"other exit codes: {where}: {code}: {told}")
            self._compare(kill.command, where, findings)

    def _compare(self, name: str, where: str, findings: Findings) -> None:
        wanted, found = self.whole[name], _contents(self.inputs.sandbox)
        apart = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        extra = [path for path in apart if path not in wanted]
        other = [path for path in apart if path in wanted]
        if other:
            findings.violations.append(f"differences: {where}: {', '.join(other[:5])}")
        if extra:
            findings.violations.append(f"leftovers: {where}: {', '.join(extra[:5])}")

    def _import(self) -> None:
        """Import what commands need, here, once for all processes that are forked."""
        from minitron.model.loading import load_model, load_tokenizer

        for module in _MODULES:
            importlib.import_module(module)
        for folder in ("model", "student"):
            load_model(Path(self.inputs.path(folder)))
            load_tokenizer(Path(self.inputs.path(folder)))

    def run(self, name: str, *, kill: Kill | None = None, counts: bool = False) -> int | None:
        """Run a command in a process of its own: its exit code, below zero where a signal ended it; None where it did
        not end."""
        process = os.fork()
        if process == 0:
            self._child(name, kill, counts)
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None

    def _child(self, name: str, kill: Kill | None, counts: bool) -> None:
        code = 1
        try:
            told = os.open(self.inputs.folder / _SPECIAL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(told, 1)
            os.dup2(told, 2)
            # pytest has put others in their place.
            sys.stdout = sys.stderr = os.fdopen(told, "w", buffering=1)
            from cli.app import run

            stop_clocks()
            changes = None
            if counts or kill is not None:
                last = None if kill is None else kill.number
                changes = Changes(self.inputs.sandbox, last, torn=kill is not None and kill.torn)
            code = run(COMMANDS[name](self.inputs))
            if changes is not None and counts:
                changes.write(self.inputs.folder / "changes.json")
        finally:
            os._exit(code)

    def _told(self) -> str:
        """What the last process said, its last line."""
        lines = (self.inputs.folder / _SPECIAL).read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-4:])


def _contents(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file below a folder; of a folder and a link what it is."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}".encode()
        else:
            found[name] = b"folder" if path.is_dir() else path.read_bytes()
    return found
