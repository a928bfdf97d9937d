"""A task for lm-eval of one's own, as a YAML file."""

import json
from collections.abc import Sequence
from pathlib import Path


def task_file(folder: Path, items: Sequence[dict[str, object]]) -> Path:
    """A multiple-choice task whose data file is named relative to the YAML."""
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    path = folder / "birds.yaml"
    path.write_text(
        "task: birds\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{query}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return path
