"""What trials measured for each value of one parameter: mean and range of those that share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elm_nni.report.study.load import StudyData, StudyTrial

ETA, MODE, TOP_K = "prune.eta", "prune.mode", "growth.top_k"
SWEPT = (ETA, TOP_K)
HEADS = "heads"
# More values than this are put into bins of equal width.
MAX_VALUES, NUM_BINS = 20, 10


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of one or several numbers."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        return cls(float(np.mean(numbers)), min(numbers), max(numbers))


@dataclass(frozen=True)
class SweepRow:
    """The trials that share a value, or a bin of values, and the value of ``Sweep.split``.

    Attributes:
        position: the value, or the mean of those in the bin.
        layer_heads: mean heads of each layer, for the layers that all of the trials have.
    """

    series: str
    label: str
    position: float
    num_trials: int
    values: Mapping[str, Spread]
    layer_heads: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """Rows by series, then by position; ``names`` are the values that at least one row has.

    Attributes:
        varied: the other parameters that differ within a row, so that its range is not the noise of training alone.
    """

    parameter: str
    split: str | None
    names: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    varied: tuple[str, ...]

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(row.series for row in self.rows))

    @property
    def is_repeated(self) -> bool:
        """Whether several trials share a row."""
        return any(row.num_trials > 1 for row in self.rows)

    @property
    def full_heads(self) -> int:
        return round(max((max(row.layer_heads, default=0.0) for row in self.rows), default=0.0))


def make_sweep(study: StudyData, parameter: str) -> Sweep:
    """The sweep over a numeric parameter; that over eta has a series for each mode of pruning if that is tuned too.

    Every complete trial counts, whether it keeps the limits or not.

    Example:
        >>> make_sweep(load_study(Path("studies/eta")), "prune.eta").rows[0].values["heads"].mean  # doctest: +SKIP
        38.0
    """
    trials = [trial for trial in study.complete if parameter in trial.params]
    split = MODE if parameter == ETA and any(MODE in trial.params for trial in trials) else None
    groups: dict[tuple[str, float], list[StudyTrial]] = {}
    labels = _bins([float(trial.params[parameter]) for trial in trials])
    for trial, (start, _) in zip(trials, labels):
        groups.setdefault((str(trial.params.get(split, "")) if split else "", start), []).append(trial)
    texts = dict(labels)
    rows = tuple(
        _row(series, texts[start], parameter, groups[series, start]) for series, start in sorted(groups)
    )  # fmt: skip
    # all parameters say what those outside embeddings do
    wanted = dict.fromkeys((study.quality, *study.objectives, HEADS, "params", "latency_ms"))
    names = tuple(name for name in wanted if any(name in row.values for row in rows))
    return Sweep(parameter, split, names, rows, _varied(groups.values(), {parameter, split}))


def is_numeric(study: StudyData, parameter: str) -> bool:
    """Whether complete trials have the parameter, with numbers alone."""
    values = [trial.params[parameter] for trial in study.complete if parameter in trial.params]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _bins(values: Sequence[float]) -> list[tuple[float, str]]:
    """For each value the smallest one of its bin and the bin's label; few values are bins of their own."""
    if len(set(values)) <= MAX_VALUES:
        return [(value, f"{value:g}") for value in values]
    edges = np.linspace(min(values), max(values), NUM_BINS + 1)
    indices = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, NUM_BINS - 1).tolist()
    found: dict[int, list[float]] = {}
    for index, value in zip(indices, values):
        found.setdefault(index, []).append(value)
    ends = {index: (min(held), max(held)) for index, held in found.items()}
    labels = {i: f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for i, (low, high) in ends.items()}
    return [(ends[index][0], labels[index]) for index in indices]


def _row(series: str, label: str, parameter: str, trials: Sequence[StudyTrial]) -> SweepRow:
    measured = [{**trial.values, **({HEADS: sum(trial.heads)} if trial.heads else {})} for trial in trials]
    names = sorted({name for values in measured for name in values})
    return SweepRow(
        series=series, label=label, position=float(np.mean([trial.params[parameter] for trial in trials])),
        num_trials=len(trials),
        values={name: Spread.of([values[name] for values in measured if name in values]) for name in names},
        layer_heads=tuple(float(np.mean(layer)) for layer in zip(*(trial.heads for trial in trials if trial.heads))),
    )  # fmt: skip


def _varied(groups: Iterable[Sequence[StudyTrial]], known: set[str | None]) -> tuple[str, ...]:
    found: set[str] = set()
    for trials in groups:
        names = {name for trial in trials for name in trial.params} - known
        found |= {name for name in names if len({repr(trial.params.get(name)) for trial in trials}) > 1}
    return tuple(sorted(found))
