"""Trials: the loss of a candidate, cut in memory, against its parent on text held out from scoring.

Shapes: S sequences of T tokens.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from importance.rounding.in_memory import round_in_memory
from importance.rounding.in_types import round_in_types
from minitron.cut.in_memory import cut_model
from minitron.cut.plan import Plan
from minitron.errors import MinitronError, NotFinite
from minitron.files import sealed, unsealed
from minitron.measure.cache_options import CacheOptions
from minitron.measure.caches import Simulated
from minitron.measure.quality import Quality, Read, Teacher, measure_quality
from minitron.memory.formats import FORMATS
from minitron.model.spec import ModelSpec
from minitron.quantise.wanted import Wanted
from minitron.search.format_choices import KV, types_written, written_of

Loss = Callable[[PreTrainedModel], float]
"""What a model lost, less is better; the parent's is taken off it."""

OBJECTIVES: Final[dict[str, Callable[[Quality, Quality], float]]] = {
    "kl": lambda cut, parent: cut.kl_to_teacher or 0.0,
    "perplexity": lambda cut, parent: math.log(cut.perplexity) - math.log(parent.perplexity),
}
"""name -> (quality of the candidate, of the parent) -> nats lost, 0 for the parent."""

HOPELESS: Final = 100.0
"""Nats that a candidate is said to lose whose logits are not finite: more than any other."""

SAMPLE: Final = 256
"""Numbers of each tensor that tell one model's weights from another's."""


@dataclass(frozen=True)
class Trial:
    """What was measured of one candidate."""

    loss: float
    """What the objective says, 0 for the parent: nats of KL or of mean log likelihood, or a task's score lost."""

    kl: float
    """KL(parent || candidate) of the next token's distribution in nats, mean over tokens."""

    perplexity: float
    top1_agreement: float
    """Share of the tokens after which both like the same next token best."""

    seconds: float
    """For the cut and the pass over the text."""

    def to_json(self) -> dict[str, float]:
        """All fields."""
        return asdict(self)


