"""The models of the planner's page: writes minitron/report/models.json from the configs in tests/reference.

    python benchmarks/planner_models.py

The package has no tests folder, and the page of `minitron plan --page` has every model that tests read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitron.errors import MinitronError
from minitron.files import write_text
from minitron.model.spec import spec_of

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "reference"
MODELS = ROOT / "minitron" / "report" / "models.json"


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, config.json) of every model in tests/reference, the most complete of the same name first."""
    for file in ("released_configs", "released_wrappers"):
        for name, found in json.loads((REFERENCE / f"{file}.json").read_text(encoding="utf-8")).items():
            yield name, found["config"]
    for path in sorted((REFERENCE / "models").glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))["config"]
    for name, found in json.loads((REFERENCE / "families_facts.json").read_text(encoding="utf-8")).items():
        yield name, {"model_type": found["model_type"], **found["config"]}


def models() -> dict[str, dict[str, Any]]:
    """name -> config.json of those that can be counted, by name."""
    found: dict[str, dict[str, Any]] = {}
    for name, config in configs():
        try:
            spec_of(config)
        except MinitronError:
            continue
        found.setdefault(name, config)
    return dict(sorted(found.items(), key=lambda item: item[0].casefold()))


def main() -> None:
    """Write them, one a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(config, separators=(',', ':'))}" for name, config in models().items()]
    write_text(MODELS, "{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{MODELS.name}: {len(lines)} models, {MODELS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
