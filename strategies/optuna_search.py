"""Any sampler of Optuna as a multi-trial strategy of NNI, with several objectives and limits, over any model space."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from typing import Any

import optuna
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, ModelEventType, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus
from nni.nas.strategy import Strategy

from elm_nni.digest import digest
from elm_nni.strategies.architecture_study import ArchitectureStudy, Candidate, Outcome
from elm_nni.strategies.evolution import Limit, Sample
from elm_nni.strategies.searched_space import SearchedSpace
from elm_nni.strategies.study_settings import Measure, StudySettings

logger = logging.getLogger(__name__)

# how often a worker without anything to do looks whether the others have ended
_LOOK_SECONDS = 0.5


class OptunaSearch(Strategy):
    """Searches any NNI model space of categorical mutables by a sampler of Optuna, in NNI's own experiments.

    With several directions its result is the :attr:`front`. The evaluator reports a number, which is the metric
    ``default``, or a dictionary of metrics with ``default`` among them. Limits are checked before a model is built.

    The study, with a claim on every architecture, lies in ``storage``. Started again with the same storage and name the
    search goes on, and any number of experiments can work on it side by side: no architecture is evaluated twice, and
    finished ones count. What a killed process was evaluating is taken over when it has shown no sign of life for
    ``grace`` seconds. Under ``ResumableNasExperiment``, which keeps a record of its own, leave ``storage`` None.

    A trial that fails, or has no finite number for an objective, counts as evaluated and has no metrics (a sequential
    engine needs ``continue_on_failure`` to go on after a failure; without it a resume evaluates it again).

    Args:
        sampler, sampler_args, directions, limits, objectives, evaluations, storage, study_name, seed, max_tries, grace:
            see :class:`~elm_nni.strategies.study_settings.StudySettings`; measures get the canonical sample.
        fixed: label to value, for labels that are not searched, such as widths that a growth has set.
        canonical: sample to its canonical form. None takes the space's own ``canonical`` method
            (``ElmSpace`` has one); for a space without one every label counts.

    Raises:
        ValueError: a setting that is not allowed; when the search starts, a space with other mutables than categorical
            ones, or a fixed label or value that the space does not have.
        UserError: when the search starts, a storage that cannot be opened or holds another search; from the run, a
            result without a metric of ``directions``, or no feasible architecture, with counts.

    Example::

        directions = {"default": "maximize", "params": "minimize"}
        strategy = OptunaSearch(directions=directions, objectives={"params": count_parameters}, storage="sqlite:///s.db")
        NasExperiment(ElmSpace.preset("nano"), evaluator, strategy).run()
        metrics, sample = strategy.front[0]
    """

    def __init__(
        self,
        sampler: str | optuna.samplers.BaseSampler = "nsgaii",
        sampler_args: Mapping[str, Any] | None = None,
        *,
        directions: Mapping[str, str] | None = None,
        limits: Mapping[str, Limit] | None = None,
        objectives: Mapping[str, Measure] | None = None,
        evaluations: int = 100,
        storage: str | None = None,
        study_name: str = "search",
        seed: int = 0,
        fixed: Mapping[str, Any] | None = None,
        canonical: Callable[[Sample], Sample] | None = None,
        max_tries: int = 500,
        grace: float = 60.0,
    ) -> None:
        super().__init__()
        if canonical is not None and not callable(canonical):
            raise ValueError(f"canonical is {canonical!r}; it must be callable or None")
        self.settings = StudySettings(
            sampler=sampler, sampler_args=sampler_args, directions=dict(directions or {"default": "maximize"}),
            limits=dict(limits or {}), objectives=dict(objectives or {}), evaluations=evaluations, storage=storage,
            study_name=study_name, seed=seed, max_tries=max_tries, grace=grace,
        )  # fmt: skip
        self.fixed, self.canonical = dict(fixed or {}), canonical
        self._search: ArchitectureStudy | None = None
        self._space: SearchedSpace | None = None
        self._earlier: list[dict[str, Any]] = []
        self._running: dict[int, tuple[ExecutableModelSpace, Candidate]] = {}
        self._reported: dict[int, Any] = {}
        self._ended: SimpleQueue[tuple[ExecutableModelSpace, ModelStatus]] = SimpleQueue()

    @property
    def search(self) -> ArchitectureStudy:
        """The ask-and-tell core, with Optuna's study, the outcomes and counts.

        Raises:
            RuntimeError: the strategy has no space yet.
        """
        if self._search is None:
            raise RuntimeError("the strategy has not been initialized with a model space")
        return self._search

    @property
    def front(self) -> list[Outcome]:
        """Metrics and canonical sample of every architecture that no other one beats, from all workers."""
        return self.search.front

    @property
    def best(self) -> Outcome:
        """Metrics and canonical sample of the best architecture.

        Raises:
            UserError: there are several objectives, or nothing was evaluated successfully.
        """
        return self.search.best

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[ExecutableModelSpace]:
        """As of NNI's strategies, with models of earlier runs and other workers; sorted, those of the front first."""
        return islice(self._sorted_models() if sort else self._all_models(), limit)

    def state_dict(self) -> dict[str, Any]:
        """Every finished architecture with its metrics, in plain values."""
        return {"finished": [{"sample": one.sample, "metrics": one.metrics} for one in self.search.finished]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; what the study does not have becomes part of it when the run starts."""
        self._earlier = [dict(one) for one in state_dict["finished"]]

    def extra_repr(self) -> str:
        settings = self.settings
        limits = ", ".join(f"{name} <= {limit.maximum:g}" for name, limit in settings.limits.items())
        name = settings.sampler if isinstance(settings.sampler, str) else type(settings.sampler).__name__
        return f"{name}, directions={dict(settings.directions)}, limits=[{limits}], fixed={len(self.fixed)} labels"

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        self._space = space = SearchedSpace(model_space, fixed=self.fixed, canonical=self.canonical)
        settings = replace(self.settings, limits={**self.settings.limits, **space.rules})
        self._search = ArchitectureStudy(space.choices, settings=settings, canonical=space.canonical)
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_final_metric)
        engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_training_end)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.FinalMetric, self._on_final_metric)
        self.engine.unregister_model_event_callback(ModelEventType.TrainingEnd, self._on_training_end)
        try:
            while not self._ended.empty():
                model, status = self._ended.get()
                # the run was stopped: whatever stopped it is tried again after a resume
                self._record(model, status if status == ModelStatus.Trained else ModelStatus.Interrupted)
            for _, candidate in self._running.values():
                self.search.release(candidate)
        finally:
            self.search.close()

    def _run(self) -> None:
        for one in self._earlier:
            self.search.adopt(one["sample"], one["metrics"])
        while self._step():
            while not self._ended.empty():
                self._record(*self._ended.get())
        while self._running:
            self._record(*self._ended.get())

    def _step(self) -> bool:
        """Submits an architecture, or waits for what can lead to one; False at the end of the search or budget."""
        if not self.wait_for_resource():
            logger.info("the engine's budget is spent after %d architectures", len(self.search.finished))
            return False
        candidate = self.search.ask()
        if candidate is not None:
            assert self._space is not None
            model = self._space.model(candidate.sample)
            self._running[id(model)] = (model, candidate)
            self.engine.submit_models(model)
            return True
        if self._running:
            self._record(*self._ended.get())
            return True
        if self.search.waiting:
            time.sleep(_LOOK_SECONDS)
            return True
        return False

    def _record(self, model: ExecutableModelSpace, status: ModelStatus) -> None:
        """Tells the outcome of a model that ended."""
        _, candidate = self._running.pop(id(model))
        reported = self._reported.pop(id(model), model.metric)
        # an interrupted one has no outcome: a resume evaluates it
        if status == ModelStatus.Interrupted:
            self.search.release(candidate)
        else:
            self.search.tell(candidate, reported if status == ModelStatus.Trained else None)

    def _on_final_metric(self, event: FinalMetricEvent) -> None:
        # the model itself keeps no more than "default"
        if id(event.model) in self._running:
            self._reported[id(event.model)] = event.metric

    def _on_training_end(self, event: TrainingEndEvent) -> None:
        # parallel engines call from a thread of their own
        if id(event.model) in self._running:
            self._ended.put((event.model, event.status))

    def _sorted_models(self) -> Iterator[ExecutableModelSpace]:
        here = {self._name(model): model for model in super().list_models(sort=False)}
        for metrics, sample in self.search.outcomes:
            yield here.get(digest(sample)) or self._finished_model(sample, metrics)

    def _all_models(self) -> Iterator[ExecutableModelSpace]:
        models = list(super().list_models(sort=False))
        here = {self._name(model) for model in models}
        for one in self.search.finished:
            if one.metrics is not None and one.digest not in here:
                yield self._finished_model(one.sample, one.metrics)
        yield from models

    def _name(self, model: ExecutableModelSpace) -> str:
        assert self._space is not None
        return digest(self._space.canonical(dict(model.sample or {})))

    def _finished_model(self, sample: Sample, metrics: Mapping[str, float]) -> ExecutableModelSpace:
        assert self._space is not None
        model = self._space.model(sample)
        if "default" in metrics:
            model.metrics.final = metrics["default"]
        model.status = ModelStatus.Trained
        return model
