"""Plans that cut the residual stream, and what their students know of it, for tests."""

from dataclasses import replace
from pathlib import Path

from cuts import scored

from minitron.cut.plan import Plan, make_plan
from minitron.cut.stream_map import StreamMap, read_stream_maps
from minitron.model.identity import weights_of
from minitron.model.spec import read_spec


def told_of(student: Path) -> StreamMap:
    """The way from its parent."""
    return read_stream_maps(student, read_spec(student))[0]


def plan_of(parent: Path, *, hidden: int, layers: tuple[int, ...] | None = None, rotate: bool = True) -> Plan:
    spec, scores = scored(parent)
    kept = tuple(range(len(spec.layers))) if layers is None else layers
    plan = make_plan(spec, {"hidden_size": hidden}, kept, scores, rotate=rotate)
    return replace(plan, weights=weights_of(parent))
