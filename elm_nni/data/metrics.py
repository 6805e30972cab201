"""Scores of predictions, an interval for the difference of two systems, and the baseline a model has to beat."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.pipeline import make_pipeline

from elm_nni.data.entities import entity_f1

# Shape suffixes: N samples, C labels, M tokens of all samples one after the other.

Kind = Literal["classification", "regression", "multi_label", "token_classification", "question_answering"]

# The label of a token that does not count: what torch's cross entropy leaves out.
UNCOUNTED = -100


@dataclass(frozen=True)
class Metric:
    """A score: larger is better. ``function(predictions, labels)`` returns a float.

    A function of entities takes ``lengths`` and ``label_names`` too.
    """

    kind: Kind
    function: Callable[..., float]
    of_entities: bool = False


def _accuracy(predictions_N: NDArray, labels_N: NDArray) -> float:
    return float(accuracy_score(labels_N, predictions_N))


def _f1(predictions_N: NDArray, labels_N: NDArray) -> float:
    # Two classes 0 and 1: F1 of class 1, as GLUE has it; more classes: the mean over classes.
    is_binary = np.isin(np.concatenate([predictions_N, labels_N]), (0, 1)).all()
    return float(f1_score(labels_N, predictions_N, average="binary" if is_binary else "macro", zero_division=0))


def _correlation(function: Callable) -> Callable[[NDArray, NDArray], float]:
    def score(predictions_N: NDArray, labels_N: NDArray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(function(predictions_N, labels_N).statistic)
        # A constant side has no correlation; zero lets a search go on and ranks it where it belongs.
        return 0.0 if np.isnan(value) else value

    return score


def _mean(*functions: Callable[[NDArray, NDArray], float]) -> Callable[[NDArray, NDArray], float]:
    return lambda predictions_N, labels_N: float(np.mean([one(predictions_N, labels_N) for one in functions]))


def _hits(predictions_NC: NDArray, labels_NC: NDArray) -> tuple[NDArray, NDArray]:
    # by hand: scikit-learn takes one label (N, 1) for two classes
    return 2.0 * (predictions_NC * labels_NC).sum(0), (predictions_NC + labels_NC).sum(0)


def _f1_micro(predictions_NC: NDArray, labels_NC: NDArray) -> float:
    hits_C, given_C = _hits(predictions_NC, labels_NC)
    return float(hits_C.sum() / max(given_C.sum(), 1))


def _f1_macro(predictions_NC: NDArray, labels_NC: NDArray) -> float:
    hits_C, given_C = _hits(predictions_NC, labels_NC)
    return float((hits_C / np.maximum(given_C, 1)).mean())


def _subset_accuracy(predictions_NC: NDArray, labels_NC: NDArray) -> float:
    return float((predictions_NC == labels_NC).all(1).mean())


_pearson, _spearman = _correlation(stats.pearsonr), _correlation(stats.spearmanr)

METRICS: dict[str, Metric] = {
    "accuracy": Metric("classification", _accuracy),
    "f1": Metric("classification", _f1),
    "f1_accuracy": Metric("classification", _mean(_f1, _accuracy)),
    "matthews": Metric("classification", lambda predictions, labels: float(matthews_corrcoef(labels, predictions))),
    "pearson": Metric("regression", _pearson),
    "spearman": Metric("regression", _spearman),
    "pearson_spearman": Metric("regression", _mean(_pearson, _spearman)),
    "f1_micro": Metric("multi_label", _f1_micro),
    "f1_macro": Metric("multi_label", _f1_macro),
    "subset_accuracy": Metric("multi_label", _subset_accuracy),
    "entity_f1": Metric("token_classification", entity_f1, of_entities=True),
    "token_accuracy": Metric("token_classification", _accuracy),
}

# What a task of a kind is searched for, and what is reported beside it, unless the task says otherwise.
MAIN_METRICS: dict[str, str] = {
    "classification": "accuracy",
    "regression": "spearman",
    "multi_label": "f1_micro",
    "token_classification": "entity_f1",
}
FURTHER_METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("spearman", "pearson"),
    "multi_label": ("f1_micro", "f1_macro", "subset_accuracy"),
    "token_classification": ("entity_f1", "token_accuracy"),
}


def metrics_of(kind: str) -> tuple[str, ...]:
    """Names of the metrics that fit a kind of task.

    Example:
        >>> metrics_of("regression")
        ('pearson', 'spearman', 'pearson_spearman')
    """
    return tuple(name for name, metric in METRICS.items() if metric.kind == kind)


def predictions_of(logits: ArrayLike, kind: Kind) -> NDArray:
    """What logits predict, as :func:`compute_metric` takes it.

    Returns:
        Ids (N,) of logits (N, C) for classes and (M,) of (M, C) for tags; 0 or 1 (N, C) for several labels, 1 where
        the logit is above zero (a probability above one half); values (N,) of a regression's (N, 1).

    Raises:
        ValueError: another kind; the answer to a question is a text.

    Example:
        >>> predictions_of([[0.3, -2.0], [0.1, 0.2]], "multi_label").tolist()
        [[1, 0], [1, 1]]
    """
    if kind not in MAIN_METRICS:
        raise ValueError(f"kind must be one of {', '.join(MAIN_METRICS)}, got {kind!r}")
    values = np.asarray(logits)
    if kind == "multi_label":
        return (values > 0).astype(np.int64)
    return values.squeeze(-1) if kind == "regression" else values.argmax(-1)


def _check(name: str, predictions: NDArray, labels: NDArray) -> None:
    kind = METRICS[name].kind
    axes = "(N, C)" if kind == "multi_label" else "(N,)"
    if predictions.shape != labels.shape or labels.ndim != (2 if kind == "multi_label" else 1):
        raise ValueError(
            f"predictions and labels must have one shape {axes}, got {predictions.shape} and {labels.shape}"
        )
    fewest = 2 if kind == "regression" else 1
    if len(labels) < fewest:
        raise ValueError(f"{name} needs at least {fewest} rows, got {len(labels)}")
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError(f"{name} of predictions or labels that are NaN or infinite")
    if kind == "multi_label" and not (np.isin(predictions, (0, 1)).all() and np.isin(labels, (0, 1)).all()):
        raise ValueError(f"{name} takes predictions and labels of 0 and 1 alone")


def _token_score(
    name: str, predictions_M: NDArray, labels_M: NDArray, lengths: ArrayLike | None, label_names: Sequence[str]
) -> float:
    counted_M = labels_M != UNCOUNTED
    if not counted_M.any():
        raise ValueError(f"{name} needs at least 1 token that counts, got 0")
    metric = METRICS[name]
    if not metric.of_entities:
        return metric.function(predictions_M[counted_M], labels_M[counted_M])
    if lengths is None or not label_names:
        raise ValueError(f"{name} needs lengths and label_names")
    ends_N = np.cumsum(np.asarray(lengths, dtype=np.int64))
    if len(ends_N) == 0 or ends_N[-1] != len(labels_M):
        raise ValueError(f"lengths must add up to the {len(labels_M)} tokens, got {ends_N[-1] if len(ends_N) else 0}")
    counted_before = np.concatenate([[0], np.cumsum(counted_M)])
    counted_N = np.diff(counted_before[np.concatenate([[0], ends_N])])
    return metric.function(predictions_M[counted_M], labels_M[counted_M], lengths=counted_N, label_names=label_names)


def compute_metric(
    name: str,
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    label_names: Sequence[str] = (),
) -> float:
    """Score of predictions against the labels; larger is better.

    F1 is that of class 1 for two classes and the mean over classes for more. Constant predictions have zero
    correlation. Of several labels, micro-F1 counts all of them together, macro-F1 is the mean over the labels (0 for
    one that is neither given nor predicted), and subset accuracy takes rows that are right in every label; F1 is 0
    where nothing is given or predicted. Tokens labelled -100 do not count, whatever is predicted there.

    Args:
        name: a key of ``METRICS``.
        predictions: (N,) class ids, or floats for the correlations; (N, C) of 0 and 1 for several labels; (M,) ids of
            tags, the tokens of all rows one after the other.
        labels: likewise.
        lengths: (N,) tokens of each row, for ``entity_f1``, whose entities end with their row.
        label_names: (C,) the tags in order of their ids, for ``entity_f1``.

    Raises:
        ValueError: unknown name, other shapes than these, N = 0 (2 for correlations), no token that counts, NaN, or
            lengths or names that are missing or do not fit.

    Example:
        >>> compute_metric("accuracy", [1, 0, 1, 1], [1, 0, 0, 1])
        0.75
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    predicted, given = np.asarray(predictions), np.asarray(labels)
    _check(name, predicted, given)
    if METRICS[name].kind == "token_classification":
        return _token_score(name, predicted, given, lengths, label_names)
    return METRICS[name].function(predicted, given)


