"""Figures of a sweep: heads left in each layer, and what was measured for each value."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elm_nni.report.study.plots import format_values
from elm_nni.report.study.sweeps import HEADS, Sweep, SweepRow
from elm_nni.report.study.text import label
from elm_nni.report.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SEQUENTIAL,
    VERMILION,
    Shades,
    new_figure,
    styled,
    text_colour,
)

_LINES = ((BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", ":"), (PURPLE, "D", "-."), (ORANGE, "v", "-"))
NUM_COLUMNS = 3


@styled
def plot_heads(sweep: Sweep) -> Figure:
    """Heads left in each layer for each value, a panel for each series; bold where fewer than the most of all."""
    series = sweep.series
    known = sorted((row for row in sweep.rows if row.layer_heads), key=lambda row: row.position)
    num_layers = max(len(row.layer_heads) for row in known)
    labels = list(dict.fromkeys(row.label for row in known))
    figure = new_figure((0.5 * num_layers + 1.6) * len(series) + 0.6, 0.38 * len(labels) + 1.3)
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, series):
        rows = {row.label: row for row in known if row.series == name}
        _draw_heads(axes, sweep, [rows.get(label) for label in labels], num_layers)
        axes.set_title(f"{sweep.split}: {name}" if sweep.split else "heads left", loc="left")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylabel(sweep.parameter)
    return figure


@styled
def plot_sweep(sweep: Sweep) -> Figure:
    """A panel for each value that was measured: the mean at each setting, a bar from smallest to largest."""
    names = sweep.names
    num_columns = min(NUM_COLUMNS if len(names) != 4 else 2, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = new_figure(10.5 if num_columns > 1 else 6, 3.2 * num_rows + 0.3)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    positions = sorted({row.position for row in sweep.rows})
    for axes, name in zip(panels, names):
        for index, series in enumerate(sweep.series):
            rows = [row for row in sweep.rows if row.series == series and name in row.values]
            _draw_line(axes, rows, name, series, index)
        axes.set_title(label(name), loc="left")
        axes.set_xlabel(sweep.parameter)
        axes.grid(axis="y")
        axes.margins(0.08)
        if len(positions) <= 8:
            axes.set_xticks(positions, [f"{position:g}" for position in positions])
        format_values(axes.yaxis, name)
    for axes in list(panels):
        axes.set_axis_off()
    handles, words = figure.axes[0].get_legend_handles_labels()
    if sweep.split:
        figure.legend(handles, words, loc="outside upper left", ncols=5)
    return figure


def _draw_heads(axes: Axes, sweep: Sweep, rows: list[SweepRow | None], num_layers: int) -> None:
    """A setting that this series lacks stays blank."""
    heads = np.full((len(rows), num_layers), np.nan)
    for index, row in enumerate(rows):
        if row:
            heads[index, : len(row.layer_heads)] = row.layer_heads
            axes.text(num_layers - 0.35, index, f"{row.values[HEADS].mean:.4g}", va="center")
    shades = Shades(0.0, float(sweep.full_heads or 1))
    axes.imshow(heads, cmap=SEQUENTIAL, norm=shades.norm, aspect="auto", interpolation="nearest")
    for (row_index, layer), count in np.ndenumerate(heads):
        if np.isfinite(count):
            axes.text(layer, row_index, f"{count:.3g}", ha="center", va="center",
                      weight="normal" if count >= sweep.full_heads else "bold",
                      color=text_colour(shades.rgba(np.array(count))))
    axes.text(num_layers - 0.35, -0.6, "all", va="bottom", fontsize=9)
    axes.set_xticks(range(num_layers), [str(layer) for layer in range(num_layers)])
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_line(axes: Axes, rows: list[SweepRow], name: str, series: str, index: int) -> None:
    colour, marker, line = _LINES[index % len(_LINES)]
    means = np.array([row.values[name].mean for row in rows])
    below = means - [row.values[name].low for row in rows]
    above = [row.values[name].high for row in rows] - means
    # A mean of equal numbers may miss them by rounding.
    axes.errorbar([row.position for row in rows], means, yerr=np.maximum([below, above], 0), color=colour,
                  marker=marker, linestyle=line, markersize=5, capsize=3, elinewidth=1, label=series or name)
