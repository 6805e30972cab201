import numpy as np
import pytest
from scipy import stats

from elm_nni.data.metrics import METRICS, compute_metric, paired_bootstrap, tfidf_baseline


def test_accuracy_and_f1_by_hand():
    predictions, labels = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    assert compute_metric("accuracy", predictions, labels) == pytest.approx(3 / 5)
    assert compute_metric("f1", predictions, labels) == pytest.approx(2 / 3)


def test_f1_of_several_classes_is_the_mean_over_classes():
    predictions, labels = [0, 1, 2, 2], [0, 1, 1, 2]
    assert compute_metric("f1", predictions, labels) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_matthews_is_the_pearson_correlation_of_binary_labels():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 2, 100), rng.integers(0, 2, 100)
    expected = np.corrcoef(predictions, labels)[0, 1]
    assert compute_metric("matthews", predictions, labels) == pytest.approx(expected)


def test_correlations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    assert compute_metric("pearson", x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert compute_metric("spearman", x, y) == pytest.approx(ranks)


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_constant_predictions_score_zero(name):
    assert compute_metric(name, [1, 1, 1], [0, 1, 1]) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_bad_input(name):
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(2,\) and \(3,\)"):
        compute_metric(name, [0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="needs at least"):
        compute_metric(name, [], [])
    with pytest.raises(ValueError, match="NaN"):
        compute_metric(name, [0.0, float("nan")], [0, 1])


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric must be one of accuracy, f1, .*, got 'bleu'"):
        compute_metric("bleu", [1], [1])


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.75
    difference, low, high = paired_bootstrap(a, b, seed=1)
    oracle = stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert difference == pytest.approx(a.mean() - b.mean())
    assert low == pytest.approx(oracle.low, abs=0.004)
    assert high == pytest.approx(oracle.high, abs=0.004)


def test_bootstrap_pairs_rows_and_is_reproducible():
    a = np.array([1, 0] * 50)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)
    b = np.random.default_rng(0).random(100)
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)
    wide, narrow = paired_bootstrap(a, b, confidence=0.99), paired_bootstrap(a, b, confidence=0.5)
    assert wide[1] < narrow[1] < narrow[2] < wide[2]


def test_bootstrap_bad_input():
    with pytest.raises(ValueError, match="same rows"):
        paired_bootstrap([1, 0], [1])
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        paired_bootstrap([1], [1], resamples=0)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 1"):
        paired_bootstrap([1], [1], confidence=1.0)


def test_baseline_uses_pairs_of_words():
    # every single word is in both classes: only "not good" and "not bad" tell them apart
    train = ["not good but bad", "not bad but good"] * 20
    labels = [0, 1] * 20
    assert tfidf_baseline(train, labels, ["it is not good , bad", "it is not bad , good"]).tolist() == [0, 1]
    with pytest.raises(ValueError, match="1 train_texts but 2 train_labels"):
        tfidf_baseline(["a"], [0, 1], ["a"])
