"""Repairs of NNI's Python side, in this process alone: named, bound to a known file, put on and taken off together."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from elm_nni.compat.known_files import KnownFile
from elm_nni.compat.launcher import start_experiment
from elm_nni.compat.settings import ALL_INTERFACES, LOOPBACK, ManagerSettings
from elm_nni.compat.stored_experiments import resume_experiment, view_experiment

_logger = logging.getLogger("nni.experiment")


@dataclass(frozen=True)
class PythonRepair:
    """One attribute of an NNI module or class that is replaced.

    Attributes:
        name: what it mends.
        known: the file that the repair was written for.
        module: where the attribute is.
        attribute: its name, such as ``Experiment._start_nni_manager``.
        build: makes the replacement from (settings, stock attribute).
    """

    name: str
    known: KnownFile
    module: str
    attribute: str
    build: Callable[[ManagerSettings, Any], Any]


def _start_experiment(settings: ManagerSettings, stock: Any) -> Any:
    return functools.partial(start_experiment, settings)


def _view_experiment(settings: ManagerSettings, stock: Any) -> Any:
    return functools.partial(view_experiment, settings, stock)


def _resume_experiment(settings: ManagerSettings, stock: Any) -> Any:
    return functools.partial(resume_experiment, settings, stock)


def _start_nni_manager(settings: ManagerSettings, stock: Any) -> Any:
    """As NNI's, without the addresses at which nothing listens."""

    def start(
        self: Any, port: int, debug: bool, run_mode: Any = None, tuner_command_channel: str | None = None,
        tags: list[str] | None = None,
    ) -> None:  # fmt: skip
        from nni.experiment import RunMode, launcher

        if settings.listen == ALL_INTERFACES:
            stock(self, port, debug, run_mode or RunMode.Background, tuner_command_channel, tags or [])
            return
        config = self.config.canonical_copy()
        if config.use_annotation:
            raise RuntimeError("NNI annotation is not supported by Python experiment API.")
        self._proc = launcher.start_experiment(
            self._action, self.id, config, port, debug, run_mode or RunMode.Background, self.url_prefix,
            tuner_command_channel, tags or [],
        )  # fmt: skip
        self.port = port
        _logger.info("Web portal URL: ${CYAN}http://%s:%d/%s", LOOPBACK, port, (self.url_prefix or "").strip("/"))

    return start


_LAUNCHER = KnownFile(
    "nni/experiment/launcher.py", "4f8ad08481b9454b6ef1381abe66750d3d29efcd4c450dbd46590230355aa941"
)
_EXPERIMENT = KnownFile(
    "nni/experiment/experiment.py", "9bda7748acac247f3c2e7f14677b8c1011b047c93340c93311a5bd1d93fbf7de"
)
_NNICTL = KnownFile(
    "nni/tools/nnictl/launcher.py", "321a33a496155124012b1f9bdf35adbbab6b863c5525cd67bfe8f6b3ab309c38"
)

PYTHON_REPAIRS = (
    PythonRepair(
        "start the repaired manager", _LAUNCHER, "nni.experiment.launcher", "start_experiment", _start_experiment
    ),
    PythonRepair(
        "name the address that listens", _EXPERIMENT, "nni.experiment.experiment", "Experiment._start_nni_manager",
        _start_nni_manager,
    ),
    PythonRepair(
        "view NAS experiments", _NNICTL, "nni.tools.nnictl.launcher", "view_experiment", _view_experiment
    ),
    PythonRepair(
        "resume NAS experiments", _NNICTL, "nni.tools.nnictl.launcher", "resume_experiment",
        _resume_experiment,
    ),
)  # fmt: skip

_stock: list[tuple[Any, str, Any]] = []


def put_on(repairs: Sequence[PythonRepair], settings: ManagerSettings) -> list[tuple[Any, str, Any]]:
    """Checks every file, then replaces every attribute; returns what to put back, newest last.

    Raises:
        UserError: the installed NNI is not the one that the repairs know; nothing is replaced.
    """
    for repair in repairs:
        repair.known.check()
    stock: list[tuple[Any, str, Any]] = []
    for repair in repairs:
        owner: Any = importlib.import_module(repair.module)
        *path, name = repair.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        stock.append((owner, name, getattr(owner, name)))
        setattr(owner, name, repair.build(settings, getattr(owner, name)))
    return stock


def put_back(stock: list[tuple[Any, str, Any]]) -> None:
    """Undoes :func:`put_on` and empties its list."""
    while stock:
        owner, name, before = stock.pop()
        setattr(owner, name, before)


def install(settings: ManagerSettings | None = None) -> None:
    """Puts the repairs on for the rest of the process; again with other settings replaces them.

    Raises:
        UserError: the installed NNI is not the one that the repairs know.

    Example:
        >>> install(ManagerSettings(listen="127.0.0.1"))
    """
    for repair in PYTHON_REPAIRS:
        repair.known.check()
    uninstall()
    _stock.extend(put_on(PYTHON_REPAIRS, settings or ManagerSettings()))


def installed() -> bool:
    """Whether the repairs are on in this process."""
    return bool(_stock)


def uninstall() -> None:
    """Takes the repairs off; nothing happens where none are on."""
    put_back(_stock)


@contextmanager
def repaired_nni(settings: ManagerSettings | None = None) -> Iterator[None]:
    """NNI with the repairs inside the ``with``, stock after it.

    Raises:
        UserError: the installed NNI is not the one that the repairs know.

    Example:
        >>> with repaired_nni():
        ...     experiment.run(port=8080)  # doctest: +SKIP
    """
    before = list(_stock)
    current = [(owner, name, getattr(owner, name)) for owner, name, _ in before]
    install(settings)
    try:
        yield
    finally:
        uninstall()
        for owner, name, repaired in current:
            setattr(owner, name, repaired)
        _stock.extend(before)
