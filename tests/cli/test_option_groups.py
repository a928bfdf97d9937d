"""Requests and the tables of their options: every field can be typed, and what is typed arrives as it should."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from cli.app import COMMANDS, run
from cli.compress import COMPRESSION
from cli.distillation import DISTILLATION
from cli.eval import EVALUATION
from cli.export import EXPORT
from cli.judge import JUDGING
from cli.judge_train import JUDGE_TRAINING
from cli.option_groups import Group, Option, takes
from cli.planning import PLANNING
from cli.prune import PRUNING
from cli.scoring import SCORE
from cli.serving import SERVING
from cli.training import TRAINING
from minitron.measure.options import Dtype
from minitron.model.loading import DTYPES
from pipeline import (
    Compression,
    Distillation,
    EvaluationOptions,
    Export,
    JudgeTraining,
    Judging,
    Planning,
    Pruning,
    Recipe,
    ScoringOptions,
    Serving,
)

Table = Mapping[str, Option | Group]

TABLES: list[tuple[Any, Table]] = [
    (Serving, SERVING),
    (Planning, PLANNING),
    (ScoringOptions, SCORE),
    (EvaluationOptions, EVALUATION),
    (Recipe, TRAINING),
    (Distillation, DISTILLATION),
    (Pruning, PRUNING),
    (Compression, COMPRESSION),
    (Export, EXPORT),
    (Judging, JUDGING),
    (JudgeTraining, JUDGE_TRAINING),
]
NOT_OFFERED = {
    (Recipe, "betas"),  # AdamW's, for a recipe file
    (Distillation, "teachers"),  # --teacher DOMAIN=MODEL, beside the teacher without a domain
    (Compression, "command"),  # the command line itself
    (Compression, "config"),  # the same as a file
    (Compression, "shared"),  # what a family of models shares
    (Compression, "teacher"),  # of a cut that is one of several, which --steps-of makes
}


def with_groups(tables: list[tuple[Any, Table]]) -> Iterator[tuple[Any, Table]]:
    """The tables, and those of the groups in them."""
    for request, table in tables:
        yield request, table
        yield from with_groups([(row.request, row.table) for row in table.values() if isinstance(row, Group)])


# Each once, in the order of the tables: processes that share the tests must collect them alike.
REQUESTS = list(dict.fromkeys(request for request, _ in with_groups(TABLES)))


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: each.__name__)
def test_every_field_of_a_request_can_be_typed(request_type: Any) -> None:
    fields = {field.name for field in dataclasses.fields(request_type)}
    offered: set[str] = set()
    for request, table in with_groups(TABLES):
        if request is request_type:
            assert table.keys() <= fields
            offered |= table.keys()
    assert fields - offered == {name for request, name in NOT_OFFERED if request is request_type}


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: each.__name__)
def test_requests_are_frozen_and_know_nothing_of_typer(request_type: Any) -> None:
    assert request_type.__dataclass_params__.frozen
    source = Path(__import__("inspect").getfile(request_type)).read_text(encoding="utf-8")
    assert "typer" not in source


def test_a_group_is_typed_by_its_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Planning] = []

    @takes("planning", Planning, PLANNING)
    def command(planning: Planning) -> None:
        """Sees."""
        seen.append(planning)

    monkeypatch.setitem(COMMANDS, "inspect", command)
    typed = ["--gpu", "A10G", "--context", "128k", "--keep", "attention=bf16", "--lattice", "hidden_size=448, 3x"]
    typed += ["--most", "ffn=0.3", "--at-least", "mlp=2", "--leave", "hidden", "--tp", "2", "--engine", "vllm"]
    assert run(["inspect", *typed]) == 0
    assert seen == [
        Planning(
            gpu="A10G",
            context=131_072,
            keep={"attention": "bf16"},
            lattice={"hidden_size": ("448", "3x")},
            most={"ffn": 0.3},
            at_least={"mlp": 2},
            leave=("hidden",),
            tensor_parallel=2,
            engine="vllm",
        )
    ]
    assert run(["inspect"]) == 0 and seen[-1] == Planning()
    assert run(["inspect", "--keep", "attention"]) == 2
    assert "--keep 'attention' is not NAME=VALUE" in capsys.readouterr().err
    assert run(["inspect", "--engine", "tgi"]) == 2
    assert "'tgi' is not one of 'plain', 'vllm'" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_names_that_need_torch_are_those_of_the_tables_that_do() -> None:
    assert set(get_args(Dtype)) == set(DTYPES)
