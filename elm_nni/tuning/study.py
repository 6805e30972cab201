"""An Optuna study whose trials are runs of the pipeline."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine

from elm_nni.digest import derive_seed
from elm_nni.errors import UserError
from elm_nni.pipeline.probe import Point
from elm_nni.pipeline.runner import Run
from elm_nni.pipeline.store import StageResult, StageStore, write_json
from elm_nni.report import STUDY_FILE
from elm_nni.strategies.optuna_samplers import (
    check_directions,
    checked_arguments,
    grid_values,
    make_sampler,
    sampler_kind,
)
from elm_nni.strategies.study_storage import open_study, register_worker, without_password
from elm_nni.tuning.tune_file import Mode, Tuning

# A trial whose worker died is tried again so many times.
MAX_RETRIES = 3
REASON, BUILT, ARCHITECTURE = "reason", "stages_built", "architecture"


class TuningStudy:
    """The study of a tuning file in a folder; the same file may run in several processes at once, as its workers.

    A trial sets its keys on the base configuration and runs the pipeline up to the trained model, never the test rows.
    It finds every stage before the first one that its keys touch in the stage store. With a pruner it reports the
    validation metric of every epoch and generation and may end early. A mistake of the user in a trial (a limit
    that its keys make unreachable) fails that trial and is kept as its ``reason``.

    Args:
        tuning: of :func:`~elm_nni.tuning.tune_file.load_tuning`.
        folder: study database (unless the file names a storage) and the run directories of this worker's trials.
        store: of stages, shared by the workers of a machine.
        proxy: trials are the cheap ones of ``tuning.proxy``, in a study of their own.
        announce: called with a line for people.

    Raises:
        UserError: the storage cannot be opened, the sampler or its arguments do not fit, or there is no proxy.

    Example::

        study = TuningStudy(load_tuning(Path("eta.yaml")), Path("studies/eta"), StageStore(default_store()))
        study.run()
        study.best()
    """

    def __init__(
        self, tuning: Tuning, folder: Path, store: StageStore, *, proxy: bool = False,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        if proxy and not tuning.proxy:
            raise UserError("proxy: the file has none; it must set keys that make a trial cheap")
        self.tuning, self.folder, self.store, self.proxy, self.announce = tuning, folder, store, proxy, announce
        self.url = tuning.storage or f"sqlite:///{folder.absolute() / 'study.db'}"
        self.name = _proxy_name(tuning) if proxy else tuning.name
        folder.mkdir(parents=True, exist_ok=True)
        self.study, engine = _open(self.url, self.name, tuning.objectives, tuning.grace)
        self.study.pruner = _pruner(tuning.pruner)
        self._describe()
        self.study.sampler = _sampler(tuning, engine, self.study._study_id)

    @property
    def shown_url(self) -> str:
        """The storage as it can be shown."""
        return without_password(self.url)

    def run(self) -> None:
        """Runs trials until the study has as many as the file says, those of other workers counted."""
        while self._finished() < self.tuning.trials:
            try:
                self.study.optimize(self._trial, callbacks=[self._stop_when_done], catch=(UserError,))
                return
            except (UpdateFinishedTrialError, ValueError) as error:
                # a ValueError is how Optuna refuses to tell a trial that is no longer this worker's
                if isinstance(error, ValueError) and not str(error).startswith("Cannot tell a"):
                    raise
                self.announce("this worker stood still for so long that another one took its trial over")

    def best(self) -> list[FrozenTrial]:
        """The best trial that keeps the constraints, or the Pareto front; empty if there is none."""
        if len(self.tuning.objectives) > 1:
            return self.study.best_trials
        maximize = next(iter(self.tuning.objectives.values())) == "maximize"
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        kept = [trial for trial in complete if _keeps(trial)]
        return sorted(kept, key=lambda trial: (-trial.values[0] if maximize else trial.values[0], trial.number))[:1]

    def _trial(self, trial: optuna.Trial) -> tuple[float, ...]:
        parameters = {key: trial._suggest(key, distribution) for key, distribution in self.tuning.space.items()}
        built: list[str] = []

        def announce(label: str, result: StageResult) -> None:
            if not result.cached:
                built.append(label)

        try:
            config = self.tuning.config(parameters, proxy=self.proxy)
            observe = partial(_report, trial, []) if self.tuning.pruner != "none" else lambda point: None
            run = Run(config, self.store, self._run_folder(trial.number), announce, observe)
            values = run.validate()
            trial.set_user_attr(ARCHITECTURE, run.architecture())
        except UserError as error:
            trial.set_user_attr(REASON, str(error))
            raise
        finally:
            trial.set_user_attr(BUILT, built)
        for name, value in values.items():
            trial.set_user_attr(name, value)
        for name, maximum in self.tuning.constraints.items():
            trial.set_constraint(name, values[name] - maximum)
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in self.tuning.objectives)
        made = ", ".join(built) or "nothing"
        self.announce(f"trial {trial.number}: {json.dumps(parameters)}: {shown}; built: {made}")
        return tuple(values[name] for name in self.tuning.objectives)

    def _describe(self) -> None:
        """What the study's report needs to find it."""
        tuning = self.tuning
        write_json(
            self.folder / STUDY_FILE,
            {
                "storage": self.shown_url, "study": tuning.name, "proxy": _proxy_name(tuning) if tuning.proxy else None,
                "objectives": dict(tuning.objectives), "constraints": dict(tuning.constraints),
            },
        )  # fmt: skip

    def _run_folder(self, number: int) -> Path:
        return self.folder / ("proxy" if self.proxy else "trials") / str(number)

    def _finished(self) -> int:
        ended = self.study.get_trials(deepcopy=False)
        return sum(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            or (trial.state == TrialState.FAIL and REASON in trial.user_attrs)
            for trial in ended
        )

    def _stop_when_done(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL:
            self.announce(f"trial {trial.number} failed: {trial.user_attrs.get(REASON, 'see its log')}")
        elif trial.state == TrialState.PRUNED:
            self.announce(f"trial {trial.number} was pruned after {len(trial.intermediate_values)} reports")
        if self._finished() >= self.tuning.trials:
            study.stop()


def _report(trial: optuna.Trial, points: list[Point], point: Point) -> None:
    points.append(point)
    trial.report(point.metric, step=len(points) - 1)
    if trial.should_prune():
        raise optuna.TrialPruned


def _proxy_name(tuning: Tuning) -> str:
    return f"{tuning.name}-proxy"


def _keeps(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in (trial.constraints or {}).values())


def _open(url: str, name: str, objectives: Mapping[str, Mode], grace: float) -> tuple[optuna.Study, Engine]:
    names, directions = list(objectives), [str(mode) for mode in objectives.values()]
    with warnings.catch_warnings():
        # Optuna calls its heartbeats experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        study, engine = open_study(
            url, name, directions, heartbeat_interval=max(1, round(grace / 3)), grace_period=max(2, round(grace)),
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
        )  # fmt: skip
    held = [direction.name.lower() for direction in study.directions]
    if held != directions:
        raise UserError(
            f"objectives: study {name} in {without_password(url)} has {held}, the file {directions}: choose another "
            "name"
        )
    with warnings.catch_warnings():
        # Optuna calls names of objectives experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(names)
    return study, engine


def _pruner(name: str) -> optuna.pruners.BasePruner:
    median = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    with warnings.catch_warnings():
        # Optuna calls the patient one experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        return {
            "none": optuna.pruners.NopPruner(), "median": median, "hyperband": optuna.pruners.HyperbandPruner(),
            "patient": optuna.pruners.PatientPruner(median, patience=2),
        }[name]  # fmt: skip


def _sampler(tuning: Tuning, engine: Engine, study_id: int) -> optuna.samplers.BaseSampler:
    try:
        kind = sampler_kind(tuning.sampler)
        check_directions(kind, len(tuning.objectives))
        arguments = checked_arguments(kind, tuning.sampler_args)
        if kind == "grid":
            grid = {key: grid_values(f"space.{key}", distribution) for key, distribution in tuning.space.items()}
            return make_sampler(kind, arguments, seed=tuning.seed, grid=grid)
        # a worker that starts, or starts again, beside others draws from a place of its own
        seed = derive_seed(tuning.seed, "tune", register_worker(engine, study_id))
        return make_sampler(kind, arguments, seed=seed % 2**32)
    except ValueError as error:
        raise UserError(str(error)) from error
