"""What a manager left of a NAS experiment: its trials, their results, and those that ended with it."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from elm_nni.errors import UserError

ABOUT_SEARCH = "experiment.json"
_END_SECONDS = 60.0


def resume_hint(folder: Path, experiment: str) -> str:
    """How to go on with a NAS experiment, whose space and strategy only a Python script has.

    Args:
        folder: the folder that holds the experiment's, ``logDir`` in NNI's list of experiments.
        experiment: its id.

    Example:
        >>> resume_hint(Path("runs/search"), "abc")  # doctest: +SKIP
        'run the script of experiment abc again: ResumableNasExperiment goes on with what is in runs/search'
    """
    if (folder / ABOUT_SEARCH).is_file():
        return (
            f"run the script of experiment {experiment} again: ResumableNasExperiment goes on with what is in {folder}"
        )
    return (
        f"experiment {experiment} cannot be resumed: NasExperiment keeps no evaluations that can be read "
        "back safely; elm_nni.compat.ResumableNasExperiment does"
    )


def has_database(path: Path, experiment: str) -> bool:
    """Whether the manager came as far as storing the experiment."""
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path)) as database:
        try:
            query = "SELECT count(*) FROM ExperimentProfile WHERE id = ?"
            return bool(database.execute(query, (experiment,)).fetchone()[0])
        except sqlite3.OperationalError:
            # killed before it made its tables
            return False
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is damaged: {error}") from error


def wait_for_end(experiment: str) -> None:
    """Waits for the manager of an earlier process, which ends after its driver.

    Raises:
        UserError: it still runs after a minute.
    """
    from nni.tools.nnictl.config_utils import Experiments

    entry = Experiments().get_all_experiments().get(experiment, {})
    limit = time.monotonic() + _END_SECONDS
    while _is_manager(entry.get("pid"), experiment):
        if time.monotonic() > limit:
            raise UserError(
                f"experiment {experiment} is still running on port {entry['port']}: elm-nni nnictl stop {experiment}"
            )
        time.sleep(0.2)


def settle_lost_trials(path: Path) -> None:
    """Ends trials that ended with their manager, which a resumed one would start again by itself.

    One whose final metric is stored has succeeded, another one is cancelled.
    """
    with closing(sqlite3.connect(path)) as database, database:
        events = database.execute(
            "SELECT trialJobId, event, sequenceId FROM TrialJobEvent ORDER BY timestamp, rowid"
        ).fetchall()
        finished = {row[0] for row in database.execute("SELECT trialJobId FROM MetricData WHERE type = 'FINAL'")}
        for trial, (event, number) in {trial: (event, number) for trial, event, number in events}.items():
            if event in ("WAITING", "RUNNING"):
                database.execute(
                    "INSERT INTO TrialJobEvent (timestamp, trialJobId, event, sequenceId) VALUES (?, ?, ?, ?)",
                    (int(time.time() * 1000), trial, "SUCCEEDED" if trial in finished else "SYS_CANCELED", number),
                )


def earlier_trials(port: int) -> list[tuple[dict[str, Any], Any, str]]:
    """(sample, final metric or None, ``trained`` or ``failed``) of the trials that a resumed manager knows.

    Parameters are read as plain JSON: NNI's reader would run what is in them.
    """
    from nni.experiment import rest

    found = []
    for job in rest.get(port, "/trial-jobs"):
        sample = json.loads(job["hyperParameters"][0])["parameters"].get("mutation_summary")
        metrics = [json.loads(json.loads(entry["data"])) for entry in job.get("finalMetricData", [])]
        if sample is not None:
            status = "failed" if job["status"] == "FAILED" else "trained"
            found.append((sample, metrics[-1] if metrics else None, status))
    return found


def _is_manager(pid: Any, experiment: str) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and experiment in process.cmdline()
    except (psutil.Error, TypeError, ValueError):
        return False
