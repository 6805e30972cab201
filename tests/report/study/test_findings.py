"""Sweeps, proxy and importances against counting by hand, scipy and known functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from elm_nni.report.study.importance import find_importances
from elm_nni.report.study.load import StudyData, StudyTrial, load_study
from elm_nni.report.study.proxy import compare_proxy, compare_times
from elm_nni.report.study.sweeps import HEADS, NUM_BINS, is_numeric, make_sweep

from .studies import (
    ETAS,
    MODES,
    TRAINED,
    eta_quality,
    heads_left,
    trial_of,
    write_eta_study,
    write_many_study,
    write_study,
)


@pytest.fixture(scope="module")
def eta(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(write_eta_study(tmp_path_factory.mktemp("eta")))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return load_study(write_many_study(tmp_path_factory.mktemp("many")))


def test_eta_sweep_by_mode(eta: StudyData) -> None:
    sweep = make_sweep(eta, "prune.eta")
    assert sweep.series == ["fuse", "remove"]
    assert [(row.series, row.position) for row in sweep.rows] == [(mode, rate) for mode in MODES[::-1] for rate in ETAS]
    for row in sweep.rows:
        repeated = (row.series, row.position) == ("remove", 0.7)
        qualities = [eta_quality(row.position, row.series), *([0.74] if repeated else [])]
        heads = heads_left(row.position, row.series)
        assert row.num_trials == len(qualities)
        found, expected = row.values["validation"], (np.mean(qualities), min(qualities), max(qualities))
        assert (found.mean, found.low, found.high) == pytest.approx(expected)
        assert row.layer_heads == tuple(heads)
        assert row.values[HEADS].mean == sum(heads)
    assert sweep.names == ("validation", HEADS, "params", "latency_ms")
    assert (sweep.varied, sweep.is_repeated, sweep.full_heads) == ((), True, 12)


def test_many_values_are_binned(many: StudyData) -> None:
    sweep = make_sweep(many, "prune.eta")
    values = np.array([trial.params["prune.eta"] for trial in many.complete])
    counts, edges = np.histogram(values, NUM_BINS)
    assert [row.num_trials for row in sweep.rows] == [count for count in counts if count]
    for row, low, high in zip(sweep.rows, edges[:-1][counts > 0], edges[1:][counts > 0]):
        inside = [t for t in many.complete if low <= t.params["prune.eta"] < high or t.params["prune.eta"] == high]
        assert row.position == pytest.approx(np.mean([trial.params["prune.eta"] for trial in inside]))
        assert row.values["params"].mean == pytest.approx(np.mean([trial.values["params"] for trial in inside]))
        np.testing.assert_allclose(row.layer_heads, np.mean([trial.heads for trial in inside], axis=0))
    assert sweep.split is None
    assert "growth.top_k" in sweep.varied
    assert "prune.eta" not in sweep.varied


def test_what_can_be_swept(many: StudyData) -> None:
    assert is_numeric(many, "growth.top_k")
    assert not is_numeric(many, "distillation.features")
    assert not is_numeric(many, "retrain.finetune.use_a_rather_long_name")
    assert not is_numeric(many, "unknown")


def test_rank_correlation_of_the_proxy(eta: StudyData) -> None:
    found = compare_proxy(eta)
    assert found is not None
    grid = [(rate, mode) for rate in ETAS for mode in MODES][:5]
    # the first setting was run twice in full
    full = [(0.72 + 0.74) / 2, *(eta_quality(rate, mode) for rate, mode in grid[1:])]
    cheap = [0.6 + eta_quality(rate, mode) / 10 for rate, mode in grid]
    assert [(pair.num_full, pair.num_proxy) for pair in found.pairs] == [(2, 1), *[(1, 1)] * 4]
    assert [pair.full["validation"] for pair in found.pairs] == pytest.approx(full)
    assert [pair.proxy["validation"] for pair in found.pairs] == pytest.approx(cheap)
    correlation = found.correlations["validation"]
    assert correlation.kendall is not None
    assert correlation.spearman is not None
    assert correlation.kendall.value == pytest.approx(stats.kendalltau(cheap, full).statistic)
    assert correlation.spearman.value == pytest.approx(stats.spearmanr(cheap, full).statistic)
    assert correlation.n == 5


def test_only_trials_that_built_the_same_are_timed(eta: StudyData) -> None:
    found = compare_proxy(eta)
    assert found is not None
    times = found.times
    assert times is not None
    # the ninth trial found its model in the store
    assert (times.num_full, times.full, times.full_pruned) == (8, np.median(np.arange(100, 180, 10)), 8)
    assert (times.num_proxy, times.proxy, times.proxy_pruned) == (5, 13, 0)
    assert times.stages == tuple(sorted(TRAINED))
    base = eta.complete[0]

    def timed(*built: tuple[str, ...]) -> list[StudyTrial]:
        return [replace(base, built=stages, seconds=10.0 * (i + 1)) for i, stages in enumerate(built)]

    all_stages = ("supernet", "search", *TRAINED)
    assert compare_times(timed(all_stages), timed(("prune", *TRAINED))) is None
    assert compare_times(timed(("prune",), ()), timed(("prune",), ())) is None
    assert compare_times([replace(base, seconds=None)], timed(tuple(TRAINED))) is None
    chosen = compare_times(timed(all_stages, tuple(TRAINED), all_stages), timed(all_stages, tuple(TRAINED), all_stages))
    assert chosen is not None
    assert (chosen.stages, chosen.full) == (tuple(sorted(all_stages)), 20)


def test_without_pairs_there_is_no_correlation(eta: StudyData) -> None:
    assert compare_proxy(replace(eta, proxy_trials=())) is None
    assert compare_proxy(replace(eta, proxy_trials=None)) is None
    found = compare_proxy(replace(eta, trials=()))
    assert found is not None
    assert (found.pairs, found.times) == ((), None)
    assert found.correlations["validation"].reason == "0 pairs; at least 3 are needed"


Rows = list[tuple[dict[str, object], float]]


def study_of(folder: Path, space: dict[str, BaseDistribution], rows: Rows) -> StudyData:
    trials = [trial_of(params, space, [value, 1.0]) for params, value in rows]
    return load_study(write_study(folder, "x", {"quality": "maximize", "params": "minimize"}, trials))


def test_importances_of_a_known_function(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        "a": FloatDistribution(0, 1), "b": IntDistribution(1, 4), "c": CategoricalDistribution(("x", "y")),
        "fixed": IntDistribution(3, 3),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    rows: Rows = []
    for _ in range(24):
        params = {"a": float(rng.uniform()), "b": int(rng.integers(1, 5)), "c": str(rng.choice(["x", "y"])), "fixed": 3}
        rows.append((params, 10 * params["a"] + (params["c"] == "y")))
    study = study_of(tmp_path, space, rows)
    found = find_importances(study)
    shares = found.shares["quality"]
    assert list(shares)[0] == "a"
    assert set(shares) == {"a", "b", "c"}
    # variances of the two terms: 100/12 and 1/4
    assert shares["a"] > 0.9
    assert sum(shares.values()) <= 1 + 1e-9
    assert (found.constant, found.reason, found.num_trials) == (("params",), None, 24)
    assert find_importances(study) == found


def test_a_range_that_was_widened(tmp_path: Path) -> None:
    trials = []
    for number in range(14):
        high = 1.0 if number < 7 else 0.5
        space: dict[str, BaseDistribution] = {
            "a": FloatDistribution(0, high), "b": IntDistribution(0, 20 if number < 7 else 5)}
        params = {"a": high * number / 14, "b": number if number < 7 else number % 5}
        trials.append(trial_of(params, space, [params["a"]]))
    study = load_study(write_study(tmp_path, "x", {"quality": "maximize"}, trials))
    assert find_importances(study).shares["quality"]["a"] > 0.5


def test_too_little_for_importances(eta: StudyData, tmp_path: Path) -> None:
    assert find_importances(eta).reason == "9 complete trials; at least 10 are needed"
    space: dict[str, BaseDistribution] = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    rows: Rows = [({"a": i / 12, "b": 0.5}, float(i)) for i in range(12)]
    reason = find_importances(study_of(tmp_path / "one", space, rows)).reason
    assert reason is not None
    assert reason.startswith("only a varies")
    rows = [({"a": 0.5, "b": 0.5}, float(i)) for i in range(12)]
    reason = find_importances(study_of(tmp_path / "none", space, rows)).reason
    assert reason is not None
    assert reason.startswith("no parameter varies")
