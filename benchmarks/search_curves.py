"""Curves, tables and a figure of several searches: best metric and hypervolume against evaluations.

Shape suffixes: S seeds, E evaluations in the order of a run, N evaluations of all runs, M objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from elm_nni.analysis.pareto import hypervolume
from elm_nni.errors import UserError
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, new_figure, styled
from elm_nni.strategies.evolution import Counts

OBJECTIVES = {"metric": "maximize", "params": "minimize", "latency_ms": "minimize"}
REFERENCE = 1.1

LINES = {
    "evolution": (BLUE, "-"), "evolution-short": (SKY, "-"), "nsgaii": (VERMILION, "-"), "nsgaiii": (ORANGE, "-"),
    "tpe": (GREEN, "-"), "random": (INK, ":"), "nsgaii-metric": (PURPLE, "--"), "tpe-metric": (GREY, "--"),
}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """One run of a strategy: digests and objectives (E, M) in the order of evaluation, and what became of the draws."""

    strategy: str
    seed: int
    digests: list[str]
    objectives: list[list[float]]
    counts: Counts


@dataclass(frozen=True)
class Extent:
    """The box around everything evaluated, as costs: the metric counts negative, so that all columns are minimised."""

    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, searches: Sequence[Search]) -> Extent:
        """Of what has a number for every objective.

        Raises:
            UserError: nothing has.
        """
        costs_NM = np.concatenate([as_costs(one) for one in searches])
        costs_NM = costs_NM[~np.isnan(costs_NM).any(axis=1)]
        if not len(costs_NM):
            raise UserError("no architecture has a metric: every evaluation gave NaN")
        return cls(costs_NM.min(axis=0).tolist(), costs_NM.max(axis=0).tolist())

    def scaled(self, costs_EM: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs from 0, the best, to 1, the worst; a column of one value is 0."""
        low_M, high_M = np.array(self.low), np.array(self.high)
        scaled_EM: NDArray[np.float64] = (costs_EM - low_M) / np.where(high_M > low_M, high_M - low_M, 1.0)
        return scaled_EM


def as_costs(one: Search) -> NDArray[np.float64]:
    """Objectives (E, M) of a run, all to be minimised."""
    signs_M = [-1.0 if direction == "maximize" else 1.0 for direction in OBJECTIVES.values()]
    return np.array(one.objectives, dtype=np.float64) * signs_M


def best_so_far(one: Search, evaluations: int) -> NDArray[np.float64]:
    """Highest metric after each evaluation (E,); a run that ended early keeps its last value."""
    best_E = np.fmax.accumulate(np.array(one.objectives, dtype=np.float64)[:, 0])
    return np.pad(best_E, (0, evaluations - len(best_E)), mode="edge")


def volume_so_far(one: Search, extent: Extent, evaluations: int) -> NDArray[np.float64]:
    """Hypervolume of everything evaluated after each evaluation (E,); a run that ended early keeps its last value."""
    costs_EM = extent.scaled(as_costs(one))
    reference_M = np.full(len(OBJECTIVES), REFERENCE)
    volumes: list[float] = []
    for index, row_M in enumerate(costs_EM):
        # most rows are behind earlier ones and change nothing
        behind = bool((costs_EM[:index] <= row_M).all(axis=1).any())
        volumes.append(volumes[-1] if behind else hypervolume(costs_EM[: index + 1], reference_M))
    return np.pad(volumes, (0, evaluations - len(volumes)), mode="edge")


Curves = dict[str, NDArray[np.float64]]


def curves(searches: Sequence[Search], evaluations: int) -> tuple[Extent, Curves, Curves]:
    """Extent of all, and by strategy the best metric and the hypervolume (S, E) so far."""
    extent = Extent.of(searches)
    names = list(dict.fromkeys(one.strategy for one in searches))
    runs = {name: [one for one in searches if one.strategy == name] for name in names}
    best = {name: np.stack([best_so_far(one, evaluations) for one in runs[name]]) for name in names}
    volume = {name: np.stack([volume_so_far(one, extent, evaluations) for one in runs[name]]) for name in names}
    return extent, best, volume


