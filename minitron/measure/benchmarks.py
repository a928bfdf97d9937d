"""Benchmarks through EleutherAI's lm-evaluation-harness: its own tasks by name, or YAML tasks of one's own."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minitron.errors import MinitronError
from minitron.locks import resolved

Results = dict[str, dict[str, float]]
"""Task -> metric -> value, such as {"piqa": {"acc": 0.68, "acc_stderr": 0.047}}."""


class Benchmarks:
    """The tasks to run, found once and then run on any number of models."""

    def __init__(self, tasks: Sequence[str], *, limit: int | None = None) -> None:
        """`tasks` are paths of YAML files or names of the harness's tasks; `limit` items of each are asked, or all.

        Raises MinitronError where the harness is not installed, a file is missing or a name unknown."""
        self.tasks = tuple(tasks)
        self.limit = limit
        named = [task for task in self.tasks if not _is_file(task)]
        for task in self.tasks:
            if _is_file(task) and not Path(task).is_file():
                raise MinitronError(f"{task} does not exist; give a YAML file of lm-eval or the name of a task.")
        harness = _harness()
        # The harness's own 14,000 tasks take 12 s to list: only where one of them is named.
        self._manager = harness.tasks.TaskManager(include_defaults=bool(named))
        for task in named:
            if task not in self._manager.all_tasks:
                near = difflib.get_close_matches(task, self._manager.all_tasks, n=1)
                hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them."
                raise MinitronError(f"lm-eval knows no task {task}; {hint}")

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 1) -> Results:
        """Every task's metrics for `model`; a group of tasks gives one entry a task.

        Paths of data files in a YAML are relative to the YAML's folder."""
        harness = _harness()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        judge = harness.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, trust_remote_code=False
        )
        results: Results = {}
        for task in self.tasks:
            path = resolved(Path(task))
            try:
                with contextlib.chdir(path.parent) if _is_file(task) else contextlib.nullcontext(), _unlisted(harness):
                    answer = harness.evaluator.simple_evaluate(
                        judge,
                        tasks=[str(path) if _is_file(task) else task],
                        task_manager=self._manager,
                        limit=self.limit,
                        log_samples=False,
                        confirm_run_unsafe_code=False,
                    )
            except (FileNotFoundError, ConnectionError) as error:
                raise MinitronError(
                    f"The data of the task {task} cannot be read ({error}); check its data files."
                ) from None
            results |= {name: _metrics(values) for name, values in answer["results"].items()}
        return results


@contextlib.contextmanager
def _unlisted(harness: ModuleType) -> Iterator[None]:
    """Within, the harness does not list the machine and all packages installed beside its results: that starts ten
    programs, pip among them, takes seconds a task, and is nothing that we read."""
    listing = harness.evaluator.add_env_info
    harness.evaluator.add_env_info = lambda results: None
    try:
        yield
    finally:
        harness.evaluator.add_env_info = listing


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.5, "alias": "piqa"} -> {"acc": 0.5}: the filter's name is dropped where there is none."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if "," in name and isinstance(value, (int, float))
    }


def _harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise MinitronError(
            f"Benchmark tasks need lm-eval, which cannot be imported ({error}); run `pip install 'minitron[eval]'`."
        ) from None
    harness: ModuleType = lm_eval
    return harness
