"""The command line: what it imports, how it fails, what stands where."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import minitron
from cli import app
from cli.options import bytes_option, count_option, parse_assignments
from minitron.errors import MinitronError

CONFIG = Path(__file__).parents[1] / "reference" / "models" / "Nemotron-Nano-9B-v2.json"
HEAVY = {"torch", "transformers", "datasets", "lm_eval", "modelopt", "safetensors"}
# What --help does without as well: together they are half of its time.
NEEDED_LATER = {"numpy", "psutil"}


def python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program of a few lines in a process of its own."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def minitron_command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return python("from cli.app import main; main()", *arguments, **options)


def failing(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        """Fails."""
        raise error

    return command


def test_nothing_heavy_is_imported_by_commands_that_need_it_not() -> None:
    lines = [
        *(["--help"], *([name, "--help"] for name in app.COMMANDS)),
        ["inspect", str(CONFIG)],
        ["plan", str(CONFIG), "--gpu", "A10G", "--context", "128k"],
    ]
    done = python(
        """
        import contextlib, io, json, sys
        from cli.app import run
        for line in json.loads(sys.argv[1]):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                code = run(line)
            modules = {name.partition(".")[0] for name in sys.modules}
            print(json.dumps([line, code, bool(said.getvalue()), sorted(modules)]))
        """,
        json.dumps(lines),
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line, *_ in told] == lines, done.stderr
    for line, code, said, modules in told:
        assert (code, said) == (0, True), line
        forbidden = HEAVY | NEEDED_LATER if "--help" in line else HEAVY
        assert forbidden.isdisjoint(modules), line


def test_help_names_every_command_and_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--help"]) == 0
    told = capsys.readouterr().out
    for name, function in app.COMMANDS.items():
        assert f" {name} " in told
        assert (function.__doc__ or "").split()[:3] != []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"minitron {minitron.__version__}\n"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "cli", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"minitron {minitron.__version__}\n")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MinitronError("the model is gone; bring it back."), 2, "the model is gone; bring it back."),
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 2, "the disk is full (/out/x); free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full; free some space"),
        (ZeroDivisionError("division by\nzero"), 1, "unexpected ZeroDivisionError: division by zero (run again with"),
        (AssertionError(), 1, "unexpected AssertionError (run again with --debug"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "x: it does not exist; check the path."),
        (OSError(errno.ELOOP, "loop", "x"), 2, "x: its symbolic links lead in a circle; correct them."),
        (OSError(errno.EPIPE + 10_000, "strange", "x"), 2, "x: "),
        (OSError("8 requested and 4 written"), 2, "the disk is full; free some space"),
        (MemoryError(), 2, "the memory of this machine is not enough; "),
        (np.linalg.LinAlgError("Singular matrix"), 2, "a matrix of the scores or weights cannot be solved for"),
        (GeneratorExit("a panic is no Exception"), 1, "unexpected GeneratorExit: a panic is no Exception"),
        (
            MinitronError("a \x1b[31mname\x1b]0;x\x07\u202e\ud800 of\na tensor"),
            2,
            r"a \x1b[31mname\x1b]0;x\x07\u202e\ud800",
        ),
    ],
)
def test_an_error_is_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, told: str
) -> None:
    monkeypatch.setitem(app.COMMANDS, "demo", failing(error))
    assert app.run(["demo"]) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith(f"minitron: error: {told}")
    assert seen.err.count("\n") == 1


def test_a_long_error_keeps_its_beginning_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x\x1b" * 5000
    monkeypatch.setitem(app.COMMANDS, "demo", failing(MinitronError(f"the name {name} is long; shorten it.")))
    assert app.run(["demo"]) == 2
    told = capsys.readouterr().err
    assert len(told) < 500 and told.isprintable() is False and told[:-1].isprintable()
    assert told.startswith("minitron: error: the name x") and told.endswith(" is long; shorten it.\n")


@pytest.mark.parametrize("arguments", [["demo", "--debug"], ["--debug", "demo"]])
@pytest.mark.parametrize(("error", "code"), [(MinitronError("mend it."), 2), (ValueError("odd"), 1)])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: Exception,
    code: int,
) -> None:
    monkeypatch.setitem(app.COMMANDS, "demo", failing(error))
    assert app.run(arguments) == code
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert "in command" in told
    assert told.splitlines()[-1].startswith("minitron: error: ")
    # The next command line of this process is not in debug mode.
    assert app.run(["demo"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_control_c_leaves_with_130() -> None:
    code = """
        import os, signal, time
        # What a shell starts in the background, and with it the tests, ignores the signal from the start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from cli import app
        def command() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        app.COMMANDS["demo"] = command
        app.main()
    """
    done = python(code, "demo")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert signal.SIGINT + 128 == 130


def test_libraries_are_quiet_and_bounded_unless_told_otherwise() -> None:
    # What a child process, such as the one that measures speed, gets as well; read before torch is there.
    code = """
        import os, sys
        from cli import app
        NAMES = "OMP_WAIT_POLICY", "TRANSFORMERS_VERBOSITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
        def command() -> None:
            print(*(os.environ[name] for name in NAMES), "torch" in sys.modules)
        app.COMMANDS["demo"] = command
        app.main()
    """
    unset = ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = python(code, "demo", env=environment | {"TRANSFORMERS_VERBOSITY": "debug", "LRU_CACHE_CAPACITY": "7"})
    assert done.stdout == "passive debug 128 7 False\n"


@pytest.mark.parametrize("arguments", [["prun"], ["inspect"], ["inspect", str(CONFIG), "--jsno"], ["--nothing"]])
def test_a_wrong_command_line_leaves_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(arguments) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "Usage: minitron" in seen.err


def test_a_typo_suggests_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    app.run(["prun"])
    assert "'prune'" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", "from cli.app import main; main()", "inspect", str(CONFIG), "--json"],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_a_full_disk_under_stdout_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from cli.app import main; main()", "inspect", str(CONFIG), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "minitron: error: the disk is full; free some space or choose another output.\n"


def test_json_is_one_document_and_nothing_else() -> None:
    done = minitron_command("inspect", str(CONFIG), "--json")
    assert done.returncode == 0
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stderr == ""


def test_completion_is_offered() -> None:
    # What the shell calls when a person types `minitron ins<TAB>`.
    environment = os.environ | {"_MINITRON_COMPLETE": "complete_bash", "COMP_WORDS": "minitron ins", "COMP_CWORD": "1"}
    assert minitron_command(env=environment).stdout.strip() == "inspect"
    environment |= {"COMP_WORDS": "minitron plan m --gpu jets", "COMP_CWORD": "4"}
    assert minitron_command(env=environment).stdout.split("\n")[0].startswith("Jetson AGX")


def test_sizes_are_read_and_defaults_pass() -> None:
    assert bytes_option("1.3GiB") == 1_395_864_371
    assert bytes_option(7) == 7
    assert count_option("128k") == 131_072
    with pytest.raises(MinitronError):
        count_option("many")


def test_assignments() -> None:
    assert parse_assignments("--set", ["hidden_size=448", " ffn = 3x "]) == {"hidden_size": "448", "ffn": "3x"}
    assert parse_assignments("--set", []) == {}
    for bad in (["hidden_size"], ["=3"], ["hidden_size="]):
        with pytest.raises(MinitronError, match="NAME=VALUE"):
            parse_assignments("--set", bad)
    with pytest.raises(MinitronError, match=r"gives a twice \(1 and 2\)"):
        parse_assignments("--set", ["a=1", "a=2"])
