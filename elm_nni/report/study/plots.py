"""Figures of a study: history, front, importances, slices, reports on the way, and the proxy.

Shape suffix: N trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from elm_nni.report.search_plots import MAX_LIMIT_DISTANCE
from elm_nni.report.study.importance import Importances
from elm_nni.report.study.load import Mode, StudyData, sign
from elm_nni.report.study.proxy import ProxyComparison
from elm_nni.report.study.text import label, shown_coefficient, shown_setting
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, new_figure, styled
from elm_nni.report.text import short_count

# More panels would be too small to read.
MAX_PAIRS, MAX_SLICES = 6, 24
NUM_COLUMNS = 3
MAX_NAME = 24


@styled
def plot_history(study: StudyData) -> Figure:
    """Every objective by trial, with the best so far among trials that keep the limits.

    Hollow: breaks a limit. At the bottom edge: trials without a value.
    """
    figure = new_figure(9, 3.0 * len(study.objectives) + 0.5)
    axes_of = figure.subplots(len(study.objectives), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, mode) in zip(axes_of, study.objectives.items()):
        _mark_trials(axes, [trial.number for trial in study.complete], name, study)
        feasible = study.feasible
        if feasible:
            best = np.minimum.accumulate([sign(mode) * trial.values[name] for trial in feasible]) * sign(mode)
            numbers = [*(trial.number for trial in feasible), max(trial.number for trial in study.trials)]
            axes.step(numbers, [*best, best[-1]], where="post", color=GREEN, label="best so far")
        for state, colour, marker in (("pruned", ORANGE, "v"), ("failed", VERMILION, "X")):
            ended = [trial.number for trial in study.trials if trial.state == state]
            if ended:
                axes.scatter(ended, [0.025] * len(ended), transform=axes.get_xaxis_transform(), color=colour,
                             marker=marker, s=42, clip_on=False, zorder=4, linewidths=0, label=f"{state}, no value")
        axes.set_ylabel(label(name))
        format_values(axes.yaxis, name)
        axes.margins(y=0.12)
        axes.grid(axis="y")
    axes_of[-1].set_xlabel("trial")
    axes_of[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure)
    return figure


def objective_pairs(study: StudyData) -> list[tuple[str, str]]:
    """Pairs of objectives to draw, at most six: those that vary; the later one across, the earlier one up."""
    varying = [name for name in study.objectives if len({trial.values[name] for trial in study.complete}) > 1]
    return [(across, up) for up, across in combinations(varying, 2)][:MAX_PAIRS]


@styled
def plot_front(study: StudyData) -> Figure:
    """A panel for each pair of objectives; rings mark the Pareto front of all objectives, dashed lines the limits."""
    pairs = objective_pairs(study)
    num_columns = min(NUM_COLUMNS if len(pairs) != 4 else 2, len(pairs))
    num_rows = -(-len(pairs) // num_columns)
    figure = new_figure(10.5 if num_columns > 1 else 7, 4.2 * num_rows + 0.4)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, (across, up) in zip(panels, pairs):
        _mark_trials(axes, [trial.values[across] for trial in study.complete], up, study)
        points = [(trial.values[across], trial.values[up]) for trial in study.front]
        axes.scatter(*zip(*points), s=110, facecolors="none", edgecolors=VERMILION, linewidths=1.6,
                     label="Pareto front") if points else None
        if len(study.objectives) == 2:
            axes.plot(*zip(*sorted(points)), color=VERMILION, linewidth=1, alpha=0.6)
        axes.set_xlabel(f"{label(across)} ({_direction(study.objectives[across])})")
        axes.set_ylabel(f"{label(up)} ({_direction(study.objectives[up])})")
        _draw_limits(axes, study, across, up)
        _finish_plane(axes, across, up)
    for axes in list(panels):
        axes.set_axis_off()
    _legend(figure)
    return figure


@styled
def plot_importances(found: Importances) -> Figure:
    """Share of the variance of each objective that each parameter explains by itself."""
    num_bars = max(len(shares) for shares in found.shares.values())
    figure = new_figure(9, (0.36 * num_bars + 0.9) * len(found.shares) + 0.2)
    panels = figure.subplots(len(found.shares), 1, squeeze=False)[:, 0]
    for axes, (objective, shares) in zip(panels, found.shares.items()):
        bars = axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.65)
        axes.bar_label(bars, [f"{share:.2f}" for share in shares.values()], padding=4, fontsize=9)
        axes.set_yticks(range(len(shares)), [shortened(name) for name in shares])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05)
        axes.set_title(label(objective), loc="left")
        axes.tick_params(axis="y", length=0)
    panels[-1].set_xlabel("share of the variance")
    return figure


@styled
def plot_slices(study: StudyData, parameters: Sequence[str]) -> Figure:
    """Each parameter against each objective; a short line marks the median of a category."""
    panels = [(name, parameter) for name in study.objectives for parameter in parameters]
    num_columns = min(NUM_COLUMNS, len(parameters))
    rows_each = -(-len(parameters) // num_columns)
    figure = new_figure(3.5 * num_columns if num_columns > 1 else 5.5, 2.9 * rows_each * len(study.objectives) + 0.5)
    grid = figure.subplots(rows_each * len(study.objectives), num_columns, squeeze=False)
    used = set()
    for index, (name, parameter) in enumerate(panels):
        block, place = divmod(index, len(parameters))
        row, column = divmod(place, num_columns)
        axes = grid[block * rows_each + row, column]
        used.add(axes)
        _draw_slice(axes, study, name, parameter)
        format_values(axes.yaxis, name)
        if column == 0:
            axes.set_ylabel(label(name))
    for axes in set(grid.flat) - used:
        axes.set_axis_off()
    _legend(figure)
    return figure


@styled
def plot_reports(study: StudyData) -> Figure:
    """What trials reported on their way, pruned ones up to their end."""
    figure = new_figure(9, 4)
    axes = figure.subplots()
    colours = {"complete": (BLUE, 0.35), "pruned": (ORANGE, 0.9), "failed": (VERMILION, 0.8), "running": (GREY, 0.6)}
    for trial in sorted(study.trials, key=lambda trial: trial.state == "pruned"):
        if trial.reports and trial.state in colours:
            colour, alpha = colours[trial.state]
            axes.plot(list(trial.reports), list(trial.reports.values()), color=colour, alpha=alpha, linewidth=1.3,
                      label=trial.state)
            end = max(trial.reports)
            axes.scatter([end], [trial.reports[end]], color=colour, s=26, zorder=3, linewidths=0,
                         marker="v" if trial.state == "pruned" else "o")
    axes.set_xlabel("report (epochs and generations, in order)")
    axes.set_ylabel("reported value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    _legend(figure)
    return figure


@styled
def plot_proxy(comparison: ProxyComparison) -> Figure:
    """Cheap against full trials of equal parameters, a panel for each objective."""
    names = list(comparison.correlations)
    num_columns = min(NUM_COLUMNS, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = new_figure(10.5 if num_columns > 1 else 6, 4.2 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for axes, name in zip(panels, names):
        axes.scatter([pair.proxy[name] for pair in comparison.pairs], [pair.full[name] for pair in comparison.pairs],
                     s=38, color=BLUE, alpha=0.8, linewidths=0)
        axes.set_xlabel(f"{label(name)}, proxy")
        axes.set_ylabel(f"{label(name)}, full")
        axes.set_title(f"tau {shown_coefficient(comparison.correlations[name].kendall)}", loc="left")
        _finish_plane(axes, name, name)
    for axes in list(panels):
        axes.set_axis_off()
    return figure


def _finish_plane(axes: Axes, across: str, up: str) -> None:
    """Grid, room and number formats of a plane of two values."""
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    format_values(axes.xaxis, across)
    format_values(axes.yaxis, up)


def shortened(name: str) -> str:
    """A name that leaves room for the figure; its end tells keys apart."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def format_values(axis: Axis, name: str) -> None:
    """Ticks of a value as readers write them: no power of ten, no offset beside the axis."""
    if name.startswith("params"):
        axis.set_major_formatter(lambda value, _: short_count(value))
    else:
        plain = ScalarFormatter(useOffset=False)
        plain.set_scientific(False)
        axis.set_major_formatter(plain)


