"""Watching the start of an experiment, so that a wrong configuration ends in one line instead of a silent wait."""

from __future__ import annotations

import logging
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from elm_nni.errors import UserError

_logger = logging.getLogger("nni.experiment")

_POLL_SECONDS = 0.25
_ERRORS = {"nnimanager.log": r"\] (?:ERROR|CRITICAL) \(\w+\) (.*)", "nnictl_stderr.log": r"(.*Error: .*)"}


def watch_start(
    process: subprocess.Popen[bytes], port: int, url_prefix: str | None, log_folder: Path, seconds: float
) -> None:
    """Returns when a trial has asked for its parameters, or after ``seconds`` without an error.

    Raises:
        UserError: the tuner, the training service or a trial failed before that.
    """
    from nni.experiment import rest

    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            # in this order: a trial that failed here has not asked for its parameters where the status says none has
            trials = rest.get(port, "/trial-jobs", url_prefix)
            status = rest.get(port, "/check-status", url_prefix)
        except OSError as error:
            reason = last_error(log_folder) or "the node manager has ended"
            raise UserError(f"the experiment cannot start: {reason}; see {log_folder}") from error
        if status["errors"]:
            raise UserError(f"the experiment cannot start: {status['errors'][0]}; see {log_folder}")
        if status["parametersRequested"] or status["status"] == "DONE":
            return
        failed = [trial for trial in trials if trial["status"] == "FAILED"]
        if failed:
            raise UserError(f"the first trial failed before it asked for its parameters: {_trial_error(failed[0])}")
        time.sleep(_POLL_SECONDS)
    if process.poll() is None:
        _logger.info("No trial has asked for its parameters within %g s; the experiment goes on", seconds)


def last_error(log_folder: Path) -> str | None:
    """The last error in the logs of an experiment, one line, or None."""
    for name, pattern in _ERRORS.items():
        path = log_folder / name
        found = re.findall(pattern, path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []
        if found:
            return str(found[-1]).strip()
    return None


def _trial_error(trial: dict[str, Any]) -> str:
    # NNI says file://host:path
    folder = Path(str(trial.get("logPath", "")).rpartition(":")[2])
    path = folder / "trial.stderr"
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return f"{lines[-1] if lines else 'it wrote no error'}; see {path}"
