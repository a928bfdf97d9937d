"""One case in a process of its own, with limits, and what it broke of the law.

The law: exit 0, 2 or 130; on 2 one line on stderr that begins with "minitron: error: ", below 500 characters and
without control characters; with --json one JSON document on stdout or nothing; nothing written but the output, which
is complete or absent; within the limits of time and memory.
"""

import json
import os
import resource
import select
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.cases import INPUTS, OUTPUTS, Case, make_case

CPU_SECONDS = 25
WALL_SECONDS = 60
MEMORY = 3 * 2**30
"""What a case may take, memory beyond what the imported packages have."""

LONGEST = 500
ERROR = "minitron: error: "


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    case: Case
    code: int
    """The exit code; the negative number of a signal."""

    seconds: float
    """On the processor."""

    broken: tuple[str, ...]
    """What it broke of the law, a word each."""

    told: str
    """The end of stderr."""


def run_case(seed: int, number: int, sound: Path, place: Path, *, keep: bool = False, debug: bool = False) -> Outcome:
    """Make a case in a folder in `place`, run it, judge it and remove the folder, unless it is to be kept."""
    folder = place / f"case-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    case = make_case(seed, number, sound, folder)
    before, there = _snapshot(folder / INPUTS), _names(folder / OUTPUTS)
    arguments = [*case.arguments, "--debug"] if debug else list(case.arguments)
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    pid = os.fork()
    if pid == 0:
        _child(arguments, folder)
    code, seconds, ended = _wait(pid)
    stdout, stderr = ((folder / name).read_bytes() for name in ("stdout", "stderr"))
    broken = [] if ended else ["hangs"]
    broken += _judged_exit(code, stderr) + _judged_text(code, stdout, stderr, arguments)
    broken += ["inputs changed"] if _snapshot(folder / INPUTS) != before else []
    broken += _judged_output(folder, code, there)
    if not keep:
        shutil.rmtree(folder)
    return Outcome(case, code, seconds, tuple(broken), stderr.decode("utf-8", "replace")[-4000:])


def _child(arguments: list[str], folder: Path) -> None:
    """Run the command line in this process, which a fork made, and leave it."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", errors="surrogateescape") for number in (1, 2))  # noqa: SIM115, PTH123
        os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "HF_HOME": str(folder / "home")}
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        from cli.app import run

        code = run(arguments)
    except BaseException:  # noqa: BLE001 -- nothing may leave the fork but its exit code
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = 1
        os._exit(code)


def _wait(pid: int) -> tuple[int, float, bool]:
    """(exit code, seconds on the processor, whether it ended by itself in time)."""
    poll = select.poll()
    poll.register(descriptor := os.pidfd_open(pid), select.POLLIN)
    ended = bool(poll.poll(WALL_SECONDS * 1000))
    if not ended:
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, ended


def _judged_exit(code: int, stderr: bytes) -> list[str]:
    if b"minitron: error: the memory of this machine is not enough" in stderr:
        return ["takes too much memory"]  # as everything here is tiny
    if code in (0, 2, 130):
        return []
    if code == -signal.SIGXCPU:
        return ["takes too long"]
    return [f"exit {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"]


def _judged_text(code: int, stdout: bytes, stderr: bytes, arguments: list[str]) -> list[str]:
    broken = []
    told = stderr.decode("utf-8", "replace").rstrip("\n").split("\n")
    if code == 2 and not stderr.startswith(b"Usage: "):
        errors = [line for line in told if line.startswith(ERROR)]
        if len(errors) != 1 or told[-1] != errors[0]:
            broken.append("not one line of error")
        elif len(errors[0]) >= LONGEST:
            broken.append("a long error")
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        found = text.decode("utf-8", "replace")
        if any(_is_control(character) for character in found):
            broken.append(f"control characters on {name}")
    if b"Traceback" in stderr and "--debug" not in arguments and code != 1:
        broken.append("a traceback")
    if "--json" in arguments and (stdout or code == 0) and not _is_json(stdout):
        broken.append("no JSON document")
    return broken


def _is_control(character: str) -> bool:
    return (
        (ord(character) < 32 and character not in "\n\r\t")
        or 127 <= ord(character) < 160
        or character in "\u202e\u2066"
    )


def _is_json(text: bytes) -> bool:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path in a folder with its size and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path)] = (state.st_size, state.st_mtime_ns if not path.is_dir() else 0)
    return found


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _judged_output(folder: Path, code: int, there: set[str]) -> list[str]:
    """Nothing beside the output, nothing left behind, and no half of it; `there` are the names that stood there."""
    expected = {INPUTS, OUTPUTS, "home", "tmp", "stdout", "stderr"}
    broken = ["wrote elsewhere"] if {path.name for path in folder.iterdir()} - expected else []
    if any((folder / "tmp").iterdir()):
        broken.append("left something in TMPDIR")
    out = folder / OUTPUTS
    names = _names(out) - there
    if any("partial" in name for name in names):
        broken.append("left something beside the output")
    made = {name for name in names if name.split(".")[0] in ("x", "out") and not name.endswith(".work")}
    if names - made - {"x.work", "out.work"}:
        broken.append("wrote beside the output")
    if code != 0 and made:
        broken.append("an output in spite of an error")
    for name in made:
        path = out / name
        if path.is_dir() and (path / "config.json").exists() and not _is_whole(path):
            broken.append("half an output")
    return broken


def _is_whole(folder: Path) -> bool:
    from minitron.errors import MinitronError
    from minitron.model.checkpoint import Checkpoint

    try:
        return bool(Checkpoint(folder).headers)
    except MinitronError:
        return False