def _mark_trials(axes: Axes, x: Sequence[float], name: str, study: StudyData) -> None:
    kept_N = np.array([not trial.broken for trial in study.complete], dtype=bool)
    _draw_points(axes, np.asarray(x, dtype=np.float64), np.array([t.values[name] for t in study.complete]), kept_N)


def _draw_points(
    axes: Axes, x_N: NDArray[np.float64], y_N: NDArray[np.float64], kept_N: NDArray[np.bool_]
) -> None:
    """Complete trials: filled ones keep the limits, hollow ones break one."""
    if kept_N.any():
        axes.scatter(x_N[kept_N], y_N[kept_N], s=28, color=BLUE, alpha=0.85, linewidths=0, zorder=3, label="complete")
    if not kept_N.all():
        axes.scatter(x_N[~kept_N], y_N[~kept_N], s=28, facecolors="white", edgecolors=GREY, linewidths=1.2, zorder=3,
                     label="complete, breaks a limit")


def _draw_slice(axes: Axes, study: StudyData, name: str, parameter: str) -> None:
    trials = [trial for trial in study.complete if parameter in trial.params]
    settings = [trial.params[parameter] for trial in trials]
    x_N, ticks = _positions(settings)
    y_N = np.array([trial.values[name] for trial in trials])
    kept_N = np.array([not trial.broken for trial in trials], dtype=bool)
    if ticks:
        for position in range(len(ticks)):
            axes.plot([position - 0.3, position + 0.3], [np.median(y_N[x_N == position])] * 2, color=INK, linewidth=1.5)
        # A fixed spread, so that equal values do not hide each other.
        x_N = x_N + 0.18 * np.sin(np.arange(len(x_N)) * 2.399963)
        crowded = sum(map(len, ticks)) > 28
        axes.set_xticks(range(len(ticks)), [shortened(tick) for tick in ticks], rotation=30 if crowded else 0,
                        ha="right" if crowded else "center")
        axes.set_xlim(-0.6, len(ticks) - 0.4)
    elif getattr(study.distributions.get(parameter), "log", False):
        axes.set_xscale("log")
    _draw_points(axes, x_N, y_N, kept_N)
    axes.set_xlabel(shortened(parameter))
    axes.grid(axis="y")


def _positions(settings: Sequence[Any]) -> tuple[NDArray[np.float64], list[str]]:
    """Where settings stand, and the names of categories; numbers stand where they are and have none."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in settings):
        return np.array(settings, dtype=np.float64), []
    names = sorted({shown_setting(value) for value in settings})
    return np.array([names.index(shown_setting(value)) for value in settings], dtype=np.float64), names


def _direction(mode: Mode) -> str:
    return "higher is better" if mode == "maximize" else "lower is better"


def _draw_limits(axes: Axes, study: StudyData, across: str, up: str) -> None:
    for name, draw in ((across, axes.axvline), (up, axes.axhline)):
        numbers = [trial.values[name] for trial in study.complete]
        limit, spread = study.constraints.get(name), max(numbers) - min(numbers)
        # a limit far away would squeeze the points into a corner
        if limit is not None and min(abs(limit - number) for number in numbers) <= MAX_LIMIT_DISTANCE * spread:
            draw(limit, color=INK, linestyle="--", linewidth=1.2, label="limit")


def _legend(figure: Figure) -> None:
    named = {words: handle for axes in figure.axes for handle, words in zip(*axes.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=5)
