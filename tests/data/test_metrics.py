import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from elm_nni.data.metrics import (
    METRICS,
    compute_metric,
    compute_metrics,
    metrics_of,
    paired_bootstrap,
    predictions_of,
    tfidf_baseline,
)

ONE_A_ROW = [name for name, metric in METRICS.items() if metric.kind != "multi_label"]


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


@pytest.mark.parametrize("name", ONE_A_ROW)
def test_bad_input(name):
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(2,\) and \(3,\)"):
        compute_metric(name, [0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="needs at least"):
        compute_metric(name, [], [])
    with pytest.raises(ValueError, match="NaN"):
        compute_metric(name, [0.0, float("nan")], [0, 1])


@pytest.mark.parametrize("name", metrics_of("multi_label"))
def test_bad_input_of_several_labels(name):
    with pytest.raises(ValueError, match=r"one shape \(N, C\), got \(2,\) and \(2,\)"):
        compute_metric(name, [0, 1], [0, 1])
    with pytest.raises(ValueError, match="needs at least 1 rows, got 0"):
        compute_metric(name, np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="NaN"):
        compute_metric(name, [[0.0, float("nan")]], [[0, 1]])
    with pytest.raises(ValueError, match="0 and 1 alone"):
        compute_metric(name, [[0.3, 0.7]], [[0, 1]])


def test_bad_tokens():
    with pytest.raises(ValueError, match="entity_f1 needs at least 1 token that counts, got 0"):
        compute_metric("entity_f1", [0, 1], [-100, -100], lengths=[2], label_names=("O", "B-X"))
    with pytest.raises(ValueError, match="entity_f1 needs lengths and label_names"):
        compute_metric("entity_f1", [0, 1], [0, 1], lengths=[2])
    with pytest.raises(ValueError, match="lengths must add up to the 2 tokens, got 3"):
        compute_metric("entity_f1", [0, 1], [0, 1], lengths=[1, 2], label_names=("O", "B-X"))


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_recorded_predictions_are_those_of_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
    f1, accuracy = sklearn_metrics.f1_score(labels, predictions), sklearn_metrics.accuracy_score(labels, predictions)
    assert compute_metrics(("f1_accuracy", "f1", "accuracy", "matthews"), predictions, labels) == pytest.approx(
        {"f1_accuracy": (f1 + accuracy) / 2, "f1": f1, "accuracy": accuracy,
         "matthews": sklearn_metrics.matthews_corrcoef(labels, predictions)}
    )  # fmt: skip
    values = rng.normal(size=80).round(1)
    found = values + rng.normal(size=80)
    pearson, spearman = stats.pearsonr(found, values).statistic, stats.spearmanr(found, values).statistic
    assert compute_metrics(("pearson_spearman", "pearson", "spearman"), found, values) == pytest.approx(
        {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}
    )


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_scored_as_by_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = (rng.random((60, 5)) < rng.random(5) for _ in range(2))
    labels[:, 3] = predictions[:, 3] = False
    labels, predictions = labels.astype(int), predictions.astype(float)
    assert compute_metrics(metrics_of("multi_label"), predictions, labels) == pytest.approx(
        {
            "f1_micro": sklearn_metrics.f1_score(labels, predictions, average="micro", zero_division=0),
            "f1_macro": sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0),
            "subset_accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        }
    )


def test_one_label_of_many_and_no_label_at_all():
    # of one label: two hits, one missed, one too many
    predictions, labels = np.array([[1, 1, 0, 1, 0]]).T, np.array([[1, 1, 1, 0, 0]]).T
    scores = compute_metrics(metrics_of("multi_label"), predictions, labels)
    assert scores == pytest.approx({"f1_micro": 2 / 3, "f1_macro": 2 / 3, "subset_accuracy": 3 / 5})
    nothing = np.zeros((4, 3), dtype=int)
    assert compute_metrics(metrics_of("multi_label"), nothing, nothing) == {
        "f1_micro": 0.0, "f1_macro": 0.0, "subset_accuracy": 1.0
    }  # fmt: skip


def test_tokens_that_do_not_count_change_nothing():
    names, lengths = ("O", "B-X", "I-X"), np.array([4, 3])
    labels = np.array([-100, 1, 2, -100, -100, 2, -100])
    predictions = np.array([1, 1, 2, 2, 2, 0, 1])
    # the entity of the first row is found, that of the second is not
    assert compute_metrics(
        ("entity_f1", "token_accuracy"), predictions, labels, lengths=lengths, label_names=names
    ) == pytest.approx({"entity_f1": 2 / 3, "token_accuracy": 2 / 3})  # fmt: skip
    other = np.where(labels == -100, 0, predictions)
    assert compute_metric("entity_f1", other, labels, lengths=lengths, label_names=names) == pytest.approx(2 / 3)
    # an entity does not go on in the next row
    assert compute_metric("entity_f1", [1, 2], [1, 2], lengths=[1, 1], label_names=names) == 1.0
    assert compute_metric("entity_f1", [1, 0], [1, 2], lengths=[1, 1], label_names=names) == pytest.approx(2 / 3)
    assert compute_metric("entity_f1", [1, 0], [1, 2], lengths=[2], label_names=names) == 0.0


def test_predictions_of_logits():
    logits = np.array([[0.2, -0.1, 0.0], [-3.0, 2.0, 5.0]])
    assert predictions_of(logits, "classification").tolist() == [0, 2]
    assert predictions_of(logits, "token_classification").tolist() == [0, 2]
    assert predictions_of(logits, "multi_label").tolist() == [[1, 0, 0], [0, 1, 1]]
    assert predictions_of(logits[:, :1], "regression").tolist() == [0.2, -3.0]
    with pytest.raises(ValueError, match="kind must be one of .*, got 'question_answering'"):
        predictions_of(logits, "question_answering")


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
