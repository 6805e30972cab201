"""Figures of the results: the bootstrap interval, and the cost of the stages."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from elm_nni.report.load import Comparison, Stage
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, new_figure, styled
from elm_nni.report.text import duration, signed


@styled
def plot_comparison(comparison: Comparison) -> Figure:
    """Ours minus the baseline with its bootstrap interval; red when wholly below zero, grey when it holds zero."""
    figure = new_figure(9, 2.1)
    axes = figure.subplots()
    colour = GREEN if comparison.low > 0 else VERMILION if comparison.high < 0 else GREY
    axes.axvline(0, color=INK, linewidth=1, linestyle="--")
    axes.plot([comparison.low, comparison.high], [0, 0], color=colour, linewidth=5, solid_capstyle="butt")
    axes.plot([comparison.difference], [0], marker="o", markersize=11, color=colour, markeredgecolor="white")
    for value, align in ((comparison.low, "right"), (comparison.high, "left")):
        axes.annotate(signed(value), (value, 0), xytext=(0, -17), va="center", ha=align, textcoords="offset points",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.annotate(signed(comparison.difference), (comparison.difference, 0), xytext=(0, 12), ha="center",
                  textcoords="offset points", weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    low, high = min(comparison.low, 0.0), max(comparison.high, 0.0)
    margin = 0.25 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ours minus the baseline (right of the dashed line: ours is better)")
    return figure


@styled
def plot_stages(stages: Sequence[Stage]) -> Figure:
    """Seconds and peak memory of each stage; a cached stage is hatched."""
    figure = new_figure(9, 0.36 * len(stages) + 1.4)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(stages))
    hatches = ["////" if stage.cached else "" for stage in stages]
    times = left.barh(rows, [stage.seconds for stage in stages], color=BLUE, edgecolor="white", hatch=hatches)
    labels = [f"{duration(stage.seconds)}{' (cached)' if stage.cached else ''}" for stage in stages]
    left.bar_label(times, labels, padding=4, fontsize=9)
    left.set_yticks(rows, [stage.name for stage in stages])
    left.set_xlabel("seconds")
    left.invert_yaxis()
    memory = right.barh(rows, [stage.peak_memory_mb or 0 for stage in stages], color=ORANGE, edgecolor="white")
    right.bar_label(memory, ["unknown" if stage.peak_memory_mb is None else f"{stage.peak_memory_mb:,.0f}"
                             for stage in stages], padding=4, fontsize=9)
    right.set_xlabel("peak memory (MB)")
    for axes in (left, right):
        axes.margins(x=0.4 if axes is left else 0.2)
        axes.tick_params(axis="y", length=0)
    return figure
