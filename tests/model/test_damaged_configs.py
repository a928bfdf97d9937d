"""Whatever stands under any key of a config.json of any type: a model, or one sentence."""

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from family_sizes import FAMILY_SIZES
from transformers import AutoConfig

from minitron.errors import MinitronError
from minitron.memory.loads import load_of
from minitron.memory.workload import Workload
from minitron.model.spec import spec_of

VALUES: Final = (None, True, -1, 0, 2**64, 1e308, float("nan"), "x", "\x1b[31m", [], [[1]], [None, "x"], [{}], {})


def keys(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The place of every entry, and of those one object deeper."""
    for key, value in document.items():
        yield (key,)
        yield from ((key, inner) for inner in value) if isinstance(value, dict) else ()


# Every third type; the others among the slow tests.
@pytest.mark.parametrize(
    "model_type",
    [one if place % 3 == 0 else pytest.param(one, marks=pytest.mark.slow) for place, one in enumerate(FAMILY_SIZES)],
)
def test_every_key_with_every_value(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **FAMILY_SIZES[model_type][0])
    whole = json.loads(config.to_json_string(use_diff=False)) | {"model_type": model_type}
    read = 0
    for number, place in enumerate(keys(whole)):
        # A third of the values each; over all types every key that they share meets every value.
        for value in VALUES[(number + len(model_type)) % 3 :: 3]:
            document = copy.deepcopy(whole)
            holder = document if len(place) == 1 else document[place[0]]
            holder[place[-1]] = value
            try:
                spec = spec_of(document)
                read += int(spec.parameters().total > 0)
                load_of(spec, Workload(16))
            except MinitronError as error:
                assert len(str(error)) < 500 and "\x1b" not in str(error), place
    assert read
