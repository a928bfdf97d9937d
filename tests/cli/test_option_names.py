"""Names of options: one has one meaning in all commands, what it means has one name, and old names still work."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.app import COMMANDS, build, run
from cli.compress import COMPRESSION
from cli.distillation import DISTILLATION
from cli.eval import EVALUATION
from cli.export import EXPORT
from cli.judge import JUDGING
from cli.judge_train import JUDGE_TRAINING
from cli.old_names import OLD_NAMES, renamed
from cli.option_groups import Group, Option
from cli.option_table import GROUPS, OPTIONS
from cli.prune import PRUNING
from cli.quantise import QUANTISING
from cli.scoring import SCORE
from cli.training import TRAINING

CONFIG = Path(__file__).parents[1] / "reference" / "models" / "Nemotron-Nano-9B-v2.json"


def options() -> Iterator[tuple[str, Any]]:
    """(command, option) of all that can be typed."""
    application: Any = typer.main.get_command(build())
    for command, found in application.commands.items():
        yield from ((command, option) for option in found.params if option.param_type_name == "option")


def kind(option: Any) -> str:
    """What is typed behind the name: `value` for one thing, of whatever sort it is read as, or `flag`."""
    return "flag" if option.is_flag else "value"


def test_a_name_means_one_thing_in_all_commands() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    shown: dict[str, set[str]] = defaultdict(set)
    for command, option in options():
        name = option.opts[0]
        assert name in OPTIONS, f"{command} {name} has no row in cli/option_table.py"
        assert option.help.startswith(OPTIONS[name].meaning), f"{command} {name}: {option.help}"
        kinds[name].add(kind(option))
        # Behind what may stand before it: [DOMAIN=]MODEL is a MODEL, and RATE|auto a RATE.
        shown[name].add((option.metavar or "").rpartition("]")[2].partition("|")[0])
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert {name: found for name, found in shown.items() if len(found) > 1} == {}
    assert set(OPTIONS) - set(kinds) == {"--help"}


def test_a_meaning_has_one_name() -> None:
    meanings = [row.meaning.lower() for row in OPTIONS.values()]
    assert len(set(meanings)) == len(meanings)
    assert {row.group for row in OPTIONS.values()} == set(GROUPS)
    for name, row in OPTIONS.items():
        assert row.common in ("", "*") or set(row.common.split()) <= set(COMMANDS), name


def named(table: Mapping[str, Option | Group], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(field, flag), with the field of a group told from others by what it is of."""
    for name, row in table.items():
        if isinstance(row, Group):
            yield from named(row.table, f"{name}." if name in ("answering", "speaking", "caches", "learning") else "")
        elif row.flag:
            yield prefix + name, row.flag


def test_a_field_of_requests_has_one_name() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for table in (
        COMPRESSION,
        DISTILLATION,
        EVALUATION,
        EXPORT,
        JUDGING,
        JUDGE_TRAINING,
        PRUNING,
        QUANTISING,
        SCORE,
        TRAINING,
    ):
        for field, flag in named(table):
            names[field].add(flag)
    # `layers` is how many a plan keeps and how scoring ranks them; a training sequence of `compress` is not a
    # calibration sequence; `sizes` are those of `prune`, or uniform or per-layer; `cache` keeps an endpoint's replies,
    # or a teacher's probabilities.
    apart = {"cache", "layers", "sequence_length", "sizes", "rounding", "seed"}
    assert {field: flags for field, flags in names.items() if len(flags) > 1 and field not in apart} == {}
    # What several fields are, under one name.
    same = {"form": "type", "student_format": "form", "student_kv": "kv", "student_keep": "keep", "precision": "dtype"}
    for one, other in (*same.items(), ("validation", "heldout"), ("micro_batch", "batch_size")):
        assert len(names[one]) == 1
        assert names[one] == names[other], (one, other)


def test_old_names_work_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", str(CONFIG), "--gpu", "A10G", "--context", "128k", "--json"]
    assert run([*line, "--concurrency", "2"]) == 0
    now = capsys.readouterr()
    assert now.err == ""
    assert run([*line, "--batch=2"]) == 0
    before = capsys.readouterr()
    assert before.err == "Warning: --batch is called --concurrency by now; the old name goes with the next version.\n"
    told, again = json.loads(now.out), json.loads(before.out)
    assert told["candidates"] == again["candidates"]


def test_old_names_are_names_no_more() -> None:
    now = {(command, name) for command, option in options() for name in (*option.opts, *option.secondary_opts)}
    for command, names in OLD_NAMES.items():
        for old, new in names.items():
            assert (command, old) not in now and (command, new) in now, (command, old, new)


def test_old_names_that_became_one(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compress", "m", "--precision", "fp32", "--scoring-dtype", "fp32", "--", "--batch"]
    assert renamed("compress", given)[0] == ["compress", "m", "--dtype", "fp32", "--dtype", "fp32", "--", "--batch"]
    assert run(["compress", "m", "--precision", "fp32", "--scoring-dtype=bf16"]) == 2
    assert "--precision and --scoring-dtype are one option by now; give --dtype once." in capsys.readouterr().err
