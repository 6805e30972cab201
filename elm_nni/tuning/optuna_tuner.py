"""Any sampler of Optuna as a tuner of NNI, with a storage that outlives the experiment's processes."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import optuna
from nni import NoMoreTrialError
from nni.runtime.env_vars import dispatcher_env_vars
from nni.tuner import Tuner
from optuna.trial import FrozenTrial, TrialState, create_trial

from elm_nni.digest import derive_seed
from elm_nni.strategies.optuna_samplers import checked_arguments, make_sampler, sampler_kind
from elm_nni.strategies.study_storage import open_study, register_worker
from elm_nni.tuning.nni_space import NniSpace

logger = logging.getLogger(__name__)

PARAMETERS, EXPERIMENT = "nni_parameters", "nni_experiment"


class OptunaTuner(Tuner):
    """Tunes an NNI experiment with a sampler of Optuna.

    Every parameter set is a trial of an Optuna study: told when the final result comes, failed when the trial failed,
    was stopped or reported no finite number. Numbers beside ``default`` in a final result become user attributes. The
    study lies in a database, so a resumed experiment goes on with all that was told, and optuna-dashboard can watch it.

    Args:
        sampler: ``tpe``, ``random``, ``gp``, ``cmaes``, ``qmc``, ``nsgaii``, ``nsgaiii``, ``grid`` or ``bruteforce``.
        sampler_args: its arguments, such as ``{"multivariate": true}``. TPE gets ``constant_liar`` unless told
            otherwise, since trials run side by side.
        optimize_mode: ``maximize`` or ``minimize``.
        storage: a database URL such as ``sqlite:////data/study.db``; None is a file in the experiment's own folder.
        study_name: studies of one name in one storage continue each other.
        seed: of the sampler, if it takes one; with the number of this start of the study it decides the draws.

    Attributes:
        late_result_seconds: how long the result of a trial that has ended is waited for.

    Raises:
        ValueError: naming the argument, its value and what is allowed.

    Example, in an experiment's configuration::

        tuner:
          className: elm_nni.tuning.optuna_tuner.OptunaTuner
          classArgs: {sampler: tpe, seed: 0}
    """

    late_result_seconds = 10.0

    def __init__(
        self,
        sampler: str = "tpe",
        sampler_args: dict[str, Any] | None = None,
        optimize_mode: Literal["maximize", "minimize"] = "maximize",
        storage: str | None = None,
        study_name: str = "nni",
        seed: int | None = None,
    ) -> None:
        if optimize_mode not in ("maximize", "minimize"):
            raise ValueError(f"optimize_mode is {optimize_mode!r}; allowed: maximize, minimize")
        self._experiment = str(Path(dispatcher_env_vars.NNI_CHECKPOINT_DIRECTORY or ".").absolute())
        self._kind = sampler_kind(sampler)
        self._arguments = checked_arguments(self._kind, sampler_args or {})
        self._study, engine = open_study(storage or _own_file(), study_name, [optimize_mode])
        # a resumed sampler, or one of another experiment, must draw anew; a grid's trials refer to its order
        if seed is not None and self._kind != "grid":
            seed = derive_seed(seed, "tuner", register_worker(engine, self._study._study_id)) % 2**32
        self._seed = seed
        self._live: dict[int, int] = {}
        self._ended: set[int] = set()
        self._space: NniSpace | None = None
        self._exhausted = False

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Takes the experiment's space.

        Raises:
            ValueError: it holds a parameter that cannot be drawn.
        """
        self._space = NniSpace(search_space)
        grid = self._space.grid() if self._kind == "grid" else None
        self._study.sampler = make_sampler(self._kind, self._arguments, seed=self._seed, grid=grid)

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """Parameters of a new trial.

        Raises:
            NoMoreTrialError: a grid or brute-force sampler has drawn everything.
        """
        assert self._space is not None
        sampler: Any = self._study.sampler
        if self._exhausted or self._kind == "grid" and sampler.is_exhausted(self._study):
            raise NoMoreTrialError(f"{self._kind} has drawn every parameter set")
        trial = self._study.ask()
        parameters = self._space.draw(trial._suggest)
        trial.set_user_attr(PARAMETERS, _canonical(parameters))
        trial.set_user_attr(EXPERIMENT, self._experiment)
        self._live[parameter_id] = trial.number
        return parameters

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **kwargs: Any) -> None:
        """Tells the study a final result: a number, or a dictionary with ``default``."""
        number = self._live.pop(parameter_id, None)
        if number is None:
            logger.warning("a result for unknown parameters %s is left out", parameter_id)
            return
        metric = _metric(value)
        trial_id = self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        for name, extra in value.items() if isinstance(value, dict) else ():
            if name != "default" and isinstance(extra, (int, float, str)):
                self._study._storage.set_trial_user_attr(trial_id, str(name), extra)
        self._tell(number, metric)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Fails the trial if it ended without a final result.

        NNI tells results and ends on two threads, so an end can overtake the result: it is waited for.
        """
        if parameter_id in self._live:
            self._ended.add(parameter_id)
            timer = threading.Timer(self.late_result_seconds, self._fail, (parameter_id,))
            timer.daemon = True
            timer.start()

    def load_checkpoint(self) -> None:
        """After a resume: what ran when the experiment stopped will report no more.

        Trials of other experiments in the same storage go on.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(EXPERIMENT, self._experiment) == self._experiment:
                self._tell(trial.number, None)

    def save_checkpoint(self) -> None:
        """The storage is durable; there is nothing to save."""

    def import_data(self, data: list[dict[str, Any]]) -> None:
        """Adds results of other trials; those that the study holds already, as after a resume, are not added twice."""
        assert self._space is not None
        completed = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        held = Counter((trial.user_attrs.get(PARAMETERS), trial.value) for trial in completed)
        for record in data:
            parameters, metric = record["parameter"], _metric(record["value"])
            key = (_canonical(parameters), metric)
            if held[key] > 0:
                held[key] -= 1
            elif metric is None:
                logger.warning("imported result %r is no finite number and is left out", record["value"])
            else:
                self._add(parameters, metric)

    def _on_exit(self) -> None:
        for parameter_id in list(self._ended):
            self._fail(parameter_id)

    def _fail(self, parameter_id: int) -> None:
        self._ended.discard(parameter_id)
        number = self._live.pop(parameter_id, None)
        if number is not None:
            self._tell(number, None)

    def _add(self, parameters: dict[str, Any], metric: float) -> None:
        assert self._space is not None
        try:
            values, distributions = self._space.encode(parameters)
        except ValueError as error:
            logger.warning("an imported result is left out: %s", error)
            return
        attributes = {PARAMETERS: _canonical(parameters)}
        trial = create_trial(params=values, distributions=distributions, value=metric, user_attrs=attributes)
        self._study.add_trial(trial)

    def _tell(self, number: int, metric: float | None) -> None:
        try:
            if metric is None:
                self._study.tell(number, state=TrialState.FAIL)
            else:
                self._study.tell(number, metric)
        except RuntimeError:
            # how grid and brute force end a study; it expects to be inside Study.optimize
            if self._study.trials[number].state == TrialState.RUNNING:
                raise
            self._exhausted = True


def trials_of(storage: str, study_name: str = "nni") -> list[FrozenTrial]:
    """All trials of an experiment's study, for analysis outside of it."""
    return optuna.load_study(study_name=study_name, storage=storage).get_trials()


def _own_file() -> str:
    folder = dispatcher_env_vars.NNI_CHECKPOINT_DIRECTORY
    return f"sqlite:///{Path(folder or '.').absolute() / 'optuna.db'}"


def _metric(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("default")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _canonical(parameters: Any) -> str:
    return json.dumps(parameters, sort_keys=True)
