"""Kinds with one vector of outputs a row: classes, values, and several labels at once.

Shape suffixes: N rows, B batch, C outputs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from elm_nni.kinds.base import Batch, LossSettings, TaskKind, compare


class Classification(TaskKind):
    """One class out of C."""

    name = linear_head = "classification"
    auto_class, elm_class = "AutoModelForSequenceClassification", "ElmForSequenceClassification"
    pipeline_tag = "text-classification"
    problem_type = "single_label_classification"

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(logits.float(), batch["labels"])


class Regression(TaskKind):
    """One value, trained on the squared error of the labels, whatever the weights; there is no logit term."""

    name = linear_head = "regression"
    auto_class, elm_class = "AutoModelForSequenceClassification", "ElmForSequenceClassification"
    pipeline_tag = "text-classification"
    problem_type = "regression"

    def loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        return self.label_loss(logits, batch)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return functional.mse_loss(logits.float().squeeze(-1), batch["labels"].float())


class MultiLabel(TaskKind):
    """Any number of C labels, each with a probability of its own; one is predicted from a half on."""

    name = linear_head = "multi_label"
    auto_class, elm_class = "AutoModelForSequenceClassification", "ElmForSequenceClassification"
    pipeline_tag = "text-classification"
    problem_type = "multi_label_classification"

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits.float(), batch["labels"].float())

    def logit_loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        return compare(logits, batch["teacher_logits"], settings, independent=True)
