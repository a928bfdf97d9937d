"""Judge: a student's answers against its teacher's, and how good a judge is.

The folder of a run: run.json (what was asked for), replies.jsonl (what models and judge said, by content: a run that
was killed asks nothing twice), answers-student.jsonl and answers-teacher.jsonl, transcripts.jsonl (both orders of every
pair, with all that was asked and said), results.json and report.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distill.policy import KEY
from judge.endpoint import Asking, Endpoint, is_url, parse_url
from judge.instructions import Instructions, read_instructions
from judge.replies import Replies
from judge.speaking import Reply, Speaker, Speaking, ask
from minitron.errors import MinitronError, require_least
from minitron.files import new_file, sole, write_json
from minitron.measure.options import Dtype
from minitron.measure.records import Source
from minitron.progress import Note, Progress, no_note, silent
from minitron.run_folder import RunFolder

if TYPE_CHECKING:
    from judge.contests import Contest
    from judge.judging import Judged
    from judge.questions import Question
    from judge.results import Results

RUN: Final = "run.json"
REPLIES: Final = "replies.jsonl"
TRANSCRIPTS: Final = "transcripts.jsonl"
RESULTS: Final = "results.json"
PAGE: Final = "report.html"
STUDENT, TEACHER = "student", "teacher"

_LEFT: Final = (RUN, REPLIES, "transcripts*.jsonl", RESULTS, PAGE, "answers-*.jsonl")
"""What a run leaves in its folder."""

KEYS: Final = {
    STUDENT: KEY,
    TEACHER: "MINITRON_TEACHER_KEY",
    "judge": "MINITRON_JUDGE_KEY",
}
"""Who -> the environment variable that holds its endpoint's key."""


