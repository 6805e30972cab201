"""A linear task head on a frozen teacher's cached features.

Shape suffixes: N samples, B batch, T tokens, D hidden, C classes (or regression targets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from elm_nni.distillation.features import Features
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError

Kind = Literal["classification", "regression", "multi_label"]

# Weight of the penalty per sample, from almost none to strong; one grid for both kinds.
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_VALIDATION_SHARE = 0.1
# Logit of a class that no training row has: a probability of practically zero, but finite.
_UNSEEN_LOGIT = -30.0


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias.

    Attributes:
        weight_CD: (C, D) float32.
        bias_C: (C,) float32.
    """

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Logits, or predicted targets, (N, C), in the dtype and on the device of the features."""
        return features_ND @ self.weight_CD.to(features_ND).T + self.bias_C.to(features_ND)

    def save(self, path: str | Path) -> None:
        """Write the head to one safetensors file."""
        save_file({"weight": self.weight_CD.contiguous(), "bias": self.bias_C.contiguous()}, path)

    @classmethod
    def load(cls, path: str | Path) -> LinearHead:
        """Read a head written by :meth:`save`."""
        tensors = load_file(path)
        return cls(tensors["weight"], tensors["bias"])


def mean_pool(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over valid tokens, (B, D); zero for a row without any."""
    keep_BT1 = mask_BT.to(hidden_BTD.device, torch.bool).unsqueeze(-1)
    return hidden_BTD.masked_fill(~keep_BT1, 0).sum(1) / keep_BT1.sum(1).clamp(min=1)


