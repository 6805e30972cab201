"""Figures of the search: progress over the generations, and the plane of parameters, latency and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from elm_nni.analysis.pareto import non_dominated
from elm_nni.report.front import candidate_costs, pareto_front
from elm_nni.report.search_files import Candidate
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION, Shades, new_figure, styled

_ORIGINS = {"random": (GREY, "o"), "mutation": (BLUE, "^"), "crossover": (ORANGE, "s")}
_OTHER_ORIGIN = (PURPLE, "D")
# In spreads of the points; a limit farther away would squeeze them into a corner.
MAX_LIMIT_DISTANCE = 3.0


@styled
def plot_evolution(history: Sequence[Candidate]) -> Figure:
    """All evaluated architectures by generation and origin, with the best so far and the best of each generation."""
    figure = new_figure(9, 4.4)
    axes = figure.subplots()
    generations_N = np.array([c.generation for c in history])
    metrics_N = np.array([c.metric for c in history])
    # A fixed spread, so that points of one generation do not hide each other and a second run draws the same.
    spread_N = 0.32 * np.sin(np.arange(len(history)) * 2.399963)
    for origin in dict.fromkeys(c.origin for c in history):
        colour, marker = _ORIGINS.get(origin, _OTHER_ORIGIN)
        chosen_N = np.array([c.origin == origin for c in history])
        axes.scatter(generations_N[chosen_N] + spread_N[chosen_N], metrics_N[chosen_N], s=18, alpha=0.6, color=colour,
                     marker=marker, linewidths=0, label=f"{origin} ({chosen_N.sum()})")
    shown = np.unique(generations_N)
    best = np.array([metrics_N[generations_N == g].max() for g in shown])
    few = len(shown) <= 15
    axes.plot(shown, best, color=INK, linewidth=1, linestyle=":", marker="_", label="best of the generation")
    axes.plot(shown, np.maximum.accumulate(best), color=GREEN, marker="o" if few else "", label="best so far")
    axes.set_xlim(shown.min() - 0.7, shown.max() + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("generation")
    axes.set_ylabel("search fitness")
    axes.grid(axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


@styled
def plot_plane(candidates: Sequence[Candidate], best_digest: str | None, limits: Mapping[str, float]) -> Figure:
    """Two panels: parameters and quality coloured by latency; latency and quality coloured by parameters.

    Each panel shows its own two-way front as a line; rings mark the Pareto front together.
    """
    costs_N3 = candidate_costs(candidates)
    metrics_N, params_N, latency_N = -costs_N3[:, 0], costs_N3[:, 1] / 1e6, costs_N3[:, 2]
    digests = {c.digest for c in pareto_front(candidates)}
    ringed_N = np.array([c.digest in digests for c in candidates])
    best_N = np.array([c.digest == best_digest for c in candidates])
    limit = limits.get("params")
    params_limit = None if limit is None else limit / 1e6
    figure = new_figure(10.5, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    size, time = "parameters (millions)", "latency (ms)"
    _scatter(left, params_N, metrics_N, latency_N, ringed_N, best_N, params_limit, size, time)
    _scatter(right, latency_N, metrics_N, params_N, ringed_N, best_N, limits.get("latency_ms"), time, size)
    left.set_ylabel("search fitness")
    named = {label: handle for axes in (right, left) for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=5)
    return figure


def front_line(x_N: NDArray[np.float64], metrics_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (P, 2) of the two-way front, x down and metric up, sorted by x."""
    front_N = non_dominated(np.stack([x_N, -metrics_N], axis=1))
    return np.unique(np.stack([x_N[front_N], metrics_N[front_N]], axis=1), axis=0)


def _scatter(
    axes: Axes,
    x_N: NDArray[np.float64],
    metrics_N: NDArray[np.float64],
    shade_N: NDArray[np.float64],
    ringed_N: NDArray[np.bool_],
    best_N: NDArray[np.bool_],
    limit: float | None,
    x_label: str,
    shade_label: str,
) -> None:
    axes.set_xlabel(x_label)
    if np.isnan(x_N).all():
        axes.text(0.5, 0.5, "no latency is known", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        return
    axes.grid(True)
    axes.set_axisbelow(True)
    unknown_N = np.isnan(shade_N)
    if unknown_N.any():
        axes.scatter(x_N[unknown_N], metrics_N[unknown_N], s=20, color=GREY, marker="x", linewidths=1,
                     label=f"no {shade_label.partition(' ')[0]} known")
    if not unknown_N.all():
        shades = Shades.over(shade_N)
        axes.scatter(x_N[~unknown_N], metrics_N[~unknown_N], s=20, c=shades.rgba(shade_N[~unknown_N]))
        axes.figure.colorbar(shades.mappable, ax=axes, label=shade_label, location="bottom", shrink=0.85, aspect=30)
    line_P2 = front_line(x_N, metrics_N)
    axes.step(line_P2[:, 0], line_P2[:, 1], where="post", color=VERMILION, linewidth=1.5, label="front of this panel")
    axes.scatter(x_N[ringed_N], metrics_N[ringed_N], s=60, facecolors="none", edgecolors=INK, linewidths=1,
                 label="Pareto front")
    if best_N.any():
        axes.scatter(x_N[best_N], metrics_N[best_N], s=190, marker="*", color=VERMILION, edgecolors="white", zorder=5,
                     label="winner")
    if limit is not None:
        _draw_limit(axes, x_N, limit)


def _draw_limit(axes: Axes, x_N: NDArray[np.float64], limit: float) -> None:
    low, high = np.nanmin(x_N), np.nanmax(x_N)
    if limit - high <= MAX_LIMIT_DISTANCE * max(high - low, 0.1 * high):
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1.2, label="limit")
    else:
        axes.text(0.99, 0.02, f"limit {limit:,.4g}, far to the right", transform=axes.transAxes, ha="right", fontsize=9)
