"""What NNI 3.0 needs to be right on today's stack, without a change to installed files.

Importing this package changes nothing. ``install`` puts the repairs on for a process, ``repaired_nni`` for a ``with``;
``elm-nni nnictl`` does it for NNI's command line.

Example:
    >>> with repaired_nni():
    ...     experiment.run(port=8080)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elm_nni.compat.manager import repaired_manager
    from elm_nni.compat.nas_experiment import ResumableNasExperiment
    from elm_nni.compat.python_repairs import install, repaired_nni, uninstall
    from elm_nni.compat.settings import ManagerSettings
    from elm_nni.compat.trial import nested_nas

_HOMES = {
    "ManagerSettings": "settings",
    "nested_nas": "trial",
    "ResumableNasExperiment": "nas_experiment",
    "install": "python_repairs",
    "repaired_manager": "manager",
    "repaired_nni": "python_repairs",
    "uninstall": "python_repairs",
}

__all__ = [
    "ManagerSettings",
    "ResumableNasExperiment",
    "install",
    "nested_nas",
    "repaired_manager",
    "repaired_nni",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
