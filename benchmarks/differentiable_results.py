"""Architectures of differentiable searches, of chance and of no search, trained alike: tables and a figure.

Shape suffixes: N systems, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from ranking_runs import LOSSES

from elm_nni.data.metrics import paired_bootstrap
from elm_nni.report.style import BLOCK_COLOURS, BLUE, GREY, INK, PALE, VERMILION, block_colours, new_figure, styled

RANDOM, UNIFORM = "random", "uniform bert"
_COLOURS = {"relational": BLUE, "mse": VERMILION}
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Weights:
    """Where a search ended.

    Attributes:
        layers: for each layer, block to its weight in the mixture.
        seconds: of the search.
    """

    layers: Sequence[Mapping[str, float]]
    seconds: float

    @property
    def entropy(self) -> float:
        """Of the weights in nats, the mean over layers; a uniform choice has the logarithm of the number of blocks."""
        return float(np.mean([entropy(list(layer.values())) for layer in self.layers]))


def entropy(probabilities: Sequence[float]) -> float:
    """Shannon entropy in nats; what has probability 0 adds nothing.

    Example:
        >>> round(entropy([0.5, 0.5, 0.0]), 3)
        0.693
    """
    given = np.array([one for one in probabilities if one > 0], dtype=np.float64)
    return float(-(given * np.log(given)).sum())


@dataclass(frozen=True)
class Row:
    """An architecture, trained alone.

    Attributes:
        seed: of the run.
        system: where it comes from.
        blocks: of the layers, in order.
        architecture: canonical, as it was trained.
        size: parameters outside the embeddings.
        scores: task to score on validation rows.
        search: None where nothing was searched.
    """

    seed: int
    system: str
    blocks: list[str]
    architecture: Mapping[str, Any]
    size: int
    scores: Mapping[str, float]
    search: Weights | None = None

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return float(np.mean(list(self.scores.values())))


def system_name(strategy: str, loss: str) -> str:
    """Of a search, in the tables."""
    return f"{strategy}, {loss}"


def systems(rows: Sequence[Row]) -> list[str]:
    """Names in their order."""
    return list(dict.fromkeys(row.system for row in rows))


def by_seed(rows: Sequence[Row], system: str, task: str | None = None) -> NDArray[np.float64]:
    """Scores (S,) of a system, of one task or the mean over tasks; of several architectures of a seed the mean."""
    own = [row for row in rows if row.system == system]
    found: dict[int, list[float]] = {}
    for row in own:
        found.setdefault(row.seed, []).append(row.mean if task is None else row.scores[task])
    return np.array([np.mean(values) for values in found.values()])


@dataclass(frozen=True)
class Difference:
    """First system less the second on the same seeds, with the 95 % interval of the mean (None for one seed)."""

    first: str
    second: str
    by_seed: list[float]
    mean: float
    interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        return f"{self.first} - {self.second}"


def differences(rows: Sequence[Row]) -> list[Difference]:
    """Relational less MSE for each strategy, then each search less the mean of the random architectures."""
    searches = list(dict.fromkeys(row.system for row in rows if row.search))
    strategies = dict.fromkeys(name.partition(", ")[0] for name in searches)
    pairs = [tuple(system_name(strategy, loss) for loss in LOSSES) for strategy in strategies]
    return [_difference(rows, *pair) for pair in (*pairs, *((name, RANDOM) for name in searches))]


def _difference(rows: Sequence[Row], first: str, second: str) -> Difference:
    first_S, second_S = by_seed(rows, first), by_seed(rows, second)
    mean, low, high = paired_bootstrap(first_S, second_S)
    interval = (low, high) if len(first_S) > 1 else None
    return Difference(first, second, (first_S - second_S).tolist(), mean, interval)


def summary_table(rows: Sequence[Row]) -> list[str]:
    """Markdown: mean and deviation over seeds, a row for each system."""
    tasks = list(rows[0].scores)
    columns = ["mean", *tasks] if len(tasks) > 1 else tasks
    uniform = next(float(np.log(len(row.search.layers[0]))) for row in rows if row.search)
    lines = [
        f"| system | architectures a seed | {' | '.join(columns)} | entropy of the weights (uniform: {uniform:.3f}) | "
        "minutes of search |",
        f"|---|---:|{'---:|' * (len(columns) + 2)}",
    ]
    for system in systems(rows):
        own = [row for row in rows if row.system == system]
        scores = [by_seed(rows, system, task) for task in ([None, *tasks] if len(tasks) > 1 else tasks)]
        found = [row.search for row in own if row.search]
        entropies = _spread([one.entropy for one in found], 3) if found else ""
        minutes = _spread([one.seconds / 60 for one in found], 1) if found else ""
        cells = " | ".join(_spread(one_S, 4) for one_S in scores)
        lines.append(f"| {system} | {len(own) // len(scores[0])} | {cells} | {entropies} | {minutes} |")
    return lines


def difference_table(found: Sequence[Difference], seeds: Sequence[int]) -> list[str]:
    """Markdown: paired differences of the mean over tasks, a column for each seed."""
    lines = [
        f"| difference, above 0: the first is better | {' | '.join(f'seed {seed}' for seed in seeds)} | mean [95 %] |",
        f"|---|{'---:|' * (len(seeds) + 1)}",
    ]
    for one in found:
        interval = f" [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]" if one.interval else ""
        cells = " | ".join(f"{value:+.4f}" for value in one.by_seed)
        lines.append(f"| {one.name} | {cells} | {one.mean:+.4f}{interval} |")
    return lines


def architecture_table(rows: Sequence[Row]) -> list[str]:
    """Markdown: a row for each architecture."""
    tasks = list(rows[0].scores)
    lines = [
        f"| seed | system | blocks | parameters outside the embeddings | {' | '.join(tasks)} | entropy by layer | "
        "seconds of search |",
        f"|---:|---|---|---:|{'---:|' * len(tasks)}---|---:|",
    ]
    for row in rows:
        scores = " | ".join(f"{row.scores[task]:.4f}" for task in tasks)
        search = row.search
        entropies = " ".join(f"{entropy(list(layer.values())):.3f}" for layer in search.layers) if search else ""
        seconds = f"{search.seconds:.0f}" if search else ""
        lines.append(
            f"| {row.seed} | {row.system} | {', '.join(row.blocks)} | {row.size:,} | {scores} | {entropies} | "
            f"{seconds} |"
        )
    return lines


def _spread(values: Sequence[float] | NDArray[np.float64], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


@styled
def plot(rows: Sequence[Row], found: Sequence[Difference], metric: str) -> Figure:
    """Scores and their paired differences above, the blocks that each system took below."""
    names = systems(rows)
    figure = new_figure(11, 0.62 * max(len(names), len(found)) + 0.42 * len(names) + 2.4)
    heights = (max(len(names), len(found)) * 0.62 + 0.6, len(names) * 0.42 + 0.6)
    panels = figure.subplot_mosaic([["scores", "differences"], ["blocks", "blocks"]], height_ratios=heights)
    _scores(panels["scores"], rows, names)
    _differences(panels["differences"], found)
    _blocks(panels["blocks"], rows, names)
    figure.suptitle(f"{metric}, validation rows, trained alone", fontsize=10)
    return figure


def _scores(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    seeds = list(dict.fromkeys(row.seed for row in rows))
    for place, name in enumerate(names):
        axes.plot([by_seed(rows, name).mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.4)
        for row in (row for row in rows if row.system == name):
            number = seeds.index(row.seed)
            axes.plot(
                row.mean, place, color=_colour(name), marker=_MARKERS[number % len(_MARKERS)], linestyle="none",
                markersize=6, alpha=0.75,
            )  # fmt: skip
    _names(axes, names)
    axes.set_title("Score; the line is the mean")
    axes.grid(True, axis="x")
    if len(seeds) > 1:
        marks = [_MARKERS[number % len(_MARKERS)] for number in range(len(seeds))]
        handles = [Line2D([], [], color=GREY, marker=mark, linestyle="none", markersize=6) for mark in marks]
        labels = [f"seed {seed}" for seed in seeds]
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=min(len(seeds), 5))


def _differences(axes: Axes, found: Sequence[Difference]) -> None:
    axes.axvline(0, color=GREY, linewidth=0.8)
    for place, one in enumerate(found):
        colour = INK if one.second != RANDOM else _colour(one.first)
        axes.plot(one.by_seed, [place] * len(one.by_seed), color=PALE, marker="o", linestyle="none", markersize=5)
        if one.interval:
            axes.plot(one.interval, [place, place], color=colour)
        axes.plot(one.mean, place, color=colour, marker="D", markersize=6)
    _names(axes, [f"{one.first}\n- {one.second}" for one in found])
    axes.set_title("Paired difference" + ("; mean and 95 % interval" if any(one.interval for one in found) else ""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="x")


def _blocks(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    taken = [[block for row in rows if row.system == name for block in row.blocks] for name in names]
    start_N = np.zeros(len(names))
    for block, colour in block_colours([*BLOCK_COLOURS, *(one for own in taken for one in own)]).items():
        share_N = np.array([own.count(block) / len(own) for own in taken])
        axes.barh(range(len(names)), share_N, left=start_N, height=0.7, color=colour, label=block)
        start_N += share_N
    _names(axes, names)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the layers, all seeds")
    axes.set_title("Blocks taken")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)


def _colour(system: str) -> str:
    return _COLOURS.get(system.rpartition(", ")[2], GREY)
