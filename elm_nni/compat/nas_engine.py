"""An execution engine around any of NNI's that records finished evaluations and answers recorded ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nni.mutable import SampleValidationError
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.engine import Middleware
from nni.nas.execution.event import FinalMetricEvent, IntermediateMetricEvent, ModelEventType, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus

from elm_nni.compat.nas_record import Evaluation, EvaluationRecord, plain_metric
from elm_nni.errors import UserError

_logger = logging.getLogger(__name__)

# The manager says that all is done a moment before the last events of the trials are here.
_LAST_EVENTS_SECONDS = 10.0


@dataclass
class _Running:
    model: ExecutableModelSpace
    evaluation: Evaluation
    start: float


class RecordingEngine(Middleware):
    """Stands between a strategy and an engine.

    Every final metric, and every end without one, is on the disk before the strategy hears of it. A model whose result
    is in the record gets it at once, with the same events, and does not reach the engine. A strategy that runs again
    from the same random state so goes through what is known and on from there; what was running when the process ended
    is evaluated again.

    Args:
        engine: where models run. Its budget must leave out what is recorded.
        record: finished evaluations of earlier runs, and where those of this run go.

    Raises:
        UserError: from ``submit_models``, for a new architecture when the budget is spent on the recorded ones; when
            the record cannot be written.
    """

    def __init__(self, engine: ExecutionEngine, record: EvaluationRecord) -> None:
        super().__init__(engine)
        self.record = record
        self._space: ExecutableModelSpace | None = None
        self._models: dict[int, ExecutableModelSpace] = {}
        self._running: dict[int, _Running] = {}
        self._replaying = True
        self._closed = False
        self._unwritten: UserError | None = None
        # parallel engines call from a thread of their own
        self._lock = threading.RLock()
        self._callbacks_here = {
            ModelEventType.IntermediateMetric: self._on_intermediate,
            ModelEventType.FinalMetric: self._on_metric,
            ModelEventType.TrainingEnd: self._on_end,
        }
        # before the strategy registers its own, so that these are called first
        for event_type, callback in self._callbacks_here.items():
            engine.register_model_event_callback(event_type, callback)

    def set_space(self, space: ExecutableModelSpace) -> None:
        """The space that recorded samples are frozen in, for :meth:`list_models`."""
        self._space = space

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        for model in models:
            if model.sample is None:
                raise UserError(f"the model {model} has no sample, which its result would be recorded under")
            with self._lock:
                self._models[id(model)] = model
                known = self.record.take(model.sample)
            if known is None:
                self._evaluate(model)
            else:
                self._answer(model, known)

    def list_models(self, status: ModelStatus | None = None) -> Iterable[ExecutableModelSpace]:
        """Models of this run in the order of their submission, then recorded ones that it did not ask for."""
        with self._lock:
            models = [*self._models.values(), *self._recorded_models()]
        return [model for model in models if status is None or model.status == status]

    def wait_models(self, *models: ExecutableModelSpace) -> None:
        if models:
            super().wait_models(*models)
            return
        self.engine.wait_models()
        limit = time.monotonic() + _LAST_EVENTS_SECONDS
        while self._running and time.monotonic() < limit:
            time.sleep(0.1)

    def idle_worker_available(self) -> bool:
        return self._may_answer() or self.engine.idle_worker_available()

    def budget_available(self) -> bool:
        self._check_written()
        return self._may_answer() or self.engine.budget_available()

    def register_model_event_callback(self, event_type: ModelEventType, callback: Callable[..., None]) -> None:
        self.engine.register_model_event_callback(event_type, callback)

    def unregister_model_event_callback(self, event_type: ModelEventType, callback: Callable[..., None]) -> None:
        self.engine.unregister_model_event_callback(event_type, callback)

    def close(self) -> None:
        """From here on nothing that ends is recorded: the experiment stops and cancels what runs."""
        with self._lock:
            self._closed = True

    def shutdown(self) -> None:
        while self._callbacks_here:
            self.engine.unregister_model_event_callback(*self._callbacks_here.popitem())
        self.engine.shutdown()

    def state_dict(self) -> dict[str, Any]:
        """Empty: the record on the disk is the state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing, see :meth:`state_dict`."""

    def _may_answer(self) -> bool:
        return self._replaying and self.record.num_unanswered > 0

    def _answer(self, model: ExecutableModelSpace, known: Evaluation) -> None:
        for metric in known.intermediates:
            self.engine.dispatch_model_event(IntermediateMetricEvent(model, metric))
        for metric in known.metrics:
            self.engine.dispatch_model_event(FinalMetricEvent(model, metric))
        self.engine.dispatch_model_event(TrainingEndEvent(model, ModelStatus(known.status)))

    def _evaluate(self, model: ExecutableModelSpace) -> None:
        if self._may_answer():
            self._leave_record()
        assert model.sample is not None
        with self._lock:
            evaluation = self.record.new(model.sample)
            self._running[id(model)] = _Running(model, evaluation, time.monotonic())
        try:
            self.engine.submit_models(model)
        except BaseException:
            # a failure that ends the run is tried again by a resume; a metric that arrived before a Ctrl-C stays
            if evaluation.status == ModelStatus.Failed.value:
                self.record.withdraw(evaluation)
            raise
        self._check_written()

    def _leave_record(self) -> None:
        left = self.record.num_unanswered
        if not self.engine.budget_available():
            raise UserError(
                f"the strategy proposes an architecture that is not recorded while {left} recorded ones are left and "
                "the budget is spent: give it the seed and settings of the first run, or a larger budget"
            )
        _logger.warning(
            "The strategy proposes an architecture that is not recorded; %d recorded ones are left and are answered "
            "when they are proposed", left,
        )  # fmt: skip
        self._replaying = False

    def _on_intermediate(self, event: IntermediateMetricEvent) -> None:
        with self._lock:
            running = self._running.get(id(event.model))
            if running is not None:
                running.evaluation.intermediates.append(plain_metric(event.metric))

    def _on_metric(self, event: FinalMetricEvent) -> None:
        with self._lock:
            running = self._running.get(id(event.model))
            if running is not None:
                running.evaluation.metrics = [plain_metric(event.metric)]
                self._write(running)

    def _on_end(self, event: TrainingEndEvent) -> None:
        with self._lock:
            running = self._running.pop(id(event.model), None)
            if running is not None and not self._closed and event.status != ModelStatus.Interrupted:
                running.evaluation.status = event.status.value
                self._write(running)

    def _write(self, running: _Running) -> None:
        running.evaluation.seconds = round(time.monotonic() - running.start, 3)
        try:
            self.record.add(running.evaluation)
        except UserError as error:
            # raised where the strategy asks next: here it would end the engine's thread, or count as a failed model
            self._unwritten = error

    def _check_written(self) -> None:
        if self._unwritten is not None:
            raise self._unwritten

    def _recorded_models(self) -> list[ExecutableModelSpace]:
        models = []
        for evaluation in self.record.unanswered:
            assert self._space is not None
            try:
                model = self._space.freeze(evaluation.sample)
            except SampleValidationError:
                # JSON has no tuples, and the space may have changed
                _logger.warning("The recorded sample %s is not in the space", evaluation.sample)
                continue
            for metric in evaluation.metrics:
                model.metrics.final = metric
            model.status = ModelStatus(evaluation.status)
            models.append(model)
        return models