def pooled_features(teacher: Teacher, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The teacher's last layer, averaged over the valid tokens of each row: what a head is fitted on.

    Args:
        batches: pairs of ``input_ids`` (B, T) and ``attention_mask`` (B, T).

    Returns:
        (N, D) float32 on the CPU, in the order of the batches.

    Raises:
        UserError: no batch at all.

    Example::

        features_ND = pooled_features(teacher, [(ids_BT, mask_BT)])
    """
    pooled = [mean_pool(teacher.features(ids, mask).hidden[-1], mask).float().cpu() for ids, mask in batches]
    if not pooled:
        raise UserError("teacher features of 0 rows: the task needs training rows")
    return torch.cat(pooled)


def fit_linear_head(
    features_ND: Tensor, labels_N: Tensor, *, num_labels: int, kind: Kind = "classification", seed: int
) -> LinearHead:
    """Logistic or ridge regression, the penalty chosen on a validation part, then refitted on all rows.

    The validation part is a seeded tenth of the rows, stratified where every class allows it. Features are standardised
    for the fit; the head takes them as they are. A class without a row keeps a logit of practically no probability.
    With several labels a row each is a logistic regression of its own, with a penalty of its own.

    Args:
        features_ND: (N, D).
        labels_N: class numbers (N,), targets (N,) or (N, C) for a regression, or 0 and 1 (N, C) for several labels.
        num_labels: number of classes, labels or regression targets.
        kind: ``classification``, ``regression`` or ``multi_label``.
        seed: of the split.

    Raises:
        UserError: fewer than ten rows, labels of only one class or outside ``0..num_labels - 1``, NaN targets.
        ValueError: unknown ``kind``, or labels of another number or shape.

    Example::

        head = fit_linear_head(features_ND, labels_N, num_labels=2, seed=0)
        head(features_ND).argmax(1)
    """
    if kind not in _FITS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(_FITS)}")
    if features_ND.ndim != 2 or len(labels_N) != len(features_ND):
        raise ValueError(f"features {tuple(features_ND.shape)}, {len(labels_N)} labels: must be (N, D) and N")
    if len(features_ND) < 10:
        raise UserError(f"{len(features_ND)} rows: a teacher's head needs at least 10")
    features = features_ND.detach().cpu().double().numpy()
    labels = labels_N.detach().cpu().numpy()
    scaler = StandardScaler().fit(features)
    _check_labels(labels, num_labels, kind)
    weight_CD, bias_C = _FITS[kind](scaler.transform(features), labels, num_labels, seed)
    weight_CD = weight_CD / scaler.scale_
    bias_C = bias_C - weight_CD @ scaler.mean_
    return LinearHead(torch.from_numpy(weight_CD).float(), torch.from_numpy(bias_C).float())


class TeacherClassifier:
    """A teacher with a linear head: features and task logits from one forward. Frozen, not an ``nn.Module``.

    Args:
        teacher: gives the features.
        head: fitted on the mean-pooled last layer, or on its tokens.
        per_token: the head reads every token: logits are (B, T, C).

    Raises:
        ValueError: the head is of another width.

    Example::

        classifier = TeacherClassifier(teacher, fit_linear_head(features_ND, labels_N, num_labels=2, seed=0))
        classifier.logits(ids_BT, mask_BT)   # (B, 2)
    """

    def __init__(self, teacher: Teacher, head: LinearHead, *, per_token: bool = False) -> None:
        if head.weight_CD.shape[1] != teacher.width:
            raise ValueError(f"head of width {head.weight_CD.shape[1]}: must be the teacher's, {teacher.width}")
        self.teacher, self.head, self.per_token = teacher, head, per_token

    @property
    def num_labels(self) -> int:
        return self.head.weight_CD.shape[0]

    def features_and_logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> tuple[Features, Tensor]:
        """Features as of ``Teacher.features``, and logits, without gradient."""
        features = self.teacher.features(input_ids, attention_mask, token_type_ids=token_type_ids)
        last_BTD = features.hidden[-1]
        return features, self.head(last_BTD if self.per_token else mean_pool(last_BTD, attention_mask))

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, *, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits, or predicted targets of a regression, (B, C), without gradient."""
        return self.features_and_logits(input_ids, attention_mask, token_type_ids=token_type_ids)[1]


_Fitted = tuple[np.ndarray, np.ndarray]


def _check_labels(labels: np.ndarray, num_labels: int, kind: Kind) -> None:
    if kind != "classification":
        if labels.reshape(len(labels), -1).shape[1] != num_labels:
            raise ValueError(f"labels have shape {labels.shape}: must be num_labels={num_labels} a row")
        if not np.isfinite(labels).all():
            raise UserError(f"{kind} labels hold NaN or infinity: must be finite numbers")
        if kind == "multi_label" and not np.isin(labels, (0, 1)).all():
            raise ValueError("labels of kind multi_label must be 0 or 1")
        return
    if labels.min() < 0 or labels.max() >= num_labels:
        raise UserError(f"labels range over {labels.min()}..{labels.max()}: must be in 0..{num_labels - 1}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"the task has one class (label {labels[0]}): a classifier needs at least 2")


def _fit_classifier(features: np.ndarray, labels: np.ndarray, num_labels: int, seed: int) -> _Fitted:
    def fit(penalty: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=1 / (penalty * len(rows)), max_iter=1000).fit(features[rows], labels[rows])

    def score(model: LogisticRegression, rows: np.ndarray) -> float:
        return float(accuracy_score(labels[rows], model.predict(features[rows])))

    counts = np.unique(labels, return_counts=True)[1]
    # stratification needs a row of each class on both sides
    stratify = labels if counts.min() >= 2 and len(labels) * _VALIDATION_SHARE >= len(counts) else None
    model = _select(fit, score, _split(len(labels), stratify, seed), labels)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # one row for two classes: half to each side gives the same probabilities
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    all_weight, all_bias = np.zeros((num_labels, features.shape[1])), np.full(num_labels, _UNSEEN_LOGIT)
    all_weight[model.classes_], all_bias[model.classes_] = weight, bias
    return all_weight, all_bias


def _fit_regression(features: np.ndarray, labels: np.ndarray, num_labels: int, seed: int) -> _Fitted:
    targets = labels.reshape(len(labels), num_labels).astype(np.float64)

    def fit(penalty: float, rows: np.ndarray) -> Ridge:
        return Ridge(alpha=penalty * len(rows)).fit(features[rows], targets[rows])

    def score(model: Ridge, rows: np.ndarray) -> float:
        return float(r2_score(targets[rows], model.predict(features[rows])))

    model = _select(fit, score, _split(len(targets), None, seed), None)
    return model.coef_.reshape(num_labels, -1), np.broadcast_to(model.intercept_, num_labels).copy()


def _fit_multi_label(features: np.ndarray, labels: np.ndarray, num_labels: int, seed: int) -> _Fitted:
    weight, bias = np.zeros((num_labels, features.shape[1])), np.zeros(num_labels)
    for label, holds in enumerate(labels.astype(np.int64).T):
        if len(np.unique(holds)) < 2:
            bias[label] = _UNSEEN_LOGIT if holds[0] == 0 else -_UNSEEN_LOGIT
            continue
        # the probability of a label is the sigmoid of the difference of the two classes' logits
        pair, offsets = _fit_classifier(features, holds, 2, seed)
        weight[label], bias[label] = pair[1] - pair[0], offsets[1] - offsets[0]
    return weight, bias


_FITS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], _Fitted]] = {
    "classification": _fit_classifier, "regression": _fit_regression, "multi_label": _fit_multi_label,
}  # fmt: skip


def _split(num_rows: int, stratify: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # a score of one row is none for a regression
    size = max(2, round(num_rows * _VALIDATION_SHARE))
    training, validation = train_test_split(np.arange(num_rows), test_size=size, random_state=seed, stratify=stratify)
    return training, validation


def _select(
    fit: Callable[[float, np.ndarray], LogisticRegression | Ridge],
    score: Callable[..., float],
    split: tuple[np.ndarray, np.ndarray],
    classes: np.ndarray | None,
) -> LogisticRegression | Ridge:
    """The model of the penalty that scores best on the validation rows, fitted again on all rows."""
    training, validation = split
    everything = np.concatenate(split)
    if classes is not None and len(np.unique(classes[training])) < 2:
        return fit(_PENALTIES[len(_PENALTIES) // 2], everything)
    # of equal scores the stronger penalty
    best = max(reversed(_PENALTIES), key=lambda penalty: score(fit(penalty, training), validation))
    return fit(best, everything)
