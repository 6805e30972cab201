"""Search spaces of NNI's tuners as suggestions of Optuna, and back.

Needs neither torch nor NNI: a tuner has ten seconds to start.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from elm_nni.strategies.optuna_samplers import grid_values

Suggest = Callable[[str, BaseDistribution], Any]

# Quantiles of a normal distribution; the ends would be infinite.
_QUANTILES = FloatDistribution(1e-6, 1 - 1e-6)
_NUM_VALUES = {
    "randint": 2, "uniform": 2, "loguniform": 2, "normal": 2, "lognormal": 2,
    "quniform": 3, "qloguniform": 3, "qnormal": 3, "qlognormal": 3,
}  # fmt: skip


@dataclass(frozen=True)
class _Leaf:
    """One parameter: where it lies, what Optuna draws, and how that becomes NNI's value and back.

    ``branches`` are those of a nested choice, each with the parameters that exist in it alone.
    """

    path: tuple[str, ...]
    name: str
    distribution: BaseDistribution
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    branches: Mapping[str, list[_Leaf]] = field(default_factory=dict)


class NniSpace:
    """A search space in NNI's format: every type, with nested choices.

    Names in Optuna are NNI's names; inside a nested choice ``choice/branch/name``. A value that Optuna cannot store as
    a category is stored as its JSON. A ``q`` type without logarithm or normal distribution takes the multiples of q in
    its range. Normal types are drawn by their quantile, so that every sampler of Optuna can serve them.

    Raises:
        ValueError: naming the parameter, what it has and what is allowed.

    Example:
        >>> space = NniSpace({"lr": {"_type": "loguniform", "_value": [0.001, 0.1]}})
        >>> space.draw(trial._suggest)  # doctest: +SKIP
        {'lr': 0.0123}
    """

    def __init__(self, search_space: Mapping[str, Any]) -> None:
        if not isinstance(search_space, Mapping) or not search_space:
            raise ValueError(f"search space is {search_space!r}; it must be names with _type and _value")
        self._leaves = [_leaf((name,), name, spec) for name, spec in search_space.items()]

    def draw(self, suggest: Suggest) -> dict[str, Any]:
        """NNI's parameters out of ``suggest(name, distribution)``; only the branch that was chosen is asked for."""
        found: dict[str, Any] = {}
        _draw(self._leaves, suggest, found)
        return found

    def encode(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Optuna's parameters and distributions of NNI's parameters, for trials that were run elsewhere.

        Raises:
            ValueError: a parameter is missing, or has a value that the space does not hold.
        """
        values: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for leaf, value in _walk(self._leaves, parameters):
            try:
                encoded = leaf.encode(value)
                # raises for a category that is not there
                contained = leaf.distribution._contains(leaf.distribution.to_internal_repr(encoded))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"parameter {leaf.name!r}: the space does not hold {value!r}") from error
            if not contained:
                raise ValueError(f"parameter {leaf.name!r}: the space does not hold {value!r}")
            values[leaf.name], distributions[leaf.name] = encoded, leaf.distribution
        return values, distributions

    def grid(self) -> dict[str, list[Any]]:
        """Every value of every parameter, as ``optuna.samplers.GridSampler`` takes it.

        Raises:
            ValueError: a parameter without a finite number of values, or a nested choice.
        """
        found: dict[str, list[Any]] = {}
        for leaf in self._leaves:
            if leaf.branches:
                raise ValueError(f"parameter {leaf.name!r} is a nested choice; a grid takes flat spaces only")
            found[leaf.name] = grid_values(leaf.name, leaf.distribution)
        return found


def _draw(leaves: list[_Leaf], suggest: Suggest, found: dict[str, Any]) -> None:
    for leaf in leaves:
        value = leaf.decode(suggest(leaf.name, leaf.distribution))
        if leaf.branches:
            inner: dict[str, Any] = {"_name": value}
            _draw(leaf.branches[value], suggest, inner)
            value = inner
        found[leaf.path[-1]] = value


def _walk(leaves: list[_Leaf], parameters: Mapping[str, Any]) -> Iterator[tuple[_Leaf, Any]]:
    for leaf in leaves:
        if not isinstance(parameters, Mapping) or leaf.path[-1] not in parameters:
            raise ValueError(f"parameter {leaf.name!r} is missing in {parameters!r}")
        value = parameters[leaf.path[-1]]
        if leaf.branches:
            chosen = value.get("_name") if isinstance(value, Mapping) else None
            yield leaf, chosen
            if isinstance(chosen, str) and chosen in leaf.branches:
                yield from _walk(leaf.branches[chosen], value)
        else:
            yield leaf, value


def _leaf(path: tuple[str, ...], name: str, spec: Any) -> _Leaf:
    if not isinstance(spec, Mapping) or "_type" not in spec or "_value" not in spec:
        raise ValueError(f"parameter {name!r} is {spec!r}; it must have _type and _value")
    kind, values = spec["_type"], spec["_value"]
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"parameter {name!r} has _value {values!r}; it must be a list")
    if kind == "choice":
        return _choice(path, name, list(values))
    if kind not in _NUM_VALUES:
        raise ValueError(f"parameter {name!r} has _type {kind!r}; allowed: choice, {', '.join(_NUM_VALUES)}")
    if len(values) != _NUM_VALUES[kind] or not all(_is_number(value) for value in values):
        raise ValueError(f"parameter {name!r} ({kind}) has _value {values!r}; it must be {_NUM_VALUES[kind]} numbers")
    return _number(path, name, kind, list(values))


def _choice(path: tuple[str, ...], name: str, values: list[Any]) -> _Leaf:
    if all(isinstance(value, Mapping) and "_name" in value for value in values):
        branches = {
            str(value["_name"]): [
                _leaf((*path, inner), f"{name}/{value['_name']}/{inner}", spec)
                for inner, spec in value.items()
                if inner != "_name"
            ]
            for value in values
        }
        return _Leaf(path, name, CategoricalDistribution(tuple(branches)), str, str, branches)
    if len({type(value) for value in values}) == 1 and isinstance(values[0], (str, int, float, bool)):
        categories: dict[Any, Any] = dict(zip(values, values))
    else:
        # of mixed types some are equal to Python, and lists are no categories
        categories = {json.dumps(value, sort_keys=True): value for value in values}
    backwards = {json.dumps(value, sort_keys=True): category for category, value in categories.items()}
    return _Leaf(
        path, name, CategoricalDistribution(tuple(categories)), lambda category: categories[category],
        lambda value: backwards[json.dumps(value, sort_keys=True)],
    )  # fmt: skip


def _number(path: tuple[str, ...], name: str, kind: str, values: list[float]) -> _Leaf:
    if kind.startswith("q") and not values[2] > 0:
        raise ValueError(f"parameter {name!r} ({kind}) has q {values[2]!r}; it must be above 0")
    if kind.endswith("normal"):
        return _normal(path, name, kind, values)
    low, high = values[:2]
    if not low < high:
        raise ValueError(f"parameter {name!r} ({kind}) has the range {low!r} to {high!r}; it must be rising")
    if "log" in kind and not low > 0:
        raise ValueError(f"parameter {name!r} ({kind}) begins at {low!r}; it must be above 0")
    if kind == "randint":
        if not all(float(value).is_integer() for value in (low, high)):
            raise ValueError(f"parameter {name!r} (randint) goes from {low!r} to {high!r}; it must be whole numbers")
        return _Leaf(path, name, IntDistribution(int(low), int(high) - 1), int, int)
    if kind == "quniform":
        return _multiples(path, name, low, high, values[2])
    distribution = FloatDistribution(float(low), float(high), log="log" in kind)
    if kind == "qloguniform":
        q = values[2]
        return _Leaf(path, name, distribution, lambda value: min(max(round(value / q) * q, low), high), float)
    return _Leaf(path, name, distribution, float, float)


def _multiples(path: tuple[str, ...], name: str, low: float, high: float, q: float) -> _Leaf:
    # with a margin for the rounding of quotients such as 0.3 / 0.1
    first, last = math.ceil(low / q - 1e-9), math.floor(high / q + 1e-9)
    if first > last:
        raise ValueError(f"parameter {name!r} (quniform) has no multiple of {q!r} from {low!r} to {high!r}")
    if all(float(value).is_integer() for value in (low, high, q)):
        return _Leaf(path, name, IntDistribution(int(first * q), int(last * q), step=int(q)), int, int)
    digits = max(0, 12 - math.floor(math.log10(max(abs(low), abs(high), q))))
    clean = lambda value: round(round(value / q) * q, digits)  # noqa: E731
    return _Leaf(path, name, FloatDistribution(clean(first * q), clean(last * q), step=q), clean, clean)


def _normal(path: tuple[str, ...], name: str, kind: str, values: list[float]) -> _Leaf:
    mean, deviation = values[:2]
    if not deviation > 0:
        raise ValueError(f"parameter {name!r} ({kind}) has the deviation {deviation!r}; it must be above 0")
    normal, is_log = NormalDist(mean, deviation), "log" in kind

    def decode(quantile: float) -> float:
        value = normal.inv_cdf(quantile)
        value = math.exp(value) if is_log else value
        return round(value / values[2]) * values[2] if kind.startswith("q") else value

    def encode(value: float) -> float:
        return normal.cdf(math.log(value) if is_log else value)

    return _Leaf(path, name, _QUANTILES, decode, encode)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