class Trials:
    """Measures candidates of one model on one text; what it has measured once it knows."""

    def __init__(
        self,
        model: PreTrainedModel,
        spec: ModelSpec,
        blocks: NDArray[np.int64],
        *,
        batch_size: int = 1,
        objective: str | tuple[str, Loss] = "kl",
        store: Path | None = None,
        calibration: NDArray[np.int64] | None = None,
    ) -> None:
        """`model`, whose spec is `spec`, is the parent; `blocks` [S, T] the judging text, no part of which the scores
        may have seen (`require_apart`).  `objective` is a name in OBJECTIVES, or a name of one's own with the function
        that measures a model.  `store` keeps every measurement in a file of JSON lines, from which trials of the same
        weights, text and objective takes what it holds.  Candidates whose plans name formats are rounded by what
        `calibration` [S, T] makes them read.

        Raises MinitronError for an unknown objective."""
        self.model, self.spec, self.blocks, self.batch_size = model, spec, blocks, batch_size
        self._measure: Loss | None = None
        if isinstance(objective, tuple):
            self.objective, self._measure = objective
        else:
            self.objective = objective
        if self._measure is None and self.objective not in OBJECTIVES:
            raise MinitronError(f"{self.objective!r} is not an objective; choose one of {', '.join(OBJECTIVES)}.")
        self.calibration = calibration
        self.teacher = Teacher(model)
        self.measured = 0
        """Candidates measured here, without those that were found in the store."""
        self._store = None if store is None else Store(store)
        self._known: dict[str, Trial] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the parent's config and a sample of its weights, its dtype, the text and the objective."""
        found = hashlib.sha256(f"{self.spec.fingerprint} {self.model.dtype} {self.objective}".encode())
        found.update(np.ascontiguousarray(self.blocks).tobytes() + str(self.blocks.shape).encode())
        for tensor in self.model.state_dict().values():
            found.update(tensor.flatten()[:SAMPLE].double().cpu().numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def parent(self) -> Quality:
        """The parent on the judging text."""
        return measure_quality(self.model, self.blocks, batch_size=self.batch_size)

    @cached_property
    def _parent_loss(self) -> float:
        return 0.0 if self._measure is None else self._measure(self.model)

    def run(self, plan: Plan) -> Trial:
        """What the candidate of `plan` is worth: cut in memory by the code that cuts files, then read over the text.

        A candidate whose logits are not finite loses HOPELESS nats; raises NotFinite where the parent's are not."""
        name = plan_digest(plan)
        if plan.formats:
            name += self._calibrated
        key = f"{self.fingerprint}/{name}"
        if name not in self._known:
            found = None if self._store is None else self._store.get(key)
            if found is None:
                found = self._run(plan)
                self.measured += 1
                if self._store is not None:
                    self._store.put(key, found)
            self._known[name] = found
        return self._known[name]

    @cached_property
    def _calibrated(self) -> str:
        """A hash of the text that candidates are rounded by."""
        found = np.zeros(0, np.int64) if self.calibration is None else self.calibration
        return hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()[:16]

    def _rounded(self, small: PreTrainedModel, plan: Plan) -> Read | None:
        """Round a candidate to the formats of its plan; how it is read where those of its cache differ too."""
        target, calibration = plan.target(self.spec), self.calibration
        counts = target.parameters().by_component
        if (written := written_of(plan.formats, counts)) is not None:
            if calibration is None:
                raise ValueError("candidates in formats are rounded by a text: give calibration sequences")
            if (types := types_written(plan.formats, counts)) is not None:
                round_in_types(small, target, *types, calibration, batch_size=self.batch_size)
            else:
                round_in_memory(small, target, Wanted(*written), calibration, batch_size=self.batch_size)
        kv = plan.formats.get(KV)
        if kv is None or not FORMATS[kv].quantised:
            return None
        return Simulated(target, {}, CacheOptions(kv=kv), stepwise=False).read

    @torch.inference_mode()
    def _run(self, plan: Plan) -> Trial:
        started, parent = time.monotonic(), self.parent
        small = cut_model(self.model, self.spec, plan)
        try:
            read = self._rounded(small, plan) if plan.formats else None
            quality = measure_quality(small, self.blocks, teacher=self.teacher, batch_size=self.batch_size, read=read)
        except NotFinite:
            worst = math.exp(HOPELESS)
            return Trial(HOPELESS, HOPELESS, worst, 0.0, round(time.monotonic() - started, 4))
        if self._measure is None:
            loss = OBJECTIVES[self.objective](quality, parent)
        else:
            loss = self._measure(small) - self._parent_loss
        return Trial(
            loss=loss,
            kl=max(quality.kl_to_teacher or 0.0, 0.0),
            perplexity=quality.perplexity,
            top1_agreement=quality.top1_agreement or 0.0,
            seconds=round(time.monotonic() - started, 4),
        )


class Store:
    """Measurements in a file of JSON lines; a line that the machine stopped in the midst of is ignored."""

    def __init__(self, path: Path) -> None:
        """Raises MinitronError where `path` holds something else."""
        self.path = path
        self._found: dict[str, Trial] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = [line for line in text.split("\n") if line]
        for line in lines:
            record = _record(line)
            if record is not None:
                key = record.pop("key")
                self._found[key] = Trial(**record)
        if len(lines) > 1 and not self._found:
            raise MinitronError(f"{path} holds no measurements; remove the file or give another.")
        # What follows the last newline was cut off: the next line must not be glued to it.
        self._torn = bool(text) and not text.endswith("\n")

    def get(self, key: str) -> Trial | None:
        """What was measured under `key`."""
        return self._found.get(key)

    def put(self, key: str, trial: Trial) -> None:
        """Add one line, on the disk when this returns."""
        self._found[key] = trial
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + json.dumps(sealed({"key": key} | trial.to_json())) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def _record(line: str) -> dict[str, Any] | None:
    """What a line holds; None where it was cut off or a bit of it has changed: that candidate is measured again."""
    try:
        found = unsealed(json.loads(line))
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and found.keys() == {"key", *(field.name for field in fields(Trial))}
    return found if whole else None


def plan_digest(plan: Plan) -> str:
    """A hash of what a plan cuts: equal plans cut equal models, whatever led to them."""
    cuts = {name: value for name, value in plan.to_json().items() if name not in ("scores", "report", "parameters")}
    return hashlib.sha256(json.dumps(cuts, sort_keys=True).encode()).hexdigest()
