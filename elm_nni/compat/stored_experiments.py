"""``nnictl view`` and ``nnictl resume`` for experiments of every kind, read from what NNI stored."""

from __future__ import annotations

import argparse
import json
import logging
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from elm_nni.compat.launcher import start_experiment
from elm_nni.compat.nas_manager import ABOUT_SEARCH, resume_hint
from elm_nni.compat.settings import LOOPBACK, ManagerSettings
from elm_nni.errors import UserError

_logger = logging.getLogger("nni.experiment")

RESUME_LOG = "resume.log"


@dataclass(frozen=True)
class StoredConfig:
    """A stored configuration with the fields that a start reads; NNI's own class refuses a stored NAS experiment."""

    experiment_name: str | None
    experiment_working_directory: str
    log_level: str
    training_service: Any
    stored: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """The configuration as the manager stored it."""
        return self.stored


def view_experiment(settings: ManagerSettings, stock: Any, args: argparse.Namespace) -> None:
    """Opens the web UI of a stopped experiment, read-only, in the background; NAS experiments too.

    Raises:
        UserError: there is no such experiment, it is running, or it ran without a manager.
    """
    from nni.experiment import RunMode

    stored, folder = stored_config(args.id, args.experiment_dir)
    if stored.get("experimentType") != "nas":
        stock(args)
        return
    config = StoredConfig(
        stored.get("experimentName"), str(folder), stored.get("logLevel", "info"),
        SimpleNamespace(platform=stored["trainingService"]["platform"]), stored,
    )  # fmt: skip
    start_experiment(settings, "view", args.id, config, args.port, False, RunMode.Detach, None)
    _logger.info("Web portal URL: ${CYAN}http://%s:%d", LOOPBACK, args.port)
    _logger.info('To stop viewing run "elm-nni nnictl stop %s"', args.id)


def resume_experiment(settings: ManagerSettings, stock: Any, args: argparse.Namespace) -> None:
    """Resumes an experiment with a tuner as NNI does, and a ``ResumableNasExperiment`` by running its command again.

    Raises:
        UserError: there is no such experiment, it is running, or it is another NAS experiment: its space, evaluator and
            strategy are objects of a Python script, which NNI does not store.
    """
    stored, folder = stored_config(args.id, args.experiment_dir)
    if stored.get("experimentType") != "nas":
        stock(args)
        return
    process = run_again(folder)
    if process is None:
        raise UserError(resume_hint(folder, args.id))
    _logger.info("Process %d runs the search again; its output: %s", process, folder / RESUME_LOG)


def run_again(folder: Path) -> int | None:
    """Starts the command of the search in ``folder`` in the background; None if the folder names no script.

    Returns:
        The id of the process.

    Raises:
        UserError: the command cannot be started.
    """
    about = folder / ABOUT_SEARCH
    known = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    command = known.get("command", [])
    # typed into an interpreter, or given as text: what it said is not known
    if len(command) < 2 or command[1] in ("-", "-c", "-i"):
        return None
    try:
        with (folder / RESUME_LOG).open("ab") as output:
            started = subprocess.Popen(
                command, cwd=known["working_directory"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot start {' '.join(command)}: {error.strerror}: {error.filename}") from error
    return started.pid


def stored_config(experiment: str, folder: str | None) -> tuple[dict[str, Any], Path]:
    """The configuration of a stopped experiment as JSON, and the folder that holds the experiment's.

    Raises:
        UserError: there is no such experiment, it is running, or it ran without a manager.
    """
    from nni.tools.nnictl.config_utils import Config, Experiments
    from nni.tools.nnictl.nnictl_utils import update_experiment

    if folder is None:
        update_experiment()
        known = Experiments().get_all_experiments()
        if experiment not in known:
            stopped = [name for name, entry in known.items() if entry["status"] == "STOPPED"]
            raise UserError(f"there is no experiment {experiment}; stopped ones: {', '.join(stopped) or 'none'}")
        if known[experiment]["status"] != "STOPPED":
            where = f"http://{LOOPBACK}:{known[experiment]['port']}"
            raise UserError(f"experiment {experiment} is running, see {where}; elm-nni nnictl stop {experiment}")
        folder = known[experiment]["logDir"]
    parent = Path(folder).expanduser().absolute()
    if not (parent / experiment / "db" / "nni.sqlite").is_file():
        raise UserError(_without_database(parent, experiment))
    try:
        stored = Config(experiment, str(parent)).get_config()
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UserError(f"{parent / experiment / 'db' / 'nni.sqlite'} is damaged: {error}") from error
    return stored, parent


def _without_database(parent: Path, experiment: str) -> str:
    if (parent / experiment / "checkpoint" / "config.json").is_file():
        return (
            f"experiment {experiment} ran in its Python process without a manager (one-shot or sequential): nothing to "
            f"view; {resume_hint(parent, experiment)}"
        )
    return f"{parent} holds no experiment {experiment}: {parent / experiment / 'db' / 'nni.sqlite'} is missing"
