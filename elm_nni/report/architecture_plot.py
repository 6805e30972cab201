"""The architecture drawn layer by layer: block, shared projections, heads, and the FFN width as the length of a bar."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from elm_nni.report.head_files import HeadPruning
from elm_nni.report.result_files import Layer, Results
from elm_nni.report.style import BLUE, GREY, INK, PALE, VERMILION, block_colours, new_figure, styled, text_colour
from elm_nni.report.text import short_count

# Columns of the drawing; the page is 100 wide.
_BLOCK = (5.0, 17.0)
_PROJECTIONS = (26.0, 14.0)
_HEADS = (43.0, 15.0)
_FFN = (71.0, 21.0)


@styled
def plot_architecture(results: Results, pruning: HeadPruning | None) -> Figure:
    """Draws ``results.layers`` from the embedding (top) to the task head (bottom); pruned heads are hollow."""
    layers = results.layers
    figure = new_figure(10, 0.46 * len(layers) + 1.9)
    axes = figure.subplots()
    axes.set_xlim(0, 100)
    axes.set_ylim(len(layers) + 0.75, -2.1)
    axes.set_axis_off()
    for (left, _), title in ((_BLOCK, "block"), (_PROJECTIONS, "projections"), (_HEADS, "attention heads × width"),
                             (_FFN, "feed-forward width")):
        axes.text(left, -1.75, title, weight="bold", va="center")
    _draw_end(axes, -0.95, f"embedding{_embedding_size(results)}")
    before = heads_before(layers, pruning)
    most_heads, widest = max(*before, 1), max(layer.ffn for layer in layers)
    colours = block_colours(layer.block for layer in layers)
    for layer, num_before in zip(layers, before):
        _draw_arrow(axes, layer.index - 0.5)
        axes.text(_BLOCK[0] - 1, layer.index, str(layer.index), ha="right", va="center", color=GREY)
        _draw_block(axes, layer, colours[layer.block])
        _draw_projections(axes, layer)
        _draw_heads(axes, layer, num_before, most_heads)
        _draw_ffn(axes, layer, widest, colours[layer.block])
    _draw_arrow(axes, len(layers) - 0.5)
    _draw_end(axes, len(layers), "task head")
    return figure


def heads_before(layers: Sequence[Layer], pruning: HeadPruning | None) -> tuple[int, ...]:
    """Heads of each layer before pruning; a layer whose plan does not lead to its head count counts as untouched."""
    plans = {} if pruning is None or pruning.mode != "remove" else {plan.layer: plan for plan in pruning.layers}
    found = [(layer, plans.get(layer.index)) for layer in layers]
    return tuple(plan.before if plan and plan.after == layer.heads else layer.heads for layer, plan in found)


def _embedding_size(results: Results) -> str:
    if results.params_outside_embeddings is None:
        return ""
    return f", {short_count(results.params - results.params_outside_embeddings)}"


def _draw_end(axes: Axes, y: float, label: str) -> None:
    left, width = _BLOCK
    axes.add_patch(FancyBboxPatch((left + 0.6, y - 0.2), width - 1.2, 0.4, boxstyle="round,pad=0,rounding_size=0.2",
                                  mutation_aspect=0.2, facecolor="white", edgecolor=INK))
    axes.text(left + width / 2, y, label, ha="center", va="center", fontsize=8)


def _draw_arrow(axes: Axes, y: float) -> None:
    middle = _BLOCK[0] + _BLOCK[1] / 2
    axes.annotate("", (middle, y + 0.17), (middle, y - 0.17), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1})


def _draw_block(axes: Axes, layer: Layer, colour: str) -> None:
    left, width = _BLOCK
    y = layer.index
    # A waist shows the bottleneck at which a MobileBERT block works.
    waist = 2.2 if layer.block.startswith("mobile") else 0.0
    corners = [(left, y - 0.32), (left + width, y - 0.32), (left + width - waist, y), (left + width, y + 0.32),
               (left, y + 0.32), (left + waist, y)]
    axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="none"))
    axes.text(left + width / 2, y, layer.block, ha="center", va="center", color=text_colour(colour), weight="bold",
              fontsize=9, clip_on=True)


def _draw_projections(axes: Axes, layer: Layer) -> None:
    left, width = _PROJECTIONS
    x = left
    for name in projections(layer.block):
        share = width * (2 if "=" in name else 1) / 3 - 0.6
        axes.add_patch(Rectangle((x, layer.index - 0.26), share, 0.52, facecolor=PALE if "=" in name else "white",
                                 edgecolor=INK, linewidth=0.9))
        axes.text(x + share / 2, layer.index, name, ha="center", va="center", fontsize=8.5)
        x += share + 0.6


def projections(block: str) -> tuple[str, ...]:
    """The projections that a block's name tells of: one shared matrix is written with an equals sign."""
    if block.endswith("_qv"):
        return ("Q = V", "K")
    return ("Q", "K = V") if block.endswith("_kv") else ("Q", "K", "V")


def _draw_heads(axes: Axes, layer: Layer, num_before: int, most_heads: int) -> None:
    left, width = _HEADS
    pitch = min(1.25, width / most_heads)
    for head in range(num_before):
        kept = head < layer.heads
        axes.add_patch(Rectangle((left + head * pitch, layer.index - 0.2), 0.78 * pitch, 0.4,
                                 facecolor=BLUE if kept else "white", edgecolor=BLUE if kept else VERMILION,
                                 linestyle="-" if kept else ":", linewidth=1))
    axes.text(left + most_heads * pitch + 0.8, layer.index, f"{layer.heads} × {layer.head_dim}", va="center",
              fontsize=9)


def _draw_ffn(axes: Axes, layer: Layer, widest: int, colour: str) -> None:
    left, width = _FFN
    length = width * layer.ffn / widest
    bar = Rectangle((left, layer.index - 0.24), length, 0.48, facecolor=colour, edgecolor="none")
    bar.set_gid(f"ffn{layer.index}")
    axes.add_patch(bar)
    axes.text(left + length + 0.8, layer.index, str(layer.ffn), va="center", fontsize=9)
