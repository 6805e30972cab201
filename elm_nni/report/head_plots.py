"""Figures of the CKA step: matrices before and after with the removed heads marked, and the sweep over eta.

Shape suffix: H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from elm_nni.report.head_files import HeadLayer, HeadPruning
from elm_nni.report.style import GREY, INK, PALE, SEQUENTIAL, VERMILION, Shades, new_figure, styled, text_colour

NUM_COLUMNS = 3
_CKA_SHADES = Shades(0.0, 1.0)


def marked_heads(layer: HeadLayer, mode: str) -> tuple[int, ...]:
    """Heads that the plan takes away: those not kept when removing, the redundant ones when fusing."""
    if mode == "fuse":
        return layer.redundant
    return tuple(head for head in range(layer.before) if head not in layer.kept)


@styled
def plot_cka(pruning: HeadPruning) -> Figure:
    """CKA of all pairs of heads, before (left) and after (right) in each layer; red lines cross removed heads out."""
    layers = [layer for layer in pruning.layers if layer.layer in {*pruning.cka_before, *pruning.cka_after}]
    num_columns = min(NUM_COLUMNS, len(layers))
    num_rows = -(-len(layers) // num_columns)
    # A row of its own for the colour bar: axes inside subfigures cannot lend it room.
    heights = (2.55 * num_rows, 0.75)
    figure = new_figure(4.2 * num_columns, sum(heights))
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    for cell, layer in zip(top.subfigures(num_rows, num_columns, squeeze=False).flat, layers):
        _draw_layer(cell, layer, pruning)
    _, bar, _ = bottom.subplots(1, 3)
    for unused in (bottom.axes[0], bottom.axes[2]):
        unused.set_axis_off()
    figure.colorbar(_CKA_SHADES.mappable, cax=bar, orientation="horizontal", label="unbiased linear CKA")
    return figure


@styled
def plot_eta_sweep(pruning: HeadPruning) -> Figure:
    """Heads left in each layer for each eta, and their sum; the chosen eta is framed."""
    etas = list(pruning.eta_sweep)
    heads = np.array([pruning.eta_sweep[eta] for eta in etas])
    num_etas, num_layers = heads.shape
    figure = new_figure(max(6.0, 0.55 * num_layers + 2.2), 0.4 * num_etas + 1.3)
    axes = figure.subplots()
    before = np.array([layer.before for layer in pruning.layers])
    shades = Shades(0.0, float(before.max()))
    colours = shades.rgba(heads)
    axes.imshow(heads, cmap=SEQUENTIAL, norm=shades.norm, aspect="auto", interpolation="nearest")
    for (row, column), count in np.ndenumerate(heads):
        weight = "normal" if count == before[column] else "bold"
        axes.text(column, row, str(count), ha="center", va="center", weight=weight,
                  color=text_colour(colours[row, column]))
    for row in range(num_etas):
        axes.text(num_layers - 0.35, row, f"{heads[row].sum()} of {before.sum()}", va="center")
    axes.set_yticks(range(num_etas), [f"{eta:g}" for eta in etas])
    axes.set_xticks(range(num_layers), [str(layer.layer) for layer in pruning.layers])
    axes.set_xlabel("layer")
    axes.set_ylabel("eta")
    axes.set_title("heads left", loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row in np.flatnonzero(np.isclose(etas, pruning.eta)):
        axes.add_patch(Rectangle((-0.5, row - 0.5), num_layers, 1, fill=False, edgecolor=VERMILION, linewidth=2.5,
                                 clip_on=False))
    return figure


def _draw_layer(cell: SubFigure, layer: HeadLayer, pruning: HeadPruning) -> None:
    change = ", unchanged" if layer.after == layer.before else f" → {layer.after}"
    cell.suptitle(f"layer {layer.layer}: {layer.before} heads{change}", fontsize=10, fontweight="bold")
    left, right = cell.subplots(1, 2)
    marked = marked_heads(layer, pruning.mode)
    _draw_matrix(left, pruning.cka_before.get(layer.layer), range(layer.before), "before", marked)
    # Fused heads are new ones, numbered afresh; removed heads leave the others their numbers.
    labels = layer.kept if len(layer.kept) == layer.after else range(layer.after)
    _draw_matrix(right, pruning.cka_after.get(layer.layer), labels, "after", ())


def _draw_matrix(
    axes: Axes, matrix_HH: NDArray[np.float64] | None, labels: Sequence[int], name: str, marked: Sequence[int]
) -> None:
    axes.set_xlabel(name, fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=6.5, pad=1)
    if matrix_HH is None:
        axes.text(0.5, 0.5, "not stored", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.set_facecolor(PALE)
    axes.imshow(matrix_HH, cmap=SEQUENTIAL, norm=_CKA_SHADES.norm, interpolation="nearest")
    step = -(-len(labels) // 16)
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(range(0, len(labels), step), [str(label) for label in labels][::step])
    axes.xaxis.tick_top()
    for head in marked:
        axes.axhline(head, color=VERMILION, linewidth=1.4)
        axes.axvline(head, color=VERMILION, linewidth=1.4)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        removed = int(tick.get_text()) in marked
        tick.set(color=VERMILION if removed else INK, fontweight="bold" if removed else "normal")
