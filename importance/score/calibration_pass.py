"""A calibration pass: the hooks that observe activations, and the scores computed from them, layer by layer.

Totals of a layer can be made into scores as soon as all text is through it, while its weights are in memory; what they
took is then let go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from importance.score.balanced_bases import bases, forget_spaces, observing_spaces
from importance.score.clock import BASES, CHANNELS, MOMENTS, PARTS, REMOVAL, Clock
from importance.score.covariance import covariance, observing_covariance
from importance.score.estimators import ByAxis, Estimator
from importance.score.fisher import Outputs
from importance.score.moments import Moments
from importance.score.observe import block_influence, energy, importance, observing
from importance.score.state_size import STATE, observing_states, state_scores, state_sites
from importance.score.stream_directions import turned
from importance.score.surgeon import surgeon_scores
from importance.score.totals import Array, Totals
from minitron.arrays import store
from minitron.cut.refit import InputSite
from minitron.cut.rotation import unrotatable
from minitron.cut.scores import Key, Scores
from minitron.model.axes import HIDDEN
from minitron.model.spec import ModelSpec


class CalibrationPass:
    """Sums while the model runs, then scores."""

    def __init__(
        self,
        model: PreTrainedModel,
        spec: ModelSpec,
        estimator: Estimator | ByAxis,
        *,
        tokens: int,
        seed: int = 0,
        refit: bool = True,
        influence: bool = False,
        folder: Path | None = None,
    ) -> None:
        """`tokens` is how many the whole pass will see.  `influence` also compares what goes into a layer with what
        comes out.  Second moments, the largest arrays, stay in memory or in `folder` on disk."""
        self.model, self.spec, self.estimator = model, spec, estimator
        self.tokens, self.seed, self.influence, self.folder = tokens, seed, influence, folder
        self.totals = Totals()
        self.moments = Moments(spec, tokens) if refit else None
        self.outputs: Outputs = {}
        """What errors in the outputs of linears do (importance.score.fisher), where they are weighed."""
        self._surgeon: dict[Key, Array] = {}
        self._ridges: dict[Key, float] = {}
        self._bases: dict[Key, tuple[Array, Array, Array]] = {}
        self._covariance: dict[Key, Any] = {}

    @property
    def weighed_sites(self) -> tuple[InputSite, ...]:
        """The linears whose outputs' errors the estimator weighs."""
        sites = self.moments.sites.values() if self.moments is not None else ()
        return tuple(
            site for site in sites if site.key[0] in self.spec.sizes and self.estimator.of(site.key[0]).weighs_outputs
        )

    @property
    def weighs_stream(self) -> bool:
        """Whether directions of the residual stream count by what errors in them do, too."""
        turned = not self.spec.is_tied and unrotatable(self.spec) is None
        return turned and self.estimator.of(HIDDEN).weighs_outputs

    @property
    def judges_states(self) -> bool:
        """Whether a mixer's states are scored by their energy; `random` and `magnitude` score them themselves."""
        return bool(self.estimator.of(STATE).statistics)

    @property
    def clock(self) -> Clock:
        """What each part takes."""
        return self.totals.clock

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Until the block ends every forward pass of the model, or of its layers one by one, adds to the totals."""
        with ExitStack() as entered:
            entered.enter_context(
                observing(
                    self.model,
                    self.spec,
                    self.totals,
                    estimator=self.estimator,
                    influence=self.influence,
                    moments=self.moments,
                )
            )
            entered.enter_context(observing_covariance(self.model, self.spec, self.totals, self.tokens))
            if self.judges_states:
                entered.enter_context(observing_states(self.model, self.spec, self.totals))
            entered.enter_context(observing_spaces(self.model, self.spec, self.totals, self.tokens))
            yield

    def finish(self, layer: int) -> None:
        """Everything is through `layer`, whose weights are still in memory: make of its second moments what they are
        for, and let them go."""
        clock = self.clock
        with clock.part(BASES):
            self._bases |= bases(self.model, self.spec, self.totals, layer)
            forget_spaces(self.spec, self.totals, layer)
        if self.moments is None:
            return
        with clock.part(REMOVAL):
            found, ridges = surgeon_scores(
                self.model,
                self.spec,
                self.totals,
                self.moments,
                judge=lambda axis: self.estimator.of(axis).surgeon,
                layer=layer,
                outputs=self.outputs,
            )
        self.outputs = {key: moments for key, moments in self.outputs.items() if key[1] != layer}
        self._surgeon |= found
        self._ridges |= ridges
        with clock.part(MOMENTS):
            for key, site in self.moments.sites.items():
                if key[1] == layer:
                    matrix = self.moments.stacked(self.totals, site)
                    self.moments.forget(self.totals, site)
                    self._covariance[key] = store(matrix, self.folder, f"moments-{'-'.join(map(str, key))}")

    def scores(self, layers: Mapping[Key, Array], data: str, settings: Mapping[str, Any]) -> Scores:
        """All scores, once every layer is finished; `layers` are those of layers as wholes, if there are any."""
        with self.clock.part(CHANNELS):
            found = importance(self.spec, self.totals, estimator=self.estimator, seed=self.seed)
        seconds = {name: round(taken, 3) for name, taken in self.clock.seconds.items()}
        if self.judges_states:
            found |= {site.key: state_scores(self.totals, site) for site in state_sites(self.spec)}
        found |= self._surgeon | dict(layers)
        if self.influence:
            found["layer", None] = block_influence(self.spec, self.totals)
        return Scores(
            found,
            energy(self.spec, self.totals),
            self.spec.fingerprint,
            data,
            {**settings, PARTS: seconds},
            turned(self.totals, covariance(self.totals)) | self._covariance,
            self._ridges,
            self._bases,
        )
