"""Starting the repaired node manager from Python, in place of ``nni.experiment.launcher``'s functions."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from elm_nni.compat.manager import repaired_manager
from elm_nni.compat.settings import ALL_INTERFACES, LOOPBACK, ManagerSettings
from elm_nni.compat.start_watch import last_error, watch_start
from elm_nni.errors import UserError

_logger = logging.getLogger("nni.experiment")

# Trials of these run on other machines and call the manager back over the network.
_NETWORK_PLATFORMS = ("hybrid", "openpai", "kubeflow", "frameworkcontroller", "adl", "aml", "dlc")
_ANSWER_SECONDS = 30


def start_experiment(
    settings: ManagerSettings, action: str, exp_id: str, config: Any, port: int, debug: bool, run_mode: Any,
    url_prefix: str | None, tuner_command_channel: str | None = None, tags: list[str] | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Starts the manager and gives it the experiment; after ``settings`` the arguments are NNI's.

    Raises:
        UserError: the port is taken, the platform needs an open port, or the start failed; nothing is left running.
    """
    from nni.experiment import rest
    from nni.experiment.launcher import NniManagerArgs
    from nni.tools.nnictl.config_utils import Experiments

    prefix = url_prefix.strip("/") if url_prefix is not None else None
    foreground = run_mode.value == "foreground"
    arguments = NniManagerArgs(action, exp_id, config, port, debug, foreground, prefix, tuner_command_channel)
    if action != "view":
        _check_platform(arguments.mode, bool(getattr(config.training_service, "reuse_mode", False)), settings)
    check_port(port, settings.listen)
    _link_latest(Path(config.experiment_working_directory), exp_id)
    _logger.info("Creating experiment, Experiment ID: ${CYAN}%s", exp_id)
    log_folder = Path(config.experiment_working_directory, exp_id, "log")
    process = start_manager(settings, arguments.to_command_line_args(), log_folder, run_mode.value)
    try:
        _wait_for_answer(process, port, prefix, log_folder)
        Experiments().add_experiment(
            exp_id, port, int(time.time() * 1000), arguments.mode, config.experiment_name, pid=process.pid,
            logDir=config.experiment_working_directory, tag=tags or [], prefixUrl=prefix,
        )  # fmt: skip
        rest.post(port, "/experiment", config.json(), prefix)
        if action != "view" and tuner_command_channel is None and settings.watch_seconds:
            watch_start(process, port, prefix, log_folder, settings.watch_seconds)
    except BaseException:
        stop_manager(process, port, prefix)
        raise
    return process


def start_manager(
    settings: ManagerSettings, arguments: list[str], log_folder: Path, mode: str
) -> subprocess.Popen[bytes]:
    """Starts node. ``mode`` is NNI's: detach outlives this process and writes into the log folder; background and
    foreground end with this process.
    """
    folder = repaired_manager()
    node, script = str(folder / "node"), str(folder / "main.js")
    command = [node, "--max-old-space-size=4096", "--trace-uncaught", script, *arguments]
    environment = {**os.environ, "ELM_NNI_LISTEN": settings.listen}
    if mode != "detach":
        environment["ELM_NNI_DRIVER"] = str(os.getpid())
        _stop_on_sigterm()
        return subprocess.Popen(command, cwd=folder, env=environment, process_group=0)
    log_folder.mkdir(parents=True, exist_ok=True)
    line = "-" * 80
    header = f"{line}\nExperiment {log_folder.parent.name} start: {datetime.now()}\n{line}\n"
    with (log_folder / "nnictl_stdout.log").open("a") as output, (log_folder / "nnictl_stderr.log").open("a") as errors:
        for file in (output, errors):
            file.write(header)
            file.flush()
        return subprocess.Popen(
            command, cwd=folder, env=environment, process_group=0, stdin=subprocess.DEVNULL, stdout=output,
            stderr=errors,
        )  # fmt: skip


def stop_manager(process: subprocess.Popen[bytes], port: int, url_prefix: str | None) -> None:
    """Asks the manager to end its trials and itself, and kills it after 20 seconds."""
    from nni.experiment import rest

    if process.poll() is None:
        with suppress(Exception):
            rest.delete(port, "/experiment", url_prefix)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_port(port: int, listen: str = LOOPBACK) -> None:
    """Refuses a port that something listens on.

    Raises:
        UserError: names the port and a free one.
    """
    if _is_free(port, listen):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if _is_free(other, listen)), None)
    instead = f"; {free} is free: --port {free}, or port={free} in Python" if free else "; choose another with --port"
    raise UserError(f"port {port} is in use{instead}")


def _is_free(port: int, listen: str) -> bool:
    with socket.socket() as probe:
        # as node does: connections that are still closing do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
            # bound but not listening elsewhere is found out here
            probe.listen(1)
        except OSError:
            return False
    return True


def _check_platform(platform: str, reuse: bool, settings: ManagerSettings) -> None:
    if platform == "local" and reuse:
        raise UserError("trainingService.reuseMode is true, but NNI runs no trials so on this machine: set it to false")
    if (platform in _NETWORK_PLATFORMS or reuse) and settings.listen == LOOPBACK:
        raise UserError(
            f"trials of the platform {platform} call the manager over the network, which listens on {LOOPBACK} alone: "
            f"elm-nni nnictl create --listen {ALL_INTERFACES} opens it, without authentication"
        )


def _link_latest(folder: Path, exp_id: str) -> None:
    link = folder / "_latest"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(exp_id, target_is_directory=True)
    except OSError as error:
        _logger.warning("Failed to create link %s: %s", link, error)


def _wait_for_answer(
    process: subprocess.Popen[bytes], port: int, url_prefix: str | None, log_folder: Path
) -> None:
    from nni.experiment import rest

    limit = time.monotonic() + _ANSWER_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        with suppress(Exception):
            rest.get(port, "/check-status", url_prefix)
            return
        time.sleep(0.1)
    reason = f"did not answer within {_ANSWER_SECONDS} s" if process.poll() is None else "ended at once"
    raise UserError(f"the node manager {reason}: {last_error(log_folder) or 'it wrote no error'}; see {log_folder}")


def _stop_on_sigterm() -> None:
    """Lets SIGTERM end Python as ``sys.exit`` does, so that the experiment is saved and stopped on the way out."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
