"""What nnictl uses of ``pkg_resources``, through ``importlib.metadata``, where setuptools no longer ships it."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from types import ModuleType


class ResolutionError(Exception):
    """As ``pkg_resources.ResolutionError``: a distribution is not installed."""


def get_distribution(name: str) -> Distribution:
    """The installed distribution; nnictl reads its ``version``.

    Raises:
        ResolutionError: it is not installed.
    """
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise ResolutionError(f"The '{name}' distribution was not found") from error


@contextmanager
def pkg_resources_available() -> Iterator[None]:
    """Inside the ``with``, ``import pkg_resources`` works with setuptools 81 and later; the real one comes first.

    Example:
        >>> with pkg_resources_available():
        ...     from nni.tools.nnictl import nnictl
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        if has_pkg_resources():
            yield
            return
        before = {name: module for name, module in sys.modules.items() if name == "pkg_resources"}
        sys.modules["pkg_resources"] = _module()
        try:
            yield
        finally:
            del sys.modules["pkg_resources"]
            sys.modules.update(before)


def has_pkg_resources() -> bool:
    """Whether setuptools still ships ``pkg_resources`` here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("pkg_resources")
    except ImportError:
        return False
    return True


def _module() -> ModuleType:
    module = ModuleType("pkg_resources", __doc__)
    module.get_distribution = get_distribution  # type: ignore[attr-defined]
    module.ResolutionError = ResolutionError  # type: ignore[attr-defined]
    return module
