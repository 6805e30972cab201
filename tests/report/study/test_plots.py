"""Figures of a study hold the trials they were given, and fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from elm_nni.report.study.load import StudyData, load_study
from elm_nni.report.study.page import draw_study
from elm_nni.report.study.plots import (
    objective_pairs,
    plot_front,
    plot_history,
    plot_importances,
    plot_proxy,
    plot_reports,
    plot_slices,
    shortened,
)
from elm_nni.report.study.sections import StudyFindings
from elm_nni.report.study.sweep_plots import plot_heads, plot_sweep
from elm_nni.report.study.sweeps import make_sweep
from elm_nni.report.style import ORANGE

from .studies import ETAS, heads_left, write_eta_study, write_many_study, write_pruned_study

Points = list[tuple[float, float]]


@pytest.fixture(scope="module")
def eta(tmp_path_factory: pytest.TempPathFactory) -> StudyFindings:
    return StudyFindings.of(load_study(write_eta_study(tmp_path_factory.mktemp("eta"))))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyFindings:
    return StudyFindings.of(load_study(write_many_study(tmp_path_factory.mktemp("many"))))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(write_pruned_study(tmp_path_factory.mktemp("pruned")))


def points(axes: Axes, name: str) -> Points:
    found = [c for c in axes.collections if c.get_label() == name]
    return sorted((float(x), float(y)) for c in found for x, y in np.asarray(c.get_offsets()))


def pairs(study: StudyData, across: str, up: str, *, kept: bool) -> Points:
    return sorted((t.values[across], t.values[up]) for t in study.complete if bool(t.broken) != kept)


def test_history(many: StudyFindings) -> None:
    study = many.study
    figure = plot_history(study)
    for axes, (name, mode) in zip(figure.axes, study.objectives.items()):
        best = max if mode == "maximize" else min
        feasible = [(trial.number, trial.values[name]) for trial in study.complete if not trial.broken]
        assert points(axes, "complete") == feasible
        broken = [trial.number for trial in study.complete if trial.broken]
        assert [x for x, _ in points(axes, "complete, breaks a limit")] == broken
        assert [x for x, _ in points(axes, "failed, no value")] == [5, 18, 26]
        line = next(line for line in axes.lines if line.get_label() == "best so far")
        expected = [best(value for _, value in feasible[: i + 1]) for i in range(len(feasible))]
        assert list(line.get_ydata()) == [*expected, expected[-1]]
        assert list(line.get_xdata()) == [*(number for number, _ in feasible), 26]


def test_history_of_pruned_trials(pruned: StudyData) -> None:
    axes = plot_history(pruned).axes[0]
    assert [x for x, _ in points(axes, "pruned, no value")] == [3, 7, 11]
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    assert (np.diff(line.get_ydata()) <= 0).all()


def test_history_without_a_trial_that_can_be_chosen(pruned: StudyData) -> None:
    broken = tuple(replace(trial, broken=("params",)) for trial in pruned.trials)
    axes = plot_history(replace(pruned, trials=broken)).axes[0]
    assert len(axes.lines) == 0
    assert points(axes, "complete") == []


def test_front(many: StudyFindings) -> None:
    study = many.study
    expected = [("params", "validation"), ("latency_ms", "validation"), ("latency_ms", "params")]
    assert objective_pairs(study) == expected
    for axes, (across, up) in zip(plot_front(study).axes, expected):
        assert points(axes, "complete") == pairs(study, across, up, kept=True)
        assert points(axes, "complete, breaks a limit") == pairs(study, across, up, kept=False)
        assert points(axes, "Pareto front") == sorted((t.values[across], t.values[up]) for t in study.front)
        limits = [list(line.get_xdata()) for line in axes.lines if line.get_label() == "limit"]
        assert limits == ([[5.5, 5.5]] if across == "latency_ms" else [])


def test_front_of_two_is_a_line(many: StudyFindings) -> None:
    two = replace(many.study, objectives={"validation": "maximize", "params": "minimize"})
    line = plot_front(two).axes[0].lines[0]
    assert [tuple(row) for row in line.get_xydata()] == sorted((t.values["params"], t.values["validation"])
                                                               for t in two.front)
    same = replace(two, trials=tuple(replace(t, values={**t.values, "params": 1.0}) for t in two.trials))
    assert objective_pairs(same) == []


def test_importances(many: StudyFindings) -> None:
    figure = plot_importances(many.importances)
    assert [axes.get_title("left") for axes in figure.axes] == ["validation", "parameters", "latency (ms)"]
    for axes, shares in zip(figure.axes, many.importances.shares.values()):
        assert [patch.get_width() for patch in axes.patches] == list(shares.values())
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [shortened(name) for name in shares]


def test_heads_of_each_layer(eta: StudyFindings) -> None:
    fuse, remove = plot_heads(eta.sweeps["prune.eta"]).axes
    for axes, mode in ((fuse, "fuse"), (remove, "remove")):
        expected = [heads_left(rate, mode) for rate in ETAS]
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        texts = [text for text in axes.texts if text.get_text() != "all"]
        cells, sums = [t for t in texts if t.get_ha() == "center"], [t for t in texts if t.get_ha() == "left"]
        assert [text.get_text() for text in cells] == [str(count) for row in expected for count in row]
        assert [text.get_weight() == "bold" for text in cells] == [count < 12 for row in expected for count in row]
        assert [text.get_text() for text in sums] == [str(sum(row)) for row in expected]


def test_a_setting_that_one_mode_lacks_is_blank(eta: StudyFindings) -> None:
    left = [t for t in eta.study.trials if t.params.get("prune.eta") != 0.8 or t.params["prune.mode"] == "remove"]
    fuse, remove = plot_heads(make_sweep(replace(eta.study, trials=tuple(left)), "prune.eta")).axes
    assert [tick.get_text() for tick in fuse.get_yticklabels()] == ["0.7", "0.8", "0.9", "0.99"]
    blank = [np.isnan(np.ma.filled(axes.images[0].get_array(), np.nan)).all(axis=1) for axes in (fuse, remove)]
    assert blank[0].tolist() == [False, True, False, False]
    assert not blank[1].any()


def test_sweep_lines(eta: StudyFindings) -> None:
    sweep = eta.sweeps["prune.eta"]
    figure = plot_sweep(sweep)
    assert [axes.get_title("left") for axes in figure.axes] == ["validation", "heads", "parameters", "latency (ms)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fuse", "remove"]
    for axes, name in zip(figure.axes, sweep.names):
        for container, mode in zip(axes.containers, ("fuse", "remove")):
            rows = [row for row in sweep.rows if row.series == mode]
            line, _, (bars,) = container
            assert list(line.get_xdata()) == list(ETAS)
            assert list(line.get_ydata()) == [row.values[name].mean for row in rows]
            ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
            expected = [(row.values[name].low, row.values[name].high) for row in rows]
            np.testing.assert_allclose(ends, expected)


def test_slices(many: StudyFindings) -> None:
    study = many.study
    parameters = ["distillation.features", "retrain.finetune.lr"]
    figure = plot_slices(study, parameters)
    assert len(figure.axes) == 6
    category, rate = figure.axes[:2]
    assert [tick.get_text() for tick in category.get_xticklabels()] == ["mse", "none", "relational"]
    medians = [line.get_ydata()[0] for line in category.lines]
    assert medians == [np.median([t.values["validation"] for t in study.complete if t.params[parameters[0]] == name])
                       for name in ("mse", "none", "relational")]
    assert rate.get_xscale() == "log"
    drawn = points(rate, "complete") + points(rate, "complete, breaks a limit")
    assert sorted(drawn) == sorted((t.params[parameters[1]], t.values["validation"]) for t in study.complete)


def test_reports(pruned: StudyData) -> None:
    axes = plot_reports(pruned).axes[0]
    stopped = [line for line in axes.lines if line.get_label() == "pruned"]
    expected = [dict(trial.reports) for trial in pruned.trials if trial.state == "pruned"]
    assert [dict(zip(line.get_xdata(), line.get_ydata())) for line in stopped] == expected
    assert {to_hex(line.get_color()).upper() for line in stopped} == {ORANGE}
    assert len(axes.lines) == 12


def test_proxy(eta: StudyFindings) -> None:
    assert eta.proxy is not None
    axes = plot_proxy(eta.proxy).axes[0]
    expected = [(pair.proxy["validation"], pair.full["validation"]) for pair in eta.proxy.pairs]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), expected)
    assert axes.get_title("left").startswith("tau ")


def test_nothing_is_cut_off(many: StudyFindings) -> None:
    drawn = dict(draw_study(many))
    assert list(drawn) == ["history", "front", "importances", "eta_heads", "eta_values", "top_k_values", "slices"]
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name


def test_long_names_keep_their_end() -> None:
    assert shortened("prune.eta") == "prune.eta"
    assert shortened("a" * 30 + ".learning_rate") == "…" + "a" * 9 + ".learning_rate"


def test_empty_folder_has_no_figure(tmp_path: Path) -> None:
    empty = StudyData(tmp_path, "x", "", {"validation": "maximize"}, {}, (), None, None, {})
    assert list(draw_study(StudyFindings.of(empty))) == []
