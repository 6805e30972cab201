"""Samplers of Optuna by name, with their arguments checked before a study exists."""

from __future__ import annotations

import importlib.util
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from elm_nni.errors import UserError

SAMPLERS = {
    "tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler", "nsgaiii": "NSGAIIISampler", "grid": "GridSampler", "bruteforce": "BruteForceSampler",
}  # fmt: skip
# packages that Optuna imports with a sampler's first draw, and how to install them
_NEEDED = {"cmaes": ("cmaes", "elm-nni[studies]"), "gp": ("torch", "torch")}


def sampler_kind(name: str) -> str:
    """The name in its one spelling.

    Raises:
        ValueError: it is none of :data:`SAMPLERS`.
    """
    kind = str(name).lower()
    if kind not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}; allowed: {', '.join(SAMPLERS)}")
    return kind


def sampler_class(kind: str) -> Any:
    """The class of a kind; Optuna loads a sampler's module when it is asked for."""
    return getattr(optuna.samplers, SAMPLERS[kind])


def checked_arguments(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a sampler, tried out unless it is a grid, which needs its space.

    TPE gets ``constant_liar`` unless told otherwise, since trials run side by side, and brute force no premature stop,
    which would leave out what another worker was drawing. CMA-ES draws categories at random and does not warn of each.

    Raises:
        ValueError: naming the argument and what is allowed.
        UserError: the sampler needs a package that is not installed.

    Example:
        >>> checked_arguments("tpe", {"n_startup_trials": 5})
        {'n_startup_trials': 5, 'constant_liar': True}
    """
    _check_package(kind)
    arguments = dict(arguments)
    allowed = _parameters(kind) - {"search_space"}
    for name in arguments:
        if name not in allowed:
            raise ValueError(f"sampler_args has {name!r}; {kind} takes {', '.join(sorted(allowed))}")
    defaults = {
        "tpe": {"constant_liar": True}, "bruteforce": {"avoid_premature_stop": True},
        "cmaes": {"warn_independent_sampling": False},
    }  # fmt: skip
    arguments = arguments | {k: v for k, v in defaults.get(kind, {}).items() if k not in arguments}
    if kind != "grid":
        # bad values are found here, not when the first trial is asked for
        try:
            _quiet(kind, arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sampler_args {arguments!r} do not fit {kind}: {error}") from error
    return arguments


def check_directions(kind: str, num_directions: int) -> None:
    """Refuses several objectives for a sampler of one.

    Raises:
        UserError: naming the sampler and those that can.
    """
    if kind == "cmaes" and num_directions > 1:
        others = ", ".join(name for name in SAMPLERS if name != "cmaes")
        raise UserError(f"sampler 'cmaes' takes one objective, got {num_directions}; several: {others}")


def make_sampler(
    kind: str, arguments: Mapping[str, Any], *, seed: int | None, grid: Mapping[str, Any] | None = None
) -> optuna.samplers.BaseSampler:
    """A sampler with ``arguments`` of :func:`checked_arguments`.

    Args:
        seed: used by samplers that take one, unless the arguments hold another. A grid's seed is the order of its
            cells, which its trials refer to by number: keep it the same when a study goes on.
        grid: label to values, for ``grid`` alone.
    """
    arguments = dict(arguments)
    if seed is not None and "seed" in _parameters(kind):
        arguments.setdefault("seed", seed)
    if kind == "grid":
        arguments["search_space"] = dict(grid or {})
    return _quiet(kind, arguments)


def grid_values(name: str, distribution: BaseDistribution) -> list[Any]:
    """Every value of a parameter, as a grid takes it.

    Raises:
        ValueError: it is continuous.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        raise ValueError(f"parameter {name!r} is continuous; a grid takes choices, whole numbers and steps")
    count = math.floor((distribution.high - distribution.low) / distribution.step + 1e-9)
    return [round(distribution.low + index * distribution.step, 12) for index in range(count + 1)]


def _check_package(kind: str) -> None:
    package, install = _NEEDED.get(kind, ("optuna", "optuna"))
    if importlib.util.find_spec(package) is None:
        raise UserError(f"sampler {kind!r} needs the package {package}: pip install \"{install}\"")


def _parameters(kind: str) -> set[str]:
    items = inspect.signature(sampler_class(kind)).parameters.items()
    return {name for name, item in items if item.kind != inspect.Parameter.VAR_KEYWORD}


def _quiet(kind: str, arguments: Mapping[str, Any]) -> Any:
    # several samplers warn that they are experimental
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sampler_class(kind)(**arguments)
