"""How good a judge is: its accuracy on preference pairs, by two turns and by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from judge.instructions import read_instructions
from minitron.errors import MinitronError, require_known, require_least
from minitron.files import write_json
from minitron.measure.records import Source
from minitron.progress import Note, Progress, no_note, silent
from pipeline.judging import RESULTS, Ruling, judged_into, opened, speaker_of

if TYPE_CHECKING:
    from judge.judging import Judged

Turns = Literal["both", "two", "one"]
"""Whether a judge reads twice, once, or is tried in both ways."""

_COUNTS: Final[Mapping[str, tuple[tuple[str, int], ...]]] = {
    "both": (("two_turns", 2), ("one_turn", 1)),
    "two": (("two_turns", 2),),
    "one": (("one_turn", 1),),
}


@dataclass(frozen=True)
class Benchmarking:
    """A judge and the pairs that it is tried on."""

    benchmark: Path
    """A file or folder of pairs, in a layout of judge.benchmark."""

    output: Path
    """The folder of the run."""

    ruling: Ruling

    samples: int | None = None
    """Rows, at most, spread over the file; None is all."""

    turns: Turns = "both"

    def __post_init__(self) -> None:
        require_least(self, {"samples": 1})
        require_known(self, {"turns": get_args(Turns)})

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside files, as JSON."""
        return {"samples": self.samples, "turns": self.turns, "ruling": self.ruling.settings}


@dataclass(frozen=True)
class Benchmarked:
    """How good the judge is."""

    output: Path
    results: Mapping[str, Any]
    """As in results.json: `judge`, `layout`, and `two_turns`, `one_turn` as they were tried."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return dict(self.results)


def benchmark(
    request: Benchmarking, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note
) -> Benchmarked:
    """Let a judge rule on pairs of which the better answer is known; called again it goes on after a stop.

    Broken formats are wrong.  Raises MinitronError as `judge` does."""
    from judge.benchmark import Accuracy, read_benchmark
    from judge.judging import judge_contests

    ruling = request.ruling
    instructions = read_instructions(ruling.instructions)
    pairs = read_benchmark(request.benchmark, request.samples)
    asked = {"benchmark": Source(str(request.benchmark)).fingerprint()} | request.settings
    with opened(request.output, ruling, asked, [request.benchmark], overwrite) as kept:
        document: dict[str, Any] = {"judge": "", "layout": pairs.layout, "without_preference": pairs.without_preference}
        broken = []
        with speaker_of(ruling, ruling.judge, ruling.speaking, "judge", progress, note) as speaker:
            document["judge"] = speaker.name
            for name, turns in _COUNTS[request.turns]:

                def run(advance: Any, turns: int = turns) -> Iterator[Judged]:
                    return judge_contests(pairs.contests, speaker, instructions, kept, turns=turns, advance=advance)

                accuracy = Accuracy()
                file = request.output / f"transcripts-{name.replace('_', '-')}.jsonl"
                judged_into(file, pairs.contests, run, progress, [accuracy.add], turns)
                document[name] = accuracy.to_json()
                broken.append(accuracy.results.all_broken)
        write_json(request.output / RESULTS, document)
        if all(broken):
            reason = next(iter(document[_COUNTS[request.turns][0][0]]["broken_reasons"]))
            raise MinitronError(
                f"the judge never kept to the format (the most common: {reason}); read the transcripts in "
                f"{request.output}, and choose another judge, more --judge-tokens or other --instructions."
            )
    return Benchmarked(request.output, document)
