"""Reads an Optuna study of runs, and the study of its cheap trials, into frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from elm_nni.analysis.pareto import non_dominated
from elm_nni.errors import UserError, first_line
from elm_nni.report import STUDY_FILE
from elm_nni.report.fields import Fields, read_object
from elm_nni.search_spaces.architecture import cell_name, chosen_blocks

# What costs something; everything else that a trial measures is quality.
COSTS = ("params", "params_outside_embeddings", "latency_ms")
VALIDATION = "validation"

Mode = Literal["maximize", "minimize"]
State = Literal["complete", "pruned", "failed", "running", "waiting"]

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip
# How long to wait for a worker that writes, and for a host that does not answer.
_LOCK_SECONDS, _CONNECT_SECONDS = 20, 10
_SHOWN_NAMES = 5
# A table that every storage of Optuna has.
_STUDIES = "studies"


@dataclass(frozen=True)
class StudyTrial:
    """One trial.

    Attributes:
        values: every finite number it measured, first the objectives, then other qualities, then costs.
        heads: attention heads of each layer; empty if the architecture is unknown.
        reports: step to the value that it reported on its way.
        built: stages that it built; the others were found in the stage store.
        reason: why it failed.
        seconds: wall time; ``None`` unless it ended.
        broken: names of the limits that it breaks.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    values: Mapping[str, float]
    heads: tuple[int, ...]
    reports: Mapping[int, float]
    built: tuple[str, ...]
    reason: str | None
    seconds: float | None
    broken: tuple[str, ...]


@dataclass(frozen=True)
class StudyData:
    """All that a study holds for the report.

    Attributes:
        storage: its address without a password.
        proxy_trials: ``None`` if the study of cheap trials does not exist.
        distributions: parameter to what it was drawn from; the last one if trials differ.
    """

    folder: Path
    name: str
    storage: str
    objectives: Mapping[str, Mode]
    constraints: Mapping[str, float]
    trials: tuple[StudyTrial, ...]
    proxy_name: str | None
    proxy_trials: tuple[StudyTrial, ...] | None
    distributions: Mapping[str, BaseDistribution]

    @property
    def complete(self) -> list[StudyTrial]:
        """Trials with a finite value for every objective, in the order of their numbers."""
        return completed(self.trials, self.objectives)

    @property
    def feasible(self) -> list[StudyTrial]:
        """Complete trials that keep the limits."""
        return [trial for trial in self.complete if not trial.broken]

    @property
    def quality(self) -> str:
        """The value that sweeps show: the first objective that is no cost, else the validation metric."""
        named = [name for name in self.objectives if name not in COSTS]
        return named[0] if named else VALIDATION

    @property
    def front(self) -> list[StudyTrial]:
        """The Pareto front of the trials that keep the limits, best in the first objective first.

        With one objective these are the best trial and those that equal it.
        """
        feasible = self.feasible
        costs_NM = self.costs(feasible)
        kept = [(tuple(cost_M), trial.number, trial)
                for cost_M, trial, front in zip(costs_NM, feasible, non_dominated(costs_NM)) if front]
        return [trial for *_, trial in sorted(kept, key=lambda row: row[:2])]

    def costs(self, trials: Sequence[StudyTrial]) -> NDArray[np.float64]:
        """Objectives (N trials, M), all to be minimised."""
        rows = [[sign(mode) * trial.values[name] for name, mode in self.objectives.items()] for trial in trials]
        return np.array(rows, dtype=np.float64).reshape(len(trials), len(self.objectives))


def completed(trials: Sequence[StudyTrial], objectives: Mapping[str, Mode]) -> list[StudyTrial]:
    """Complete trials with a finite value for every objective."""
    return [trial for trial in trials if trial.state == "complete" and all(name in trial.values for name in objectives)]


def sign(mode: Mode) -> int:
    """What makes an objective one that is minimised."""
    return -1 if mode == "maximize" else 1


def load_study(folder: Path, storage: str | None = None) -> StudyData:
    """Reads the study that ``study.json`` of a folder names; writes nothing, neither a file nor a table.

    A study whose trials have not begun has none; that holds too if only its cheap trials have.

    Args:
        storage: its URL with the password, which the file does not hold; None takes the file's, and the password from
            where the database's driver looks for it.

    Raises:
        UserError: no such folder or file, a broken one, a storage that cannot be read, a study that is not there or has
            other objectives.

    Example:
        >>> load_study(Path("studies/eta")).front[0].params  # doctest: +SKIP
        {'prune.eta': 0.95, 'prune.mode': 'fuse'}
    """
    if not folder.is_dir():
        raise UserError(f"study folder {str(folder)!r} does not exist or is not a directory")
    fields = read_object(folder, STUDY_FILE)
    if fields is None:
        raise UserError(f"study folder {str(folder)!r} holds no {STUDY_FILE}; elm-nni tune writes it")
    name, objectives, constraints = fields.text("study"), _objectives(fields), fields.fields("constraints").numbers()
    proxy_name = fields.text("proxy", "") or None
    url = _url(fields, folder) if storage is None else make_url(storage)
    shown = url.render_as_string(hide_password=True)
    studies = _read(url, shown, [name, *([proxy_name] if proxy_name else [])], list(objectives.values()))
    drawn = studies.get(name, [])
    proxies = studies.get(proxy_name) if proxy_name else None
    full_heads = max((max(_heads(trial, 0), default=0) for trial in (*drawn, *(proxies or ()))), default=0)

    def trials_of(study: Sequence[FrozenTrial]) -> tuple[StudyTrial, ...]:
        return tuple(_trial(trial, list(objectives), constraints, full_heads) for trial in study)

    return StudyData(
        folder=folder, name=name, storage=shown, objectives=objectives, constraints=constraints,
        trials=trials_of(drawn), proxy_name=proxy_name, proxy_trials=None if proxies is None else trials_of(proxies),
        distributions={key: value for trial in drawn for key, value in trial.distributions.items()},
    )  # fmt: skip