@dataclass(frozen=True)
class Ruling:
    """The judge, and how it is asked."""

    judge: str
    """A checkpoint folder, a name on the hub, or URL#MODEL of an endpoint."""

    instructions: Path | None = None
    """A file of instructions; None is our own."""

    speaking: Speaking = field(default_factory=lambda: Speaking(max_tokens=2048))
    """How it speaks."""

    asking: Asking = field(default_factory=Asking)
    """How endpoints are asked, those of answers too."""

    cache: Path | None = None
    """A file in which replies are kept; None is in the output, for it alone."""

    dtype: Dtype = "bf16"
    """The numbers that models compute in here."""

    batch_size: int = 8
    """Conversations in one pass of a model here."""

    device: str | None = None
    """Where models run, as torch spells it; None is the first GPU, or else the CPU."""

    def __post_init__(self) -> None:
        require_least(self, {"batch_size": 1})
        _checked(self.judge)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as JSON; a place, a device and how often an endpoint is asked change nothing."""
        found = read_instructions(self.instructions).fingerprint
        about = {"judge": self.judge, "instructions": found, "speaking": asdict(self.speaking)}
        return about | {"dtype": self.dtype, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Judging:
    """Answers of two models to the same prompts, judged."""

    prompts: Path
    """The questions: a file or a folder."""

    output: Path
    """The folder of the run."""

    ruling: Ruling

    student: str | None = None
    """A checkpoint folder, a name on the hub, or URL#MODEL of an endpoint; None where its answers are given."""

    teacher: str | None = None
    """The same of the model that it is compared with."""

    answers_student: Path | None = None
    """The student's answers, where they are there already."""

    answers_teacher: Path | None = None

    samples: int | None = None
    """Prompts, at most, spread over the file; None is all."""

    answering: Speaking = field(default_factory=Speaking)
    """How both models answer."""

    report: Path | None = None
    """The folder of a plan's report, to which the outcome is added."""

    def __post_init__(self) -> None:
        require_least(self, {"samples": 1})
        for who, model, answers in (
            (STUDENT, self.student, self.answers_student),
            (TEACHER, self.teacher, self.answers_teacher),
        ):
            if model is None and answers is None:
                flag = "STUDENT" if who == STUDENT else "--teacher MODEL"
                raise MinitronError(f"there is no {who}; give {flag}, or its answers with --answers-{who}.")
            if model is not None:
                _checked(model)
        if self.samples is not None and (self.answers_student or self.answers_teacher):
            raise MinitronError("--samples chooses among the prompts, and answers are given for all of them; drop it.")

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for beside files, as JSON."""
        return {
            STUDENT: self.student,
            TEACHER: self.teacher,
            "samples": self.samples,
            "answering": asdict(self.answering),
            "ruling": self.ruling.settings,
        }


@dataclass(frozen=True)
class Judgement:
    """What judging left."""

    output: Path
    results: Mapping[str, Any]
    """As in results.json: `student`, `teacher`, `judge`, `verdict`, `answers`, `tokens`."""

    def to_json(self) -> dict[str, Any]:
        """The results of the command."""
        return dict(self.results)


def judge(request: Judging, *, overwrite: bool = False, progress: Progress = silent, note: Note = no_note) -> Judgement:
    """Let both models answer the prompts, and the judge compare the answers in both orders; called again it goes on
    after a stop.

    Raises MinitronError where the inputs do not fit each other, an endpoint fails, the folder is another run's, or the
    judge never keeps to the format: the transcripts of that are written first."""
    from judge.contests import Contest
    from judge.judging import judge_contests
    from judge.questions import read_answers, read_questions
    from judge.results import Results, answer_facts, lengths
    from judge.telling import Telling
    from minitron.report.document import require_report

    if request.report is not None:
        require_report(request.report)
    instructions = read_instructions(request.ruling.instructions)
    # Before the folder is opened: what cannot be read leaves nothing there.
    questions = read_questions(request.prompts, request.samples)
    for path in (request.answers_student, request.answers_teacher):
        if path is not None:
            read_answers(path, questions)
    files = {
        "prompts": request.prompts,
        "answers_student": request.answers_student,
        "answers_teacher": request.answers_teacher,
    }
    given = {name: path for name, path in files.items() if path is not None}
    asked = {name: Source(str(path)).fingerprint() for name, path in given.items()} | request.settings
    with opened(request.output, request.ruling, asked, list(given.values()), overwrite) as kept:
        answers = {who: _answers(request, who, questions, kept, progress, note) for who in (STUDENT, TEACHER)}
        contests = [
            Contest(question.conversation, (one.text, other.text), question.where, _groups(question))
            for question, one, other in zip(questions, answers[STUDENT], answers[TEACHER], strict=True)
        ]
        ruling = request.ruling
        with speaker_of(ruling, ruling.judge, ruling.speaking, "judge", progress, note) as speaker:
            about = {"judge": speaker.name, **{who: _name(request, who) for who in answers}}

            def run(advance: Any) -> Iterator[Judged]:
                return judge_contests(contests, speaker, instructions, kept, advance=advance)

            results, telling = Results(), Telling()
            judged_into(request.output / TRANSCRIPTS, contests, run, progress, [results.add, telling.add])
        document = {
            **about,
            "verdict": results.to_json(),
            "answers": {who: answer_facts(replies) for who, replies in answers.items()},
            "tokens": lengths(answers[STUDENT], answers[TEACHER]),
        }
        _written(request.output, document, telling.found(), request.report)
        _require_format(results, request.output)
    return Judgement(request.output, document)


def judge_models(
    models: Sequence[Path],
    against: Path | None,
    prompts: Path,
    ruling: Ruling,
    output: Path,
    *,
    answering: Speaking | None = None,
    progress: Progress = silent,
    note: Note = no_note,
) -> dict[Path, Judgement]:
    """Judge each of `models` against one, which is left out where it is among them, each in a folder of its own in
    `output`; what the teacher said is kept for all."""
    from minitron.model.sources import title

    if against is None:
        raise MinitronError("--judge compares with a teacher; give --teacher MODEL.")
    shared = replace(ruling, cache=ruling.cache or output / REPLIES)
    found = {}
    for number, model in enumerate(models, 1):
        if model != against:
            folder = output / f"{number}-{title(model)}"
            how = answering or Speaking()
            asked = Judging(prompts, folder, shared, student=str(model), teacher=str(against), answering=how)
            found[model] = judge(asked, progress=progress, note=note)
    return found


def _groups(question: Question) -> tuple[str, ...]:
    return (question.group,) if question.group else ()


def judged_into(
    path: Path,
    contests: Sequence[Contest],
    run: Callable[[Any], Iterator[Judged]],
    progress: Progress,
    told: Sequence[Callable[[Judged], None]],
    turns: int = 2,
) -> None:
    """Judge, write the transcripts to `path`, and tell each of `told` of every pair."""
    from judge.judging import calls

    with (
        progress("judging", calls(contests, turns), "replies") as advance,
        new_file(path) as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        for judged in run(advance):
            file.write(json.dumps(transcript(judged)) + "\n")
            for one in told:
                one(judged)


def transcript(judged: Judged) -> dict[str, Any]:
    """A line of the transcripts: all that was asked and said of a pair."""
    contest = judged.contest
    return {
        "where": contest.where,
        "groups": list(contest.groups),
        "question": list(contest.question),
        "answers": list(contest.answers),
        "outcome": judged.outcome,
        "verdicts": [verdict.to_json() for verdict in judged.verdicts],
    }


def _written(
    output: Path, document: Mapping[str, Any], telling: Sequence[Mapping[str, Any]], report: Path | None
) -> None:
    from minitron.report.document import add_part
    from minitron.report.judged import judged_document, write_page

    shown = judged_document(document, telling)
    write_page(output / PAGE, shown)
    if report is not None:
        add_part(report, "judged", shown)
    write_json(output / RESULTS, document)


def _require_format(results: Results, output: Path) -> None:
    if results.all_broken:
        reason = next(iter(results.to_json()["broken_reasons"]))
        raise MinitronError(
            f"the judge kept to the format in none of {results.verdicts:,} verdicts (mostly: {reason}); "
            f"read {output / TRANSCRIPTS}, and choose another judge, more --judge-tokens or other --instructions."
        )


@contextmanager
def opened(
    output: Path, ruling: Ruling, asked: Mapping[str, Any], inputs: Sequence[Path], overwrite: bool
) -> Iterator[Replies]:
    """The folder of a run, held; and what was said already."""
    # Two runs would write into each other's lines.
    with sole(output, *([] if ruling.cache is None else [ruling.cache])):
        run = RunFolder(output, RUN, "the folder of a judging", _LEFT)
        run.open(lambda before: asked, overwrite=overwrite, inputs=tuple(inputs))
        yield Replies(ruling.cache or output / REPLIES)


def _answers(
    request: Judging, who: str, questions: Sequence[Question], kept: Replies, progress: Progress, note: Note
) -> list[Reply]:
    """The answers of one of the two, which are left in the folder too."""
    from judge.questions import read_answers

    given = request.answers_student if who == STUDENT else request.answers_teacher
    model = request.student if who == STUDENT else request.teacher
    if given is not None:
        return read_answers(given, questions)
    assert model is not None  # checked by the request
    conversations = [question.conversation for question in questions]
    with (
        speaker_of(request.ruling, model, request.answering, who, progress, note) as speaker,
        progress(f"answers of the {who}", len(questions), "answers") as advance,
    ):
        found = ask(speaker, conversations, kept, advance)
    for question, reply in zip(questions, found, strict=True):
        if reply.refused:
            raise MinitronError(
                f"the {who} cannot answer {question.where}: {reply.refused}; remove it, or lower --answer-tokens."
            )
    if request.answering.max_thinking_tokens is not None and not any(reply.thinking_tokens for reply in found):
        note(
            f"The {who} did not think before it answered, as far as can be told: --answer-thinking-tokens changed "
            "nothing."
        )
    with new_file(request.output / f"answers-{who}.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for question, reply in zip(questions, found, strict=True):
            file.write(json.dumps(question.row(reply)) + "\n")
    return found


def _name(request: Judging, who: str) -> str:
    from minitron.model.sources import title

    model = request.student if who == STUDENT else request.teacher
    given = request.answers_student if who == STUDENT else request.answers_teacher
    if model is None:
        assert given is not None
        return given.name
    return model if is_url(model) else title(Path(model))


@contextmanager
def speaker_of(
    ruling: Ruling, place: str, speaking: Speaking, who: str, progress: Progress, note: Note
) -> Iterator[Speaker]:
    """Whoever answers there; a model of a folder is freed afterwards."""
    if is_url(place):
        yield Endpoint(place, speaking, ruling.asking, KEYS[who])
        return
    from judge.local import LocalModel
    from minitron.model.sources import local_folder
    from minitron.model.stored import require_readable

    require_readable(Path(place))
    folder = local_folder(Path(place), progress, note)
    model = LocalModel(folder, speaking, ruling.dtype, ruling.device, ruling.batch_size)
    try:
        yield model
    finally:
        model.close()


def _checked(place: str) -> None:
    if is_url(place):
        parse_url(place)


__all__ = ["Asking", "Instructions", "Judgement", "Judging", "Ruling", "Speaking", "judge", "transcript"]
