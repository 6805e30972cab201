"""Evolution under hard limits as a multi-trial strategy of NNI, over any of its model spaces."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import Any, cast

from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import ModelEventType, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus
from nni.nas.strategy import Strategy

from elm_nni.digest import digest
from elm_nni.strategies.evolution import Constraints, Evolution, Individual, Limit, Sample
from elm_nni.strategies.searched_space import SearchedSpace

logger = logging.getLogger(__name__)


class ConstrainedEvolution(Strategy):
    """Searches any NNI model space by :class:`~elm_nni.strategies.evolution.Evolution`, in NNI's own experiments.

    Limits are checked on the sample, before a model is built. No architecture is evaluated twice, neither in a run
    nor after a resume: finished ones are kept in the state and told again, which costs nothing. For given metrics the
    proposals depend on ``seed`` alone, whatever order parallel trials end in. A trial that fails or reports NaN has no
    metric and cannot become a parent (a sequential engine needs ``continue_on_failure`` to go on after one).

    Args:
        limits: name to :class:`~elm_nni.strategies.evolution.Limit`; measures get the canonical sample.
        population, generations, mutations, crossovers, mutation_prob, keep, initial, seed: as of ``Evolution``.
        fixed: label to value, for labels that are not searched, such as widths that a growth has set.
        canonical: sample to its canonical form. None takes the space's own ``canonical`` method
            (``ElmSpace`` has one); for a space without one every label counts.

    Raises:
        ValueError: a setting outside its range; when the search starts, a space with other mutables than categorical
            ones, or a fixed label or value that the space does not have.
        UserError: from the run, when no feasible architecture was found, with counts.

    Source: arXiv 2510.27037, section III-D.

    Example::

        limits = {"params": Limit(count_parameters, 5e6)}
        NasExperiment(ElmSpace.preset("nano"), evaluator, ConstrainedEvolution(limits=limits, seed=0)).run()
    """

    def __init__(
        self,
        *,
        limits: Mapping[str, Limit] | None = None,
        population: int = 50,
        generations: int = 40,
        mutations: int = 25,
        crossovers: int = 25,
        mutation_prob: float = 0.1,
        keep: int = 50,
        initial: Sequence[Sample] = (),
        seed: int = 0,
        fixed: Mapping[str, Any] | None = None,
        canonical: Callable[[Sample], Sample] | None = None,
    ) -> None:
        super().__init__()
        if canonical is not None and not callable(canonical):
            raise ValueError(f"canonical must be callable or None, got {canonical!r}")
        self.limits, self.fixed, self.canonical = dict(limits or {}), dict(fixed or {}), canonical

        def build(space: Mapping[str, Sequence[Any]], constraints: Constraints) -> Evolution:
            return Evolution(
                space=space, constraints=constraints, population=population, generations=generations,
                mutations=mutations, crossovers=crossovers, mutation_prob=mutation_prob, keep=keep,
                initial=initial, seed=seed,
            )  # fmt: skip

        # refuses a wrong setting here rather than when the experiment starts
        build({"": [0]}, Constraints())
        self._build = build
        self._search: Evolution | None = None
        self._space: SearchedSpace | None = None
        self._running: dict[int, tuple[ExecutableModelSpace, Individual]] = {}
        self._ended: SimpleQueue[tuple[ExecutableModelSpace, ModelStatus]] = SimpleQueue()
        self._finished: dict[str, tuple[Sample, float | None]] = {}
        self._replayed: list[ExecutableModelSpace] = []

    @property
    def search(self) -> Evolution:
        """The ask-and-tell core, with the kept architectures, costs and counts.

        Raises:
            RuntimeError: the strategy has no space yet.
        """
        if self._search is None:
            raise RuntimeError("the strategy has not been initialized with a model space")
        return self._search

    @property
    def best(self) -> tuple[float, Individual]:
        """Highest metric and its architecture.

        Raises:
            UserError: nothing was evaluated successfully.
        """
        return self.search.best

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[ExecutableModelSpace]:
        """As of NNI's strategies, with the models that finished before a resume."""
        models: list[ExecutableModelSpace] = [*self._replayed, *super().list_models(sort=False)]
        if sort:
            trained = [m for m in models if m.status == ModelStatus.Trained and _number(m.metric) is not None]
            models = sorted(trained, key=self._rank)
        return islice(models, limit)

    def state_dict(self) -> dict[str, Any]:
        """Every finished architecture with its metric, in plain values."""
        return {
            "finished": [
                {"digest": name, "sample": dict(sample), "metric": metric}
                for name, (sample, metric) in self._finished.items()
            ]
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`; the run then goes through what is known without evaluating it.

        Limits and settings may have changed in between: the metrics stay valid.
        """
        self._finished = {one["digest"]: (dict(one["sample"]), one["metric"]) for one in state_dict["finished"]}

    def extra_repr(self) -> str:
        limits = ", ".join(f"{name} <= {limit.maximum:g}" for name, limit in self.limits.items())
        return f"limits=[{limits}], fixed={len(self.fixed)} labels"

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        self._space = space = SearchedSpace(model_space, fixed=self.fixed, canonical=self.canonical)
        constraints = Constraints({**self.limits, **space.rules}, canonical=space.canonical)
        self._search = self._build(space.choices, constraints)
        engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_training_end)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.TrainingEnd, self._on_training_end)
        while not self._ended.empty():
            model, status = self._ended.get()
            # the run was stopped: whatever stopped it is tried again after a resume
            if status == ModelStatus.Trained:
                self._record(model, status)

    def _run(self) -> None:
        while True:
            individual = self.search.ask()
            if individual is not None:
                if not self._replay(individual) and not self._submit(individual):
                    break
                while not self._ended.empty():
                    self._record(*self._ended.get())
            elif self._running:
                self._record(*self._ended.get())
            else:
                break
        while self._running:
            self._record(*self._ended.get())

    def _replay(self, individual: Individual) -> bool:
        """Tells a metric that is known from before; whether there was one."""
        if individual.digest not in self._finished:
            return False
        _, metric = self._finished[individual.digest]
        self.search.tell(individual, metric)
        if metric is not None:
            model = self._model(individual.sample)
            model.metrics.final = metric
            model.status = ModelStatus.Trained
            self._replayed.append(model)
        return True

    def _submit(self, individual: Individual) -> bool:
        """Hands an architecture to the engine as soon as a worker is free; False when its budget is spent."""
        if not self.wait_for_resource():
            logger.info("the engine's budget is spent after %d architectures", len(self._finished))
            return False
        model = self._model(individual.sample)
        self._running[id(model)] = (model, individual)
        self.engine.submit_models(model)
        return True

    def _record(self, model: ExecutableModelSpace, status: ModelStatus) -> None:
        """Keeps and tells the outcome of a model that ended."""
        _, individual = self._running.pop(id(model))
        # an interrupted one has no outcome: a resume evaluates it
        if status != ModelStatus.Interrupted:
            metric = _number(model.metric) if status == ModelStatus.Trained else None
            self._finished[individual.digest] = (individual.sample, metric)
            self.search.tell(individual, metric)

    def _on_training_end(self, event: TrainingEndEvent) -> None:
        # parallel engines call from a thread of their own
        if id(event.model) in self._running:
            self._ended.put((event.model, event.status))

    def _model(self, sample: Sample) -> ExecutableModelSpace:
        assert self._space is not None
        return self._space.model(sample)

    def _rank(self, model: ExecutableModelSpace) -> tuple[float, str]:
        # ties go as in the core, so that the first model is the best of the search
        return -cast(float, model.metric), digest(self.search.constraints.canonical(dict(model.sample or {})))


def _number(metric: Any) -> float | None:
    return None if metric is None or math.isnan(metric) else float(metric)
