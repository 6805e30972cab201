"""Repairs of NNI's NAS classes, and the files that ``ResumableNasExperiment`` knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from elm_nni.compat.known_files import KnownFile
from elm_nni.compat.python_repairs import PythonRepair, put_back, put_on
from elm_nni.compat.settings import ManagerSettings

_SPACE = KnownFile("nni/nas/space/space.py", "c65f0e58fab8dd08a08797aa39de1fc12e9bb0334bc4def3fb3a60d6b2a6b2f0")
_CHANNEL = KnownFile(
    "nni/runtime/tuner_command_channel/channel.py", "bf47a1624b4491aaeccf7aa51e42e0fd39ddbd366ee75fd2367b36748932ae23"
)

# What the recording engine and the experiment override or call without NNI's promise that it stays.
NAS_FILES = (
    _SPACE,
    KnownFile(
        "nni/nas/experiment/experiment.py", "685e520a95dfb106f3127c55bab16abbec3b5f1adfed9cacc52e03279975b623"
    ),
    KnownFile("nni/nas/execution/engine.py", "37d676d6d2a2e464d3fa97511f47c5fb716f523e6937748bee9bf9a6d6a9e366"),
    KnownFile("nni/nas/execution/sequential.py", "2f631db3ea8fe86947d565f825a1fc5f19f68352b25228021766059ad7f2104d"),
    KnownFile(
        "nni/nas/execution/training_service.py", "c1dba26e1005d7955058f14d3b9337d60ac39467789cbec94e34540c2e4ddbd1"
    ),
    KnownFile("nni/nas/strategy/base.py", "2a8e24c62154bee39d3975215ed486c6454e0b2c9528d03b5fcf1d609620a391"),
)


def _dump_with_summary(settings: ManagerSettings, stock: Any) -> Callable[[Any], dict[str, Any]]:
    """As NNI's, with the key that the web UI shows as a trial's parameters; NNI's own reader passes over it."""

    def dump(self: Any) -> dict[str, Any]:
        dumped: dict[str, Any] = stock(self)
        if self.sample is not None:
            dumped["mutation_summary"] = dict(self.sample)
        return dumped

    return dump


def _freeze_a_copy(settings: ManagerSettings, stock: Any) -> Callable[[Any, dict[str, Any]], Any]:
    """As NNI's, but not on the dict that ``grid`` goes on to change: a shuffled GridSearch froze empty samples."""

    def freeze(self: Any, sample: dict[str, Any]) -> Any:
        return stock(self, deepcopy(sample))

    return freeze


def _pass_over_old_trials(settings: ManagerSettings, stock: Any) -> Callable[[Any], tuple[Any, Any]]:
    """As NNI's, without the trials that a resumed manager sends first: they ended the thread that listens, so that no
    trial was ever asked for, and unpickled what the database holds.
    """

    def receive(self: Any) -> tuple[Any, Any]:
        from nni.runtime.tuner_command_channel.command_type import CommandType

        while True:
            command, content = stock(self)
            if command not in (CommandType.ImportData, CommandType.AddCustomizedTrialJob):
                return command, content

    return receive


NAS_REPAIRS = (
    PythonRepair(
        "architecture in the web UI", _SPACE, "nni.nas.space.space", "SimplifiedModelSpace._dump", _dump_with_summary
    ),
    PythonRepair(
        "a sample of its own for a raw model", _SPACE, "nni.nas.space.space", "RawFormatModelSpace.freeze",
        _freeze_a_copy,
    ),
    PythonRepair(
        "trials of a resumed manager", _CHANNEL, "nni.runtime.tuner_command_channel.channel",
        "TunerCommandChannel._receive", _pass_over_old_trials,
    ),
)  # fmt: skip


@contextmanager
def repaired_nas() -> Iterator[None]:
    """NNI's NAS classes with the repairs inside the ``with``, stock after it.

    Raises:
        UserError: the installed NNI is not the one that the repairs know.

    Example:
        >>> with repaired_nas():
        ...     experiment.run()  # doctest: +SKIP
    """
    stock = put_on(NAS_REPAIRS, ManagerSettings())
    try:
        yield
    finally:
        put_back(stock)
