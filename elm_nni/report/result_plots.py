"""Figures of the results: the bootstrap intervals, and the cost of the stages."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from elm_nni.report.result_files import Comparison, Stage
from elm_nni.report.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, new_figure, styled
from elm_nni.report.text import duration, signed

_COLOURS = {"ahead": GREEN, "behind": VERMILION, "open": GREY}
# A longer name would leave no room for the intervals.
MAX_NAME = 40


@styled
def plot_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Ours minus each other system with its bootstrap interval; red when below zero, grey when it includes zero."""
    figure = new_figure(9, 0.42 * len(comparisons) + 1.1)
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1, linestyle="--")
    for row, one in enumerate(comparisons):
        colour = _COLOURS[one.verdict]
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=5, solid_capstyle="butt")
        axes.plot([one.difference], [row], marker="o", markersize=10, color=colour, markeredgecolor="white")
        axes.text(1.01, row, f"{signed(one.difference)}  [{signed(one.low)}, {signed(one.high)}]", va="center",
                  transform=axes.get_yaxis_transform(), fontsize=9)
    several = len({one.task for one in comparisons}) > 1
    names = [f"{one.against}, {one.task}" if several else one.against for one in comparisons]
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
    low, high = min(0.0, *(one.low for one in comparisons)), max(0.0, *(one.high for one in comparisons))
    margin = 0.1 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ours minus the other system (right of the dashed line: ours is ahead)")
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


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
