"""A sample of the campaign: `make fuzz N=10000` runs more of the same, and other seeds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.campaign import outcomes, sound_inputs, told
from fuzz.cases import KINDS, make_case
from fuzz.runner import run_case

CASES = 300
AT_ONCE = 15
QUICK = 75
"""So many are tried every time, each kind of input among them, and the others with the slow tests."""

SEED = 0
STARTS = [pytest.param(start, marks=() if start < QUICK else pytest.mark.slow) for start in range(0, CASES, AT_ONCE)]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sound inputs."""
    place = tmp_path_factory.mktemp("fuzz")
    sound_inputs(place)
    return place


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Libraries say much about damaged files."""
    import logging

    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("start", STARTS)
def test_damaged_inputs_end_with_one_clear_sentence(start: int, place: Path) -> None:
    broken = [told(one) for one in outcomes(SEED, range(start, start + AT_ONCE), place) if one.broken]
    assert not broken, "\n".join(broken)


def test_a_case_is_the_same_every_time(place: Path, tmp_path: Path) -> None:
    made = [
        make_case(SEED, number, place / "corpus", tmp_path / f"{turn}-{number}") for turn in "ab" for number in (1, 2)
    ]
    assert made[:2] == made[2:]
    files = [
        [path.read_bytes() for path in sorted((tmp_path / f"{turn}-1").rglob("*")) if path.is_file()] for turn in "ab"
    ]
    assert files[0] == files[1] != []


def test_every_kind_of_input_is_tried(place: Path, tmp_path: Path) -> None:
    tried = {make_case(SEED, number, place / "corpus", tmp_path / str(number)).kind for number in range(QUICK)}
    assert tried == set(KINDS)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ZeroDivisionError", "exit 1"),
        ("raise MinitronError('a' * 600)", ""),
        ("print('{'); raise MinitronError('x')", "no JSON document"),
        ("import pathlib; pathlib.Path('in/more').touch()", "inputs changed"),
        ("import pathlib; pathlib.Path('more').touch()", "wrote elsewhere"),
        ("import pathlib; pathlib.Path('out/more').touch()", "wrote beside the output"),
        ("import pathlib; pathlib.Path('out/x').touch(); raise MinitronError('x')", "an output in spite of an error"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import sys; sys.stderr.write('\\x1b[31m')", "control characters on stderr"),
        ("bytearray(2**33)", "takes too much memory"),
    ],
)
def test_what_breaks_the_law_is_seen(
    body: str, words: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command is replaced by one that breaks the law in a way of its own."""
    from cli import app
    from minitron.errors import MinitronError

    def command(*_: object) -> int:
        exec(body, {"MinitronError": MinitronError})
        return 0

    monkeypatch.setattr(app, "_call", command)
    number = next(n for n in range(1000) if "--json" in run_line(n, place, tmp_path))
    broken = run_case(SEED, number, place / "corpus", tmp_path).broken
    assert words in broken if words else "a long error" not in broken


def run_line(number: int, place: Path, folder: Path) -> tuple[str, ...]:
    return make_case(SEED, number, place / "corpus", folder / f"line-{number}").arguments
