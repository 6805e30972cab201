"""A search inside a trial of NNI, without a trace of it in the trial."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nni.runtime.trial_command_channel import TrialCommandChannel
from nni.typehint import ParameterRecord

from elm_nni.compat.known_files import KnownFile

_logger = logging.getLogger(__name__)

# Both keep what belongs to the trial in globals, which NNI's sequential engine overwrites.
_KNOWN = (
    KnownFile("nni/trial.py", "0b2627d45e5df5436d6cfc58ba7e25b484c755159c1c33621418d83c74939df2"),
    KnownFile(
        "nni/runtime/trial_command_channel/__init__.py",
        "011909471f5b09d776577cddad0d9aaacdf0d4abd8dab899a509eaeaed96e1c8",
    ),
)


@contextmanager
def nested_nas() -> Iterator[None]:
    """Keeps the identity of the trial around a search that runs in its process.

    NNI's sequential engine makes the searched model the trial's parameters, which loses the trial's parameter id, and
    reports of the searched models count on in the trial's sequence. Inside the block they are the search's own and go
    to its engine alone; a report that no engine takes is dropped. After it the trial's are back, after an error too.

    Raises:
        UserError: the installed NNI is not the one that this was written for.

    Example:
        >>> with nested_nas():
        ...     experiment.run()  # doctest: +SKIP
    """
    for known in _KNOWN:
        known.check()
    # nni has functions of these names beside the modules
    trial = importlib.import_module("nni.trial")
    channels = importlib.import_module("nni.runtime.trial_command_channel")
    saved: list[tuple[Any, str, Any]] = [
        (owner, name, getattr(owner, name))
        for owner, name in ((trial, "_params"), (trial, "_intermediate_seq"), (channels, "_channel"))
    ]
    trial.overwrite_intermediate_seq(0)
    channels.set_default_trial_command_channel(_Silence())
    try:
        yield
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)


class _Silence(TrialCommandChannel):
    """Hands out no parameters and drops reports."""

    def receive_parameter(self) -> ParameterRecord | None:
        return None

    def send_metric(self, type: str, parameter_id: int | None, trial_job_id: str, sequence: int, value: Any) -> None:
        _logger.debug("A %s report inside a nested search is dropped: %s", type, value)
