"""The model card of a distilled checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.run import mtp, router_load
from distill.run.range_test import RangeTest
from distill.run.tasks import task_metrics
from minitron.escapes import code, markdown
from minitron.model.sources import title
from minitron.units import format_bytes

if TYPE_CHECKING:
    from distill.run.result import DistillResult
    from minitron.quantise.wanted import Wanted


def model_card(
    student: Path,
    teacher: Path,
    source: Mapping[str, Any],
    result: "DistillResult",
    earlier: Sequence["DistillResult"] = (),
    wanted: "Wanted | None" = None,
) -> str:
    """The README.md: from what, how, on what, and what came of it; `source` is distill.text.data.Text's, `earlier` are
    the stages before, `wanted` the formats of a student in fewer bits."""
    recipe = result.recipe
    before, after = result.curve[0], result.selected
    lines = [
        "---",
        "tags: [minitron, distilled]",
        "---",
        f"# {markdown(title(student))}, distilled",
        "",
        f"{code(title(student))}, trained by Minitron on the logits of {code(title(teacher))} "
        f"({result.teacher_precision}): {result.steps:,} steps of {recipe.batch_tokens:,} tokens, "
        f"{result.tokens:,} tokens in all.",
        "",
        "| held-out text | before | after | teacher |",
        "|---|---|---|---|",
        f"| KL(teacher \\|\\| student), nats | {before['kl']:.4f} | {after['kl']:.4f} | 0 |",
        f"| same likeliest next token | {before['top1_agreement']:.2%} | {after['top1_agreement']:.2%} | 100% |",
        f"| perplexity | {before['perplexity']:.3f} | {after['perplexity']:.3f} | {result.perplexity_teacher:.3f} |",
        "",
    ]
    for metric, value in task_metrics(after).items():
        lines.insert(-1, f"| {markdown(metric)} | {task_metrics(before)[metric]:.4g} | {value:.4g} | |")
    lines += _formats(wanted)
    for sentence in (router_load.told(before, after), mtp.told(before, after)):
        if sentence is not None:
            lines += [sentence, ""]
    for number, stage in enumerate(earlier, 1):
        lines += [
            f"Stage {number} before: {stage.tokens:,} tokens in sequences of {stage.recipe.sequence_length:,}, "
            f"KL {stage.kl_before:.4f} to {stage.kl_after:.4f}.",
            "",
        ]
    if (drift := result.drift) is not None:
        lines += [
            f"The teacher in {result.teacher_precision} takes {format_bytes(drift.stored_bytes)} instead of "
            f"{format_bytes(drift.bf16_bytes)} and drifts from itself in bf16 by a KL of {drift.kl:.3g} nats, with the "
            f"same likeliest next token {drift.top1_agreement:.2%} of the time ({drift.tokens:,} held-out tokens).",
            "",
        ]
    lines += ["## Data", "", *(_text(use, file) for use, file in source.items())]
    # The weight that was used, where the recipe leaves it to the student.
    used = recipe.to_json() | {"stream_weight": result.stream_weight}
    tested = [] if result.range_test is None else [RangeTest.of(result.range_test).told(recipe), ""]
    lines += ["", "## Curve", "", *_curve(result), "", "## Recipe", "", *tested]
    lines += [
        "- " + markdown(f"{name.replace('_', ' ')}: {value}") for name, value in used.items() if value not in (None, [])
    ]
    return "\n".join(lines) + "\n"


def _text(use: str, file: Mapping[str, Any]) -> str:
    """A line about one of the texts."""
    weight = f", weight {file['weight']:g}" if "weight" in file else ""
    weight += f", domain {markdown(file['domain'])}" if "domain" in file else ""
    return f"- {use}: {code(file['name'])}, SHA-256 {code(file['sha256'])}{weight}"


def _formats(wanted: "Wanted | None") -> list[str]:
    """What is said of a student in fewer bits."""
    if wanted is None:
        return []
    kept = "".join(f", {component} in {form}" for component, form in wanted.keep.items())
    return [
        f"The linears are in {markdown(wanted.form + kept)}: they ran so, in bf16 once decoded, while they were "
        "trained, and all figures are of the student in this format.",
        "",
    ]


def _curve(result: "DistillResult") -> list[str]:
    head = ["step", "tokens", "KL", "perplexity", *task_metrics(result.curve[0])]
    rows = [
        [
            *(f"{point['step']:,}", f"{point['tokens']:,}", f"{point['kl']:.4f}", f"{point['perplexity']:.3f}"),
            *(f"{value:.4g}" for value in task_metrics(point).values()),
        ]
        for point in result.curve
    ]
    lines = [f"| {' | '.join(map(markdown, cells))} |" for cells in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]
