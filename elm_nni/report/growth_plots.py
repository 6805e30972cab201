"""Figures of the supernet's growth: scores and widths by layer and epoch, the budget used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from elm_nni.report.growth_files import GrowthEpoch, parse_cell
from elm_nni.report.style import BLUE, GREEN, GREY, PALE, SEQUENTIAL, VERMILION, Shades, new_figure, styled, text_colour
from elm_nni.report.text import short_count

NUM_COLUMNS = 3
# With more epochs the printed numbers would run into each other.
MAX_ANNOTATED_EPOCHS = 12
SIGNALS = {
    "pca": "PCA score k (components for 0.99 of the variance)",
    "activation_norm": "root mean square of the FFN pre-activations",
    "gradient_saliency": "gradient saliency (mean |feature × gradient|)",
    "learnable_gate": "learned gate on the FFN pre-activations",
    "random": "random score",
}


@styled
def plot_scores(growth: Sequence[GrowthEpoch]) -> Figure:
    """Scores: one panel a block, layers down, epochs across; cells that were not scored stay grey.

    Numbers of components are written into their cells; the scores of other signals are told by colour alone.
    """
    signal = growth[0].signal
    label = SIGNALS.get(signal, f"growth score {signal}")
    return _heat_maps(growth, lambda epoch: epoch.scores, label, with_numbers=signal == "pca")


@styled
def plot_widths(growth: Sequence[GrowthEpoch]) -> Figure:
    """FFN widths after each epoch, laid out as the scores, with a framed cell for every growth event."""
    figure = _heat_maps(growth, lambda epoch: epoch.widths, "FFN width after the epoch")
    for panel in figure.axes:
        _mark_events(panel, growth, panel.get_title())
    mark = Line2D([], [], marker="s", linestyle="none", markersize=9, markerfacecolor="none", markeredgecolor=VERMILION,
                  markeredgewidth=2, label="grew in this epoch")
    if any(epoch.events for epoch in growth):
        figure.legend(handles=[mark], loc="outside upper right")
    return figure


@styled
def plot_budget(growth: Sequence[GrowthEpoch]) -> Figure:
    """Mean parameters of a sampled architecture against the budget, and growth events, by epoch."""
    figure = new_figure(9, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    epochs = [epoch.epoch for epoch in growth]
    top.plot(epochs, [epoch.mean_params / 1e6 for epoch in growth], color=BLUE, marker="o", label="mean architecture")
    for budget in sorted({epoch.budget for epoch in growth if epoch.budget is not None}):
        top.axhline(budget / 1e6, color=VERMILION, linestyle="--", label=f"budget ({short_count(budget)})")
    top.set_ylabel("parameters (millions)")
    top.margins(y=0.15)
    top.grid(axis="y")
    top.legend(loc="best", ncols=2)
    counts = [len(epoch.events) for epoch in growth]
    bars = bottom.bar(epochs, counts, color=GREEN, width=0.6)
    bottom.bar_label(bars, fontsize=9)
    bottom.set_ylim(0, max(1, *counts) * 1.3)
    bottom.set_ylabel("cells grown")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=MAX_ANNOTATED_EPOCHS, integer=True, min_n_ticks=1))
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    bottom.set_xlim(min(epochs) - 0.6, max(epochs) + 0.6)
    return figure


def cell_matrix(
    growth: Sequence[GrowthEpoch], block: str, num_layers: int, values: Callable[[GrowthEpoch], Mapping[str, float]]
) -> NDArray[np.float64]:
    """Values of one block as a matrix (layers, epochs); NaN where an epoch says nothing of the cell."""
    columns = [[values(epoch).get(f"layer{i}_{block}", np.nan) for i in range(num_layers)] for epoch in growth]
    return np.array(columns, dtype=np.float64).T


def _heat_maps(
    growth: Sequence[GrowthEpoch],
    values: Callable[[GrowthEpoch], Mapping[str, float]],
    label: str,
    *,
    with_numbers: bool = True,
) -> Figure:
    cells = [cell for epoch in growth for cell in map(parse_cell, epoch.widths) if cell]
    blocks = list(dict.fromkeys(block for _, block in cells))
    num_layers = 1 + max(layer for layer, _ in cells)
    matrices = {block: cell_matrix(growth, block, num_layers, values) for block in blocks}
    shades = Shades.over(np.stack(list(matrices.values())))
    num_rows = -(-len(blocks) // NUM_COLUMNS)
    num_columns = min(NUM_COLUMNS, len(blocks))
    column_width = max(2.6, 0.32 * len(growth) + 0.9) if len(growth) <= MAX_ANNOTATED_EPOCHS else 3.4
    figure = new_figure(max(5.5, column_width * num_columns + 0.8), num_rows * (0.24 * num_layers + 0.9) + 0.9)
    panels: list[Axes] = list(figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).flat)
    for unused in panels[len(blocks) :]:
        unused.remove()
    for block, panel in zip(blocks, panels):
        panel.set_title(block)
        _heat_map(panel, matrices[block], shades, growth, with_numbers)
    _label_outer(panels[: len(blocks)], num_columns)
    figure.colorbar(
        shades.mappable, ax=panels[: len(blocks)], label=label, location="bottom", shrink=0.6, aspect=40, pad=0.02
    )
    return figure


def _label_outer(panels: Sequence[Axes], num_columns: int) -> None:
    for index, panel in enumerate(panels):
        if index % num_columns == 0:
            panel.set_ylabel("layer")
        if index + num_columns >= len(panels):
            panel.set_xlabel("epoch")
            panel.tick_params(labelbottom=True)


def _heat_map(
    panel: Axes, matrix: NDArray[np.float64], shades: Shades, growth: Sequence[GrowthEpoch], with_numbers: bool
) -> None:
    num_layers, num_epochs = matrix.shape
    panel.set_facecolor(PALE)
    panel.imshow(matrix, cmap=SEQUENTIAL, norm=shades.norm, aspect="auto", interpolation="nearest")
    panel.set_yticks(range(num_layers))
    step = max(1, -(-num_epochs // MAX_ANNOTATED_EPOCHS))
    panel.set_xticks(range(0, num_epochs, step), [str(epoch.epoch) for epoch in growth[::step]])
    panel.tick_params(length=0)
    if num_epochs > MAX_ANNOTATED_EPOCHS:
        return
    colours = shades.rgba(matrix)
    for (row, column), value in np.ndenumerate(matrix):
        known = not np.isnan(value)
        if known and not with_numbers:
            continue
        panel.text(
            column,
            row,
            f"{value:.0f}" if known else "–",
            color=text_colour(colours[row, column]) if known else GREY,
            ha="center",
            va="center",
            fontsize=7.5,
        )


def _mark_events(panel: Axes, growth: Sequence[GrowthEpoch], block: str) -> None:
    places = [(column, cell[0]) for column, epoch in enumerate(growth) for event in epoch.events
              if (cell := parse_cell(event.cell)) and cell[1] == block]
    for column, row in places:
        frame = Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor=VERMILION, linewidth=1.8)
        panel.add_patch(frame)