def compute_metrics(
    names: Sequence[str],
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    label_names: Sequence[str] = (),
) -> dict[str, float]:
    """Several scores of the same predictions, by name; otherwise as :func:`compute_metric`.

    Example:
        >>> compute_metrics(("f1", "accuracy"), [1, 0, 1, 1], [1, 0, 0, 1])
        {'f1': 0.8, 'accuracy': 0.75}
    """
    return {name: compute_metric(name, predictions, labels, lengths=lengths, label_names=label_names) for name in names}


def paired_bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, resamples: int = 10_000, seed: int = 0, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Difference of two systems' means on the same rows with a percentile bootstrap interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3; rows are drawn in pairs.

    Args:
        correct_a: (N,) score of each row, for accuracy 1 where right and 0 where wrong.
        correct_b: (N,) the other system on the same rows.
        resamples: number of bootstrap samples.
        seed: fixes the samples.
        confidence: share of the resampled differences inside the interval.

    Returns:
        mean(a) - mean(b), and the lower and upper end of the interval.

    Raises:
        ValueError: shapes differ or are empty, ``resamples`` < 1, or ``confidence`` not between 0 and 1.

    Example:
        >>> paired_bootstrap([1, 1, 1, 0], [0, 0, 0, 1], seed=0)[0]
        0.5
    """
    a_N, b_N = np.asarray(correct_a, dtype=float), np.asarray(correct_b, dtype=float)
    if a_N.shape != b_N.shape or a_N.ndim != 1 or len(a_N) == 0:
        raise ValueError(f"both systems need the same rows (N,), got {a_N.shape} and {b_N.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    # Drawing N rows with replacement is drawing how often each distinct difference occurs: exact, and a few columns.
    values, counts = np.unique(a_N - b_N, return_counts=True)
    rng = np.random.default_rng(seed)
    means = rng.multinomial(len(a_N), counts / len(a_N), size=resamples) @ values / len(a_N)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(a_N.mean() - b_N.mean()), float(low), float(high)


def tfidf_baseline(
    train_texts: Sequence[str], train_labels: Sequence[int], test_texts: Sequence[str]
) -> NDArray[np.int64]:
    """Predicted class ids of TF-IDF over words and pairs of words with logistic regression.

    Sublinear term counts and C = 10 (scikit-learn's C = 1 was 0.025 worse), chosen on the validation rows of the
    polarity task and never on test rows. The result is the same in every run.

    Raises:
        ValueError: lengths differ or there are no words.

    Example:
        >>> tfidf_baseline(["good film", "bad film"], [1, 0], ["a good one"]).tolist()
        [1]
    """
    if len(train_texts) != len(train_labels):
        raise ValueError(f"{len(train_texts)} train_texts but {len(train_labels)} train_labels")
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
    )
    pipeline.fit(list(train_texts), np.asarray(train_labels))
    return np.asarray(pipeline.predict(list(test_texts)), dtype=np.int64)
