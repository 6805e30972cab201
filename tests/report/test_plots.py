"""Figures hold the data they were given, and fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from elm_nni.report.architecture_plot import heads_before, plot_architecture, projections
from elm_nni.report.growth_files import GrowthEpoch
from elm_nni.report.growth_plots import plot_budget, plot_scores, plot_widths
from elm_nni.report.head_files import HeadPruning
from elm_nni.report.head_plots import marked_heads, plot_cka, plot_eta_sweep
from elm_nni.report.load import RunData, load_run
from elm_nni.report.plots import FIGURE_NAMES, draw_figures
from elm_nni.report.result_files import Results
from elm_nni.report.result_plots import plot_comparisons, plot_stages
from elm_nni.report.search_plots import plot_evolution, plot_plane
from elm_nni.report.style import BLOCK_COLOURS, GREEN, GREY, VERMILION, block_colours, text_colour, to_png

from .conftest import ELM_SMALL, NANO, write_sample_run


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_sample_run(tmp_path_factory.mktemp("nano"), NANO))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_sample_run(tmp_path_factory.mktemp("small"), ELM_SMALL))


@pytest.fixture
def pruning(small: RunData) -> HeadPruning:
    assert small.pruning is not None
    return small.pruning


@pytest.fixture
def results(small: RunData) -> Results:
    assert small.results is not None
    return small.results


def panels(figure: Figure) -> dict[str, mpl.axes.Axes]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def frames(axes: mpl.axes.Axes) -> list[tuple[int, int]]:
    marks = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return sorted((round(mark.get_x() + 0.44), round(mark.get_y() + 0.44)) for mark in marks)


def test_every_figure_is_drawn(nano: RunData) -> None:
    assert sorted(name for name, _ in draw_figures(nano)) == sorted(FIGURE_NAMES)


def test_no_data_no_figure(nano: RunData, tmp_path: Path) -> None:
    assert list(draw_figures(RunData(tmp_path, (), (), (), None, None, None, None))) == []


def test_score_maps_hold_the_scores_of_all_72_cells(small: RunData) -> None:
    found = panels(plot_scores(small.growth))
    assert list(found) == list(BLOCK_COLOURS)
    for block, axes in found.items():
        expected = [[epoch.scores[f"layer{i}_{block}"] for epoch in small.growth] for i in range(12)]
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for row in expected for v in row]
        assert len(axes.get_yticks()) == 12


def test_width_maps_frame_every_growth_event(small: RunData) -> None:
    figure = plot_widths(small.growth)
    for block, axes in panels(figure).items():
        events = [(column, event.cell) for column, epoch in enumerate(small.growth) for event in epoch.events]
        expected = [(column, i) for column, cell in events for i in range(12) if cell == f"layer{i}_{block}"]
        assert frames(axes) == sorted(expected)
    assert figure.legends[0].get_texts()[0].get_text() == "grew in this epoch"


def test_width_maps_without_events_have_no_legend(nano: RunData) -> None:
    figure = plot_widths([replace(epoch, events=()) for epoch in nano.growth])
    assert figure.legends == []
    assert all(frames(axes) == [] for axes in panels(figure).values())


def test_unscored_cells_are_told_from_scored_ones(nano: RunData) -> None:
    scores = {cell: score for cell, score in nano.growth[0].scores.items() if cell != "layer2_bert"}
    axes = panels(plot_scores([replace(nano.growth[0], scores=scores)]))["bert"]
    assert [text.get_text() == "–" for text in axes.texts] == [i == 2 for i in range(6)]
    assert plot_scores([replace(nano.growth[0], scores={})]).axes


@pytest.mark.parametrize(("signal", "label"), [("gradient_saliency", "gradient sal"), ("mine", "growth score mine")])
def test_scores_of_another_signal_are_named_and_told_by_colour(nano: RunData, signal: str, label: str) -> None:
    scores = {cell: score / 1e6 for cell, score in nano.growth[0].scores.items() if cell != "layer2_bert"}
    figure = plot_scores([replace(nano.growth[0], scores=scores, signal=signal)])
    assert [text.get_text() for text in panels(figure)["bert"].texts] == ["–"]
    assert figure.axes[-1].get_xlabel().startswith(label)


def test_many_epochs_and_own_blocks(nano: RunData) -> None:
    widths = {"layer0_mine": 8, "layer1_mine": 8, "layer0_other": 8}
    growth = [GrowthEpoch(e, dict.fromkeys(widths, 3.0), {}, widths, (), 1e6, None, None) for e in range(40)]
    found = panels(plot_scores(growth))
    assert list(found) == ["mine", "other"]
    assert len(found["mine"].get_xticks()) <= 12
    assert list(found["mine"].texts) == []
    assert len(plot_budget(growth).axes[0].lines) == 1


def test_budget(small: RunData) -> None:
    top, bottom = plot_budget(small.growth).axes
    np.testing.assert_allclose(top.lines[0].get_ydata(), [epoch.mean_params / 1e6 for epoch in small.growth])
    np.testing.assert_allclose(top.lines[1].get_ydata(), 15.7)
    assert [patch.get_height() for patch in bottom.patches] == [len(epoch.events) for epoch in small.growth]


def test_evolution(nano: RunData) -> None:
    axes = plot_evolution(nano.history).axes[0]
    best = [max(c.metric for c in nano.history if c.generation == g) for g in range(8)]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["best of the generation"].get_ydata()) == best
    assert list(lines["best so far"].get_ydata()) == [max(best[: g + 1]) for g in range(8)]
    points = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    assert sorted(points[:, 1]) == sorted(c.metric for c in nano.history)
    assert (np.abs(points[:, 0] - points[:, 0].round()) < 0.33).all()


def test_evolution_of_one_generation(nano: RunData) -> None:
    axes = plot_evolution([c for c in nano.history if c.generation == 0]).axes[0]
    assert all(len(line.get_xdata()) == 1 for line in axes.lines)
    assert {line.get_marker() for line in axes.lines} == {"_", "o"}


def brute_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    beaten = {p for p in points for q in points if q[0] <= p[0] and q[1] >= p[1] and q != p}
    return sorted(set(points) - beaten)


def test_plane_fronts_equal_brute_force(nano: RunData) -> None:
    assert nano.summary is not None
    left, right = plot_plane(nano.history, nano.summary.best.digest, nano.summary.limits).axes[:2]
    for axes, points in ((left, [(c.params / 1e6, c.metric) for c in nano.history]),
                         (right, [(c.latency_ms, c.metric) for c in nano.history])):
        line = next(line for line in axes.lines if line.get_label() == "front of this panel")
        np.testing.assert_allclose(line.get_xydata(), brute_front(points))
        np.testing.assert_allclose(sorted(map(tuple, axes.collections[0].get_offsets())), sorted(points))
        star = next(c for c in axes.collections if c.get_label() == "winner")
        assert star.get_offsets()[0][1] == nano.summary.best.metric
    limits = [next(line for line in axes.lines if line.get_label() == "limit").get_xdata()[0] for axes in (left, right)]
    assert limits == [6.0, 4.0]


def test_plane_rings_the_front_of_all_three(nano: RunData) -> None:
    axes = plot_plane(nano.history, None, {}).axes[0]
    rings = next(c for c in axes.collections if c.get_label() == "Pareto front")
    costs = [(-c.metric, c.params, c.latency_ms) for c in nano.history]
    expected = [(b[1] / 1e6, -b[0]) for b in costs
                if not any(all(x <= y for x, y in zip(a, b)) and a != b for a in costs)]
    np.testing.assert_allclose(sorted(map(tuple, rings.get_offsets())), sorted(expected))
    assert not any(line.get_label() == "limit" for line in axes.lines)


def test_a_limit_far_from_all_points_is_written_and_does_not_squeeze_them(nano: RunData) -> None:
    free = plot_plane(nano.history, None, {}).axes[:2]
    left, right = plot_plane(nano.history, None, {"params": 6_000_000, "latency_ms": 1000.0}).axes[:2]
    assert right.get_xlim() == free[1].get_xlim()
    assert [text.get_text() for text in right.texts] == ["limit 1,000, far to the right"]
    assert list(left.texts) == []
    one = plot_plane(nano.history[:1], None, {"params": nano.history[0].params}).axes[0]
    assert "limit" in one.get_legend_handles_labels()[1]


def test_plane_without_latencies(nano: RunData) -> None:
    left, right = plot_plane([replace(c, latency_ms=None) for c in nano.history], None, {}).axes[:2]
    assert "no latency known" in left.get_legend_handles_labels()[1]
    assert [text.get_text() for text in right.texts] == ["no latency is known"]
    some = [replace(c, latency_ms=None) if i % 2 else c for i, c in enumerate(nano.history)]
    assert to_png(plot_plane(some, None, {}))


def removed_lines(axes: mpl.axes.Axes) -> list[int]:
    return sorted({int(line.get_xdata()[0]) for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]})


def test_cka_marks_the_removed_heads_and_labels_the_kept(pruning: HeadPruning) -> None:
    figure = plot_cka(pruning)
    matrices = [axes for axes in figure.axes if axes.images]
    assert len(matrices) == 24
    for layer, before, after in zip(pruning.layers, matrices[::2], matrices[1::2]):
        removed = [head for head in range(12) if head not in layer.kept]
        np.testing.assert_array_equal(before.images[0].get_array(), pruning.cka_before[layer.layer])
        np.testing.assert_array_equal(after.images[0].get_array(), pruning.cka_after[layer.layer])
        assert removed_lines(before) == removed
        red = [int(t.get_text()) for t in before.get_xticklabels() if to_hex(t.get_color()) == VERMILION.lower()]
        assert red == removed
        assert [int(t.get_text()) for t in after.get_xticklabels()] == list(layer.kept)
        assert removed_lines(after) == []


def test_fused_heads_are_marked_as_redundant_and_numbered_afresh(pruning: HeadPruning) -> None:
    fused = replace(pruning.layers[1], after=8, kept=(0, 1, 2), redundant=(3, 5))
    assert marked_heads(fused, "fuse") == (3, 5)
    plan = replace(pruning, mode="fuse", layers=(fused,), cka_after={1: np.eye(8)})
    before, after = (axes for axes in plot_cka(plan).axes if axes.images)
    assert removed_lines(before) == [3, 5]
    assert [t.get_text() for t in after.get_xticklabels()] == [str(i) for i in range(8)]


def test_cka_with_half_the_matrices(pruning: HeadPruning) -> None:
    figure = plot_cka(replace(pruning, cka_after={}, layers=pruning.layers[:1]))
    assert "not stored" in [text.get_text() for axes in figure.axes for text in axes.texts]


def test_eta_sweep(pruning: HeadPruning) -> None:
    axes = plot_eta_sweep(pruning).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), list(pruning.eta_sweep.values()))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.7", "0.8", "0.9", "0.95"]
    (frame,) = axes.patches
    assert frame.get_y() == 1.5
    assert f"{sum(pruning.eta_sweep[0.9])} of 144" in [text.get_text() for text in axes.texts]


def test_architecture_bars_heads_and_labels(results: Results, pruning: HeadPruning) -> None:
    axes = plot_architecture(results, pruning).axes[0]
    bars = {patch.get_gid(): patch for patch in axes.patches if patch.get_gid()}
    scale = bars["ffn0"].get_width() / results.layers[0].ffn
    for layer in results.layers:
        bar = bars[f"ffn{layer.index}"]
        assert bar.get_width() == pytest.approx(scale * layer.ffn)
        assert to_hex(bar.get_facecolor()) == BLOCK_COLOURS[layer.block].lower()
    squares = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_height() == 0.4]
    hollow = [p for p in squares if p.get_linestyle() != "solid" and p.get_linestyle() != "-"]
    assert len(squares) == sum(layer.before for layer in pruning.layers)
    assert len(squares) - len(hollow) == sum(layer.heads for layer in results.layers)
    texts = [text.get_text() for text in axes.texts]
    for layer in results.layers:
        assert {layer.block, str(layer.ffn), f"{layer.heads} × {layer.head_dim}", str(layer.index)} <= set(texts)
    assert "embedding, 4.38M" in texts


def test_architecture_without_or_with_another_plan(results: Results, pruning: HeadPruning) -> None:
    heads = tuple(layer.heads for layer in results.layers)
    assert heads_before(results.layers, None) == heads
    assert heads_before(results.layers, replace(pruning, mode="fuse")) == heads
    other = tuple(replace(plan, after=1) for plan in pruning.layers)
    assert heads_before(results.layers, replace(pruning, layers=other)) == heads
    assert heads_before(results.layers, pruning) == (12,) * 12


def test_projections() -> None:
    assert projections("bert") == ("Q", "K", "V")
    assert projections("mobile_qv") == ("Q = V", "K")
    assert projections("bert_kv") == ("Q", "K = V")


def test_architecture_labels_do_not_overlap_and_are_not_cut_off(results: Results, pruning: HeadPruning) -> None:
    figure = plot_architecture(results, pruning)
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    for i, (name, box) in enumerate(boxes):
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert not [other for other, another in boxes[i + 1 :] if box.overlaps(another)], name


@pytest.mark.parametrize(
    ("low", "high", "colour"), [(0.01, 0.02, GREEN), (-0.01, 0.03, GREY), (-0.03, -0.01, VERMILION)]
)
def test_comparison(results: Results, low: float, high: float, colour: str) -> None:
    first = replace(results.comparisons[0], difference=(low + high) / 2, low=low, high=high)
    axes = plot_comparisons([first, *results.comparisons[1:]]).axes[0]
    bars = axes.lines[1::2]
    assert list(bars[0].get_xdata()) == [low, high]
    assert [list(bar.get_xdata()) for bar in bars[1:]] == [[c.low, c.high] for c in results.comparisons[1:]]
    assert [line.get_xdata()[0] for line in axes.lines[2::2]] == [
        (low + high) / 2, *(c.difference for c in results.comparisons[1:])]
    assert bars[0].get_color() == colour
    assert axes.get_xlim()[0] < min(low, 0)
    assert axes.get_xlim()[1] > max(high, 0)


def test_comparison_without_spread(results: Results) -> None:
    assert to_png(plot_comparisons([replace(results.comparisons[0], difference=0.0, low=0.0, high=0.0)]))


def test_comparison_labels_are_whole_unless_too_long(results: Results) -> None:
    first, second = results.comparisons[:2]
    axes = plot_comparisons([first, replace(second, task="other", against="x" * 90)]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["uniform bert, polarity", "x" * 39 + "…"]
    figure = plot_comparisons(results.comparisons)
    figure.draw_without_rendering()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [c.against for c in results.comparisons]
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= 0 and box.x1 <= figure.bbox.x1), text.get_text()


def test_stages(results: Results) -> None:
    stages = [replace(results.stages[0], peak_memory_mb=None), *results.stages[1:]]
    left, right = plot_stages(stages).axes
    assert [patch.get_width() for patch in left.patches] == [stage.seconds for stage in stages]
    assert [patch.get_hatch() for patch in left.patches] == ["////"] + [""] * 6
    assert right.texts[0].get_text() == "unknown"


def test_settings_of_the_caller_stay(nano: RunData) -> None:
    with mpl.rc_context({"font.size": 23.0}):
        assert plot_budget(nano.growth).axes[0].xaxis.label.get_fontsize() == 10
        assert mpl.rcParams["font.size"] == 23.0


def test_colours_of_own_blocks_and_text() -> None:
    colours = block_colours(["bert", "mine", "other"])
    assert len(set(colours.values())) == 3
    assert text_colour("black") == "white"
    assert text_colour("white") != "white"