def table(searches: Sequence[Search], best: Curves, volume: Curves) -> list[str]:
    """Markdown: a row for each strategy."""
    evaluations = next(iter(best.values())).shape[1]
    marks = [evaluations // 4, evaluations // 2, evaluations]
    lines = [
        "| strategy | evaluated | duplicates | over a limit | best metric: mean (min to max) | "
        + " | ".join(f"hypervolume after {mark}" for mark in marks) + " |",
        "|---|" + "---|" * 7,
    ]  # fmt: skip
    for name in best:
        runs = [one for one in searches if one.strategy == name]
        cells = [
            name,
            _span([len(one.digests) for one in runs]),
            _span([one.counts.duplicates for one in runs]),
            _span([sum(one.counts.rejected.values()) for one in runs]),
            _range(best[name][:, -1]),
            *(_spread(volume[name][:, mark - 1]) for mark in marks),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def differences(best: Curves, volume: Curves, to: str) -> list[str]:
    """Markdown: differences of the same seed to a strategy, at the end."""
    lines = [
        f"| against {to}, seed by seed | best metric: mean (min to max) | seeds higher, equal, lower | "
        "hypervolume: mean (min to max) | seeds higher, equal, lower |",
        "|---|---|---|---|---|",
    ]
    for name in best:
        if name != to:
            apart = [curve[name][:, -1] - curve[to][:, -1] for curve in (best, volume)]
            cells = [cell for apart_S in apart for cell in (_range(apart_S, sign="+"), _signs(apart_S))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def each_seed(best: Curves, volume: Curves) -> list[str]:
    """Markdown: final values of each seed."""
    num_seeds = len(next(iter(best.values())))
    lines = [
        f"| hypervolume (best metric) | {' | '.join(f'seed {seed}' for seed in range(num_seeds))} |",
        "|---|" + "---|" * num_seeds,
    ]
    for name in best:
        cells = [f"{v:.4f} ({b:.4f})" for v, b in zip(volume[name][:, -1], best[name][:, -1], strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _range(values_S: NDArray[np.float64], sign: str = "") -> str:
    return f"{values_S.mean():{sign}.4f} ({values_S.min():{sign}.4f} to {values_S.max():{sign}.4f})"


def _spread(values_S: NDArray[np.float64]) -> str:
    return f"{values_S.mean():.4f} ± {values_S.std(ddof=1):.4f}"


def _signs(apart_S: NDArray[np.float64]) -> str:
    return ", ".join(str(int((np.sign(apart_S) == sign).sum())) for sign in (1, 0, -1))


@styled
def plot(best: Curves, volume: Curves, metric: str) -> Figure:
    """Hypervolume and best metric against evaluations: mean over seeds, and a band from the lowest to the highest.

    Bars beside the right end, and a dot for each mean, tell apart the last values of bands that lie over each other.
    """
    figure = new_figure(10.5, 4.8)
    left, right = figure.subplots(1, 2)
    _draw(left, volume, "hypervolume of everything evaluated")
    _draw(right, best, f"best {metric}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=min(len(best), 8))
    return figure


def _draw(axes: Axes, values: Curves, label: str) -> None:
    evaluations = next(iter(values.values())).shape[1]
    steps_E = np.arange(1, evaluations + 1)
    for number, (name, values_SE) in enumerate(values.items()):
        colour, style = LINES[name]
        low_E, mean_E, high_E = values_SE.min(axis=0), values_SE.mean(axis=0), values_SE.max(axis=0)
        axes.fill_between(steps_E, low_E, high_E, step="post", color=colour, alpha=0.08, linewidth=0)
        axes.step(steps_E, mean_E, where="post", color=colour, linestyle=style, label=name)
        beside = evaluations * (1.02 + 0.02 * number)
        axes.plot([beside, beside], [low_E[-1], high_E[-1]], color=colour, solid_capstyle="butt")
        axes.plot(beside, mean_E[-1], color=colour, marker="o", markersize=5)
    # the first random draws of all strategies are far below and would squeeze the rest
    start = evaluations // 16
    axes.set_xlim(start + 1, evaluations * (1.02 + 0.02 * len(values)))
    axes.set_xticks([mark * evaluations // 8 for mark in range(1, 9)])
    seen = np.concatenate([values_SE[:, start:].ravel() for values_SE in values.values()])
    if seen.min() < seen.max():
        axes.set_ylim(seen.min(), seen.max() + 0.03 * (seen.max() - seen.min()))
    axes.set_xlabel("evaluations")
    axes.set_ylabel(label)
    axes.grid(True)
