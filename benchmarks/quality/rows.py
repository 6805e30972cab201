"""From students to the rows of the tables: quality and costs of a system and seed, and differences of the same seed.

Shape suffixes: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from elm_nni.data.metrics import paired_bootstrap
from elm_nni.search_spaces.architecture import cell_name, chosen_blocks
from quality.systems import DRAWN, UNIFORM

MEAN = "mean of tasks"
RESAMPLES = 10_000
COSTS = ("params", "params_outside_embeddings", "megabytes", "latency_ms")

Line = dict[str, Any]


class Scored(Protocol):
    """A system and seed with scores by name."""

    @property
    def system(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def scores(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Row:
    """A system and seed; the mean over students where it has several.

    Attributes:
        scores: task to its main metric on ``split``, and their mean.
        validation: mean over tasks on validation rows, whatever the split.
        latency_ms: None where it could not be measured.
        seconds: of all stages that it took.
        metrics: on test rows, task to all of its metrics; none on validation rows.
        layers: in words, see :func:`layers_of`; None for the mean of several and for a teacher.
        models: which stages trained it; rows of the same ones are one model under two names.
    """

    system: str
    seed: int
    scores: dict[str, float]
    validation: float
    params: float
    params_outside_embeddings: float
    megabytes: float
    latency_ms: float | None
    seconds: float
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: tuple[str, ...] | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A system minus another over the seeds that both have, with a 95 % percentile bootstrap interval over seeds."""

    system: str
    against: str
    task: str
    seeds: int
    mean: float
    deviation: float | None
    low: float
    high: float
    higher: int
    lower: int


def make_rows(trained: Sequence[Line], measured: Mapping[str, Line], tested: Mapping[str, Line] | None) -> list[Row]:
    """Rows in the order of the systems, each with its seeds.

    Args:
        trained: lines of systems and seeds.
        measured: costs by key of a student.
        tested: test scores by key of a student; None: validation scores count.
    """
    rows: list[Row] = []
    for line in sorted(trained, key=lambda one: one["seed"]):
        ones = [_row(one, line["seed"], measured, tested) for one in line["students"]]
        if line["system"] in DRAWN and ones:
            rows += _of_drawn(line["system"], ones)
        else:
            rows += ones
    names = list(dict.fromkeys(row.system for row in rows))
    return sorted(rows, key=lambda row: names.index(row.system))


def _row(one: Line, seed: int, measured: Mapping[str, Line], tested: Mapping[str, Line] | None) -> Row:
    scores = dict(one["validation"] if tested is None else tested[one["key"]]["scores"])
    costs = {name: measured[one["key"]][name] for name in COSTS}
    return Row(
        one["system"], seed, with_mean(scores), _mean(one["validation"].values()), **costs,
        seconds=sum(one["seconds"].values()), metrics={} if tested is None else tested[one["key"]]["metrics"],
        layers=layers_of(one), models=tuple(sorted(one["models"].values())),
    )  # fmt: skip


def with_mean(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by task, and their mean."""
    return {**scores, MEAN: _mean(scores.values())}


def layers_of(student: Line) -> tuple[str, ...] | None:
    """Block, width of the feed-forward network and number of heads of each layer; None where they are not known.

    Example:
        >>> layers_of({"architecture": {"layer0": "bert", "layer0_bert_ffn": 48, "layer0_bert_heads": 12}, "facts": {}})
        ('bert 48, 12 heads',)
    """
    found = student["architecture"]
    if found is not None:
        cells = [(block, cell_name(layer, block)) for layer, block in enumerate(chosen_blocks(found))]
        return tuple(f"{block} {found[f'{cell}_ffn']}, {found[f'{cell}_heads']} heads" for block, cell in cells)
    facts = student["facts"]
    return (f"stock {facts['ffn']}",) * facts["layers"] if {"layers", "ffn"} <= set(facts) else None


def _of_drawn(system: str, ones: list[Row]) -> list[Row]:
    """The mean student, and the one that validation rows choose; the choice costs the training of all."""
    count = len(ones)
    numbers = ("validation", *COSTS, "seconds")
    mean = {name: mean_of(ones, name) for name in numbers}
    scores = {task: _mean([row.scores[task] for row in ones]) for task in ones[0].scores}
    metrics = {
        task: {name: _mean([row.metrics[task][name] for row in ones]) for name in found}
        for task, found in ones[0].metrics.items()
    }
    best = max(ones, key=lambda row: row.validation)
    shared = {name: getattr(best, name) for name in numbers}
    return [
        Row(f"{system}, mean of {count}", ones[0].seed, scores, **mean, metrics=metrics),
        Row(f"{system}, best of {count} by validation", best.seed, best.scores,
            **{**shared, "seconds": sum(row.seconds for row in ones)}, metrics=best.metrics, layers=best.layers,
            models=best.models),
    ]  # fmt: skip


def best_uniform(rows: Sequence[Row]) -> str | None:
    """The uniform system of the highest mean validation score over the seeds that all of them have."""
    found = {name: {row.seed: row.validation for row in rows if row.system == name} for name in UNIFORM}
    found = {name: values for name, values in found.items() if values}
    common = set.intersection(*(set(values) for values in found.values())) if found else set()
    if not common:
        return next(iter(found), None)
    return max(found, key=lambda name: _mean([found[name][seed] for seed in common]))


def differences(rows: Sequence[Scored], against: str | None) -> list[Difference]:
    """Every other system minus this one, for each task and their mean, seed by seed; none to None."""
    if against is None:
        return []
    base = {row.seed: row.scores for row in rows if row.system == against}
    found: list[Difference] = []
    for name in dict.fromkeys(row.system for row in rows if row.system != against):
        pairs = [(row.scores, base[row.seed]) for row in rows if row.system == name and row.seed in base]
        for task in pairs[0][0] if pairs else ():
            a_S = np.array([ours[task] for ours, _ in pairs])
            b_S = np.array([theirs[task] for _, theirs in pairs])
            found.append(_difference(name, against, task, a_S, b_S))
    return found


def _difference(
    system: str, against: str, task: str, a_S: NDArray[np.float64], b_S: NDArray[np.float64]
) -> Difference:
    mean, low, high = paired_bootstrap(a_S, b_S, RESAMPLES, seed=0)
    apart_S = a_S - b_S
    deviation = float(apart_S.std(ddof=1)) if len(apart_S) > 1 else None
    higher, lower = int((apart_S > 0).sum()), int((apart_S < 0).sum())
    return Difference(system, against, task, len(apart_S), mean, deviation, low, high, higher, lower)


def mean_of(rows: Sequence[Row], part: str) -> Any:
    """The mean of a number over rows; None where one of them has none."""
    values = [getattr(row, part) for row in rows]
    return None if None in values else _mean(values)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
