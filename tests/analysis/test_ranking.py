"""Rank correlations against scipy, counting by hand and a bootstrap written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from elm_nni.analysis.ranking import Coefficient, rank_correlation


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    pairs = list(combinations(range(len(a)), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    agreement = sum(x * y for x, y in signs)
    return agreement / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_levels", [3, 1000])
def test_values_with_and_without_ties(seed: int, num_levels: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(num_levels, size=25).astype(float)
    b = a + rng.integers(num_levels, size=25)
    found = rank_correlation(a, b, seed=0, resamples=5)
    assert found.n == 25
    assert found.reason is None
    assert found.kendall is not None
    assert found.spearman is not None
    assert found.kendall.value == pytest.approx(tau_b(a, b))
    assert found.spearman.value == pytest.approx(stats.spearmanr(a, b).statistic)


def test_intervals_are_percentiles_of_resampled_pairs() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=12)
    b = a + rng.normal(size=12)
    found = rank_correlation(a, b, seed=5, resamples=300)
    indices = np.random.default_rng(5).integers(12, size=(300, 12))
    for coefficient, function in ((found.kendall, stats.kendalltau), (found.spearman, stats.spearmanr)):
        drawn = [function(a[row], b[row]).statistic for row in indices]
        assert coefficient is not None
        assert (coefficient.low, coefficient.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
        assert coefficient.low < coefficient.value < coefficient.high


def test_invariants() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=30), rng.normal(size=30)
    found = rank_correlation(a, b, seed=0, resamples=50)
    assert rank_correlation(a, b, seed=0, resamples=50) == found
    # only the order counts, and the two sides are alike
    assert rank_correlation(np.exp(a), 3 * b - 7, seed=0, resamples=50) == found
    assert rank_correlation(b, a, seed=0, resamples=50) == found
    turned = rank_correlation(a, -b, seed=0, resamples=50)
    assert found.kendall is not None
    assert turned.kendall is not None
    assert turned.kendall.value == pytest.approx(-found.kendall.value)


def test_coverage_of_the_interval() -> None:
    # For a bivariate normal of correlation r, Kendall's tau is 2/pi arcsin(r).
    truth, inside = 2 / np.pi * np.arcsin(0.6), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=40).T
        kendall = rank_correlation(a, b, seed=seed, resamples=60).kendall
        assert kendall is not None
        inside += kendall.low <= truth <= kendall.high
    assert 33 <= inside <= 40


def test_perfect_order() -> None:
    found = rank_correlation([1, 2, 3], [10, 20, 30], seed=0, resamples=50)
    assert found.kendall is not None
    assert found.spearman is not None
    for coefficient in (found.kendall, found.spearman):
        assert (coefficient.value, coefficient.low, coefficient.high) == pytest.approx((1, 1, 1))
    # a ninth of the resamples of three holds one pair alone
    assert 25 < found.resamples < 50


def test_a_resample_without_an_order_is_left_out() -> None:
    found = rank_correlation([0, 0, 0, 1], [1, 2, 3, 4], seed=0, resamples=2000)
    # the pair that differs is in 1 - (3/4)^4 of the resamples, and is all of (1/4)^4
    assert found.resamples / 2000 == pytest.approx(1 - 0.75**4 - 0.25**4, abs=0.03)
    assert found.spearman is not None
    assert np.isfinite([found.spearman.low, found.spearman.high]).all()


def test_no_resample_with_an_order_tells_nothing() -> None:
    seed = next(s for s in range(100) if np.ptp(np.random.default_rng(s).integers(3, size=(1, 3))) == 0)
    found = rank_correlation([1, 2, 3], [1, 2, 3], seed=seed, resamples=1)
    assert found.resamples == 0
    assert found.kendall == Coefficient(1.0, -1.0, 1.0)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([], [], "0 pairs; at least 3"),
        ([1], [2], "1 pair; at least 3"),
        ([1, 2], [1, 2], "2 pairs; at least 3"),
        ([1, 1, 1], [1, 2, 3], "all values of the first side are equal"),
        ([1, 2, 3], [5, 5, 5], "all values of the second side are equal"),
        ([1, 1, 1], [5, 5, 5], "all values of the first and the second side are equal"),
    ],
)
def test_not_defined(a: list[float], b: list[float], reason: str) -> None:
    found = rank_correlation(a, b, seed=0)
    assert (found.n, found.kendall, found.spearman, found.resamples) == (len(a), None, None, 0)
    assert found.reason is not None
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("a", "b", "resamples", "match"),
    [
        ([1, 2, 3], [1, 2], 10, r"\(3,\), b \(2,\)"),
        ([[1, 2, 3]], [[1, 2, 3]], 10, "equally long rows"),
        ([1, 2, float("nan")], [1, 2, 3], 10, "finite"),
        ([1, 2, 3], [1, 2, float("inf")], 10, "finite"),
        ([1, 2, 3], [1, 2, 3], 0, "resamples=0"),
    ],
)
def test_wrong_input(a: list[float], b: list[float], resamples: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rank_correlation(a, b, seed=0, resamples=resamples)