def _objectives(fields: Fields) -> dict[str, Mode]:
    objectives = fields.fields("objectives")
    for name, mode in objectives.values.items():
        if mode not in ("maximize", "minimize"):
            raise objectives.fail(name, "maximize or minimize")
    if not objectives.values:
        raise fields.fail("objectives", "at least one value and its direction")
    return dict(objectives.values)


def _url(fields: Fields, folder: Path) -> URL:
    """The storage; a database that is not where it was is looked for in the folder, which may have been moved."""
    try:
        url = make_url(fields.text("storage"))
    except ArgumentError:
        # the value is not repeated: it may hold a password
        raise UserError(f"{fields.place}: 'storage' is no database URL such as sqlite:///study.db") from None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return url
    if Path(url.database).is_file():
        return url
    moved = folder / Path(url.database).name
    if moved.is_file():
        return url.set(database=str(moved))
    # SQLite would make an empty one
    raise UserError(f"storage {str(url)!r} cannot be read: there is no such file")


def _read(
    url: URL, shown: str, names: Sequence[str], directions: Sequence[Mode]
) -> dict[str, list[FrozenTrial]]:
    """Trials of those of the studies that exist; at least one does."""
    options: dict[str, dict[str, Any]] = {
        "sqlite": {"timeout": _LOCK_SECONDS}, "postgresql": {"connect_timeout": _CONNECT_SECONDS}
    }  # fmt: skip
    connecting: dict[str, Any] = {"connect_args": options.get(url.get_backend_name(), {})}
    try:
        engine = sa.create_engine(url, **connecting)
        is_known = sa.inspect(engine).has_table(_STUDIES)
        engine.dispose()
        if not is_known:
            # Optuna would make its tables, or fail without saying why
            raise UserError("it holds no studies of Optuna")
        address = url.render_as_string(hide_password=False)
        storage = RDBStorage(address, engine_kwargs=connecting, skip_table_creation=True)
        known = optuna.get_all_study_names(storage)
        studies = {name: optuna.load_study(study_name=name, storage=storage) for name in names if name in known}
        trials = {name: study.get_trials(deepcopy=False) for name, study in studies.items()}
        held = {name: [direction.name.lower() for direction in study.directions] for name, study in studies.items()}
        storage.remove_session()
        storage.engine.dispose()
    except Exception as error:
        # whatever the database's driver raises
        raise UserError(f"storage {shown!r} cannot be read: {first_line(error)}") from error
    if not studies:
        others = ", ".join(sorted(known)[:_SHOWN_NAMES]) + (", ..." if len(known) > _SHOWN_NAMES else "")
        raise UserError(f"storage {shown!r} has no study {names[0]!r}; it has: {others or 'none'}")
    for name, modes in held.items():
        if modes != list(directions):
            raise UserError(f"study {name!r} in {shown!r} has the directions {modes}, {STUDY_FILE} {list(directions)}")
    return trials


def _trial(
    trial: FrozenTrial, objectives: Sequence[str], constraints: Mapping[str, float], full_heads: int
) -> StudyTrial:
    attributes = trial.user_attrs
    measured = _finite({**attributes, **dict(zip(objectives, trial.values or ()))})
    tasks = sorted(set(measured) - {*objectives, VALIDATION, *COSTS})
    values = {name: measured[name] for name in (*objectives, VALIDATION, *tasks, *COSTS) if name in measured}
    # the limits may have been others when the trial ran
    broken = {name for name, limit in constraints.items() if values.get(name, -math.inf) > limit}
    broken |= {name for name, excess in (trial.constraints or {}).items() if excess > 0}
    built, reason = attributes.get("stages_built"), attributes.get("reason")
    return StudyTrial(
        number=trial.number, state=_STATES[trial.state], params=trial.params, values=values,
        heads=tuple(_heads(trial, full_heads)),
        reports={step: value for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)},
        built=tuple(map(str, built)) if isinstance(built, list) else (), reason=None if reason is None else str(reason),
        seconds=trial.duration.total_seconds() if trial.duration and trial.state.is_finished() else None,
        broken=tuple(sorted(broken)),
    )  # fmt: skip


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value) for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }  # fmt: skip


def _heads(trial: FrozenTrial, full_heads: int) -> list[int]:
    """Heads of each layer; a layer without a label has all, which is the most that any trial of the study has."""
    architecture = trial.user_attrs.get("architecture")
    if not isinstance(architecture, dict):
        return []
    cells = [cell_name(layer, block) for layer, block in enumerate(chosen_blocks(architecture))]
    return [int(architecture.get(f"{cell}_heads", full_heads)) for cell in cells]
