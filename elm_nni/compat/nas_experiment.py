"""NAS experiments that go on after a stop, a crash or a kill, from a record in JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import nni
import numpy as np
from filelock import FileLock, Timeout
from nni.experiment import RunMode
from nni.nas.evaluator import Evaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.experiment.config import CgoEngineConfig, RawModelFormatConfig, SequentialEngineConfig
from nni.nas.space import BaseModelSpace
from nni.nas.strategy import PolicyBasedRL, Strategy
from nni.nas.strategy.middleware import Chain

from elm_nni.compat import python_repairs
from elm_nni.compat.nas_engine import RecordingEngine
from elm_nni.compat.nas_manager import (
    ABOUT_SEARCH,
    earlier_trials,
    has_database,
    settle_lost_trials,
    wait_for_end,
)
from elm_nni.compat.nas_record import Evaluation, EvaluationRecord
from elm_nni.compat.nas_repairs import NAS_FILES, repaired_nas
from elm_nni.compat.trial import nested_nas
from elm_nni.errors import UserError
from elm_nni.files import write_text
from elm_nni.pipeline.store import write_json

_logger = logging.getLogger(__name__)

_RECORD = "evaluations.jsonl"


class ResumableNasExperiment(NasExperiment):
    """NNI's ``NasExperiment`` in a folder of its own: ``run`` starts the search, or goes on with the one that is there.

    Each finished evaluation is on the disk before the strategy goes on. After a stop, a crash or a kill the same script
    is started again: the strategy runs from its first random state, recorded architectures are answered from the
    record, and the search continues where it was. Nothing is pickled or unpickled. With one trial at a time this
    repeats the search exactly; with several, strategies whose proposals depend on the order in which trials end
    (``RegularizedEvolution``) propose others after a resume, and what is recorded stays in ``list_models``.

    A limit on the number of models counts recorded ones. An evaluation that fails and lets the search go on counts as
    finished; one whose error ends the run is made again.

    ``elm-nni nnictl resume`` runs the command that first started the search again, in the background.

    Args:
        model_space, evaluator, strategy, config: as of ``NasExperiment``. The engine is ``sequential`` or ``ts``, the
            strategy a multi-trial one that draws from a generator of its own. The configuration is copied.
        folder: where the record and NNI's files go. It belongs to one space, strategy class and evaluator.

    Raises:
        UserError: the strategy or engine cannot be resumed, the folder is another search's or in use, or the installed
            NNI is not the known one.

    Example:
        >>> search = ResumableNasExperiment(space, evaluator, Random(seed=0), config, folder="runs/search")
        >>> search.run(port=8080)  # doctest: +SKIP
    """

    config: NasExperimentConfig

    def __init__(
        self, model_space: BaseModelSpace, evaluator: Evaluator, strategy: Strategy,
        config: NasExperimentConfig | None = None, *, folder: str | Path,
    ) -> None:  # fmt: skip
        for known in NAS_FILES:
            known.check()
        _check_strategy(strategy)
        self.folder = Path(folder).absolute()
        super().__init__(model_space, evaluator, strategy, deepcopy(config), id=self._about().get("id"))
        self.config.experiment_working_directory = self.folder
        _check_config(self.config)
        self._lock = FileLock(self.folder / ".lock")
        self._record: EvaluationRecord | None = None

    def start(self, port: int = 8080, debug: bool = False, run_mode: RunMode = RunMode.Background) -> None:
        """Runs the strategy to its end; ``port`` is that of the web UI and is used by the ``ts`` engine alone.

        Raises:
            UserError: the folder is in use or another search's, or the manager cannot start.
        """
        self._take_folder()
        try:
            self._open_folder()
        except BaseException:
            self._lock.release()
            raise
        try:
            with repaired_nas():
                super().start(port, debug, run_mode)
        except Exception:
            self.stop()
            raise

    def resume(self, port: int = 8080, wait_completion: bool = True, debug: bool = False) -> bool | None:
        """The same as ``run``."""
        return self.run(port, wait_completion, debug)

    def run_or_resume(self, port: int = 8080, wait_completion: bool = True, debug: bool = False) -> bool | None:
        """The same as ``run``."""
        return self.run(port, wait_completion, debug)

    def view(self, port: int = 8080, non_blocking: bool = False) -> NoReturn:
        """Refused: ``elm-nni nnictl view`` needs no space, evaluator and strategy."""
        raise UserError(f"view the experiment with: elm-nni nnictl view {self.id} --experiment_dir {self.folder}")

    def stop(self) -> None:
        """Stops the experiment; what is running is cancelled, not recorded, and made again by a resume.

        Nothing happens before a start and after a stop.
        """
        if not self._lock.is_locked:
            return
        if self._engine is not None:
            self._engine.close()
        try:
            super().stop()
        finally:
            self._lock.release()

    def load_checkpoint(self) -> None:
        """Does nothing: the record is read when the strategy starts."""

    def save_checkpoint(self) -> None:
        """Writes the configuration; evaluations are on the disk already."""
        path = self._checkpoint_directory / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, nni.dump(self.config.json(), indent=2))

    def _start_engine_and_strategy(self) -> None:
        config = self.config.canonical_copy()
        record = self._evaluations()
        sequential = isinstance(config.execution_engine, SequentialEngineConfig)
        if sequential:
            _leave_rest(config.execution_engine, record)
        engine = RecordingEngine(self.execution_engine_factory(config.execution_engine), record)
        self._engine = engine
        self._exec_model_space = self.executable_model_factory(config.model_format)
        engine.set_space(self.strategy.initialize(self._exec_model_space, engine))
        if not sequential:
            self._send_space_to_nni_manager()
        self.save_checkpoint()
        if record.finished:
            _logger.info("%d evaluations are recorded in %s", len(record.finished), record.path)
        context: AbstractContextManager[None] = nested_nas() if sequential else nullcontext()
        with context:
            self.strategy.run()

    def _start_nni_manager(
        self, port: int, debug: bool, run_mode: RunMode = RunMode.Background,
        tuner_command_channel: str | None = None, tags: list[str] | None = None,
    ) -> None:  # fmt: skip
        database = self.folder / self.id / "db" / "nni.sqlite"
        self._action = "resume" if has_database(database, self.id) else "create"
        if self._action == "resume":
            wait_for_end(self.id)
            settle_lost_trials(database)
        # repairs that are on, perhaps with other settings, stay
        with nullcontext() if python_repairs.installed() else python_repairs.repaired_nni():
            super()._start_nni_manager(port, debug, run_mode, tuner_command_channel, tags or [])
        if self._action == "resume":
            self._take_over_trials()

    def _take_over_trials(self) -> None:
        """Records what ended while no process recorded, and lets trials without a result not count as trials."""
        assert self.port is not None
        record = self._evaluations()
        trials = earlier_trials(self.port)
        seen = record.counts()
        for sample, metric, status in trials:
            evaluation = record.new(sample)
            if seen[evaluation.digest] > 0:
                seen[evaluation.digest] -= 1
            elif metric is not None:
                evaluation.metrics, evaluation.status = [metric], status
                record.adopt(evaluation)
        limit = self.config.canonical_copy().max_trial_number
        if limit is not None:
            # before the engine connects: a manager that finds the number reached asks for no trials any more
            self.update_max_trial_number(limit + len(trials) - len(record.finished))

    def _evaluations(self) -> EvaluationRecord:
        if self._record is None:
            self._record = EvaluationRecord(self.folder / _RECORD)
        return self._record

    def _take_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"folder {self.folder}: another process runs this search") from error
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def _about(self) -> dict[str, Any]:
        path = self.folder / ABOUT_SEARCH
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def _open_folder(self) -> None:
        """Writes what belongs to the whole search at its first start, and takes it from there at later ones."""
        name = " with ".join(f"{type(part).__module__}.{type(part).__qualname__}" for part in _parts(self.strategy))
        labels = sorted(self.model_space.simplify())
        about = self._about()
        if not about:
            states = [_random_state(part) for part in _parts(self.strategy)]
            about = {
                "id": self.id, "strategy": name, "labels": labels, "random_states": states,
                "command": [sys.executable, *sys.orig_argv[1:]], "working_directory": str(Path.cwd()),
            }  # fmt: skip
            write_json(self.folder / ABOUT_SEARCH, about)
            return
        if about["strategy"] != name:
            raise UserError(f"{self.folder} holds a search by {about['strategy']}, not {name}: choose another folder")
        if about["labels"] != labels:
            raise UserError(f"{self.folder} holds a search of another space: choose another folder")
        for part, state in zip(_parts(self.strategy), about["random_states"], strict=True):
            _set_random_state(part, state)


def _check_strategy(strategy: Strategy) -> None:
    from nni.nas.oneshot.pytorch.strategy import OneShotStrategy

    for part in _parts(strategy):
        if isinstance(part, OneShotStrategy):
            raise UserError(
                f"strategy {type(part).__name__} trains one supernet, which its Lightning checkpoints resume: run it "
                "with NasExperiment"
            )
        if isinstance(part, PolicyBasedRL):
            raise UserError(
                "strategy PolicyBasedRL draws from torch's global generator, so its search cannot be repeated: use "
                "Random, GridSearch, RegularizedEvolution, TPE or ConstrainedEvolution"
            )


def _check_config(config: NasExperimentConfig) -> None:
    engine = config.execution_engine
    if isinstance(engine, CgoEngineConfig):
        raise UserError("execution_engine 'cgo' cannot be resumed: use 'sequential' or 'ts'")
    if not isinstance(engine, SequentialEngineConfig) and isinstance(config.model_format, RawModelFormatConfig):
        raise UserError("model_format 'raw' cannot be sent to a trial: use 'simplified', or engine 'sequential'")


def _parts(strategy: Strategy) -> Iterator[Any]:
    """The strategy, and what a chain is made of."""
    yield strategy
    if isinstance(strategy, Chain):
        yield from _parts(strategy._strategy)
        yield from strategy._middlewares


def _random_state(part: Any) -> list[Any] | None:
    """State of the generator that NNI's strategies keep, so that one without a seed can be repeated too."""
    generator = getattr(part, "_random_state", None)
    if not isinstance(generator, np.random.RandomState):
        return None
    name, keys, *rest = generator.get_state(legacy=True)
    return [name, np.asarray(keys, dtype="<u4").tobytes().hex(), *rest]


def _set_random_state(part: Any, state: list[Any] | None) -> None:
    if state is not None:
        name, keys, *rest = state
        part._random_state.set_state((name, np.frombuffer(bytes.fromhex(keys), dtype="<u4"), *rest))


def _leave_rest(engine: SequentialEngineConfig, record: EvaluationRecord) -> None:
    """Takes recorded evaluations off the budget of a new engine."""
    finished: list[Evaluation] = record.finished
    if engine.max_model_count is not None:
        engine.max_model_count -= len(finished)
    if engine.max_duration is not None:
        engine.max_duration -= sum(evaluation.seconds for evaluation in finished)
