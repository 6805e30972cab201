"""Kinds with outputs for every token: classes of tokens, and the answer to a question.

Shape suffixes: N rows, B batch, T tokens, C outputs, M tokens that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from elm_nni.data.answer_scores import best_null_threshold, score_answers
from elm_nni.data.answers import decode, predictions
from elm_nni.distillation.heads import LinearHead
from elm_nni.distillation.losses import relational_feature_loss
from elm_nni.kinds.base import Batch, LossSettings, TaskKind, compare
from elm_nni.modeling.heads_elm import IGNORED_LABEL

# Tokens that the teacher's linear head is fitted on, at most: more only cost time.
MOST_TOKENS = 50_000


class TokenClassification(TaskKind):
    """One class for the first piece of each word; other tokens do not count."""

    name = "token_classification"
    per_token = True
    linear_head = "classification"
    auto_class, elm_class = "AutoModelForTokenClassification", "ElmForTokenClassification"
    pipeline_tag = "token-classification"

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        counted_BT = batch["labels"] != IGNORED_LABEL
        labels_M = batch["labels"][counted_BT]
        # a batch without any counted token has loss 0, not NaN
        total = functional.cross_entropy(logits[counted_BT].float(), labels_M, reduction="sum")
        return total / max(len(labels_M), 1)

    def logit_loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        counted_BT = batch["labels"] != IGNORED_LABEL
        return compare(logits[counted_BT].float(), batch["teacher_logits"][counted_BT], settings)

    def fit_head(self, features_ND: Tensor, labels: Tensor, *, num_outputs: int, seed: int) -> LinearHead:
        counted_M = (labels != IGNORED_LABEL).nonzero().squeeze(1)
        if len(counted_M) > MOST_TOKENS:
            chosen = np.random.default_rng(seed).permutation(len(counted_M))[:MOST_TOKENS]
            counted_M = counted_M[np.sort(chosen)]
        return super().fit_head(features_ND[counted_M], labels[counted_M], num_outputs=num_outputs, seed=seed)


class QuestionAnswering(TaskKind):
    """The first and the last token of the answer in a window; the first token of all stands for no answer here."""

    name = "question_answering"
    per_token = True
    # two scores a token on frozen features say next to nothing about where an answer is
    linear_head = None
    num_labels = 2
    auto_class, elm_class, elm_head = "AutoModelForQuestionAnswering", "ElmForQuestionAnswering", "qa_outputs"
    pipeline_tag = "question-answering"

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        mask_BT = batch["attention_mask"].bool()
        return functional.cross_entropy(self._masked(logits, mask_BT), batch["labels"])

    def logit_loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        """Positions are the classes of both distributions, and only those of one window can be compared."""
        mask_BT, tau = batch["attention_mask"].bool(), settings.tau
        student_BTC, teacher_BTC = (self._masked(x, mask_BT) for x in (logits, batch["teacher_logits"]))
        if settings.logits == "kl":
            student_BTC, teacher_BTC = (student_BTC / tau).log_softmax(1), (teacher_BTC / tau).log_softmax(1)
            loss = functional.kl_div(student_BTC, teacher_BTC, reduction="sum", log_target=True)
            return tau**2 * loss / (student_BTC.shape[0] * student_BTC.shape[2])
        student_BTC, teacher_BTC = (student_BTC / tau).softmax(1), (teacher_BTC / tau).softmax(1)
        # 1 - the correlation over the positions of a window is half of the feature loss with tokens as samples
        return tau**2 * settings.beta * relational_feature_loss(student_BTC, teacher_BTC, mask_BT) / 2

    def scores(
        self, metrics: Sequence[str], outputs: Tensor, rows: Any, label_names: Sequence[str] = (),
        threshold: float | None = None,
    ) -> dict[str, float]:  # fmt: skip
        if threshold is None:
            threshold = 0.0 if _may_be_unanswerable(rows) else math.inf
        found = score_answers(predictions(decode(rows, outputs.numpy()), threshold), rows.questions)
        # there are no scores of questions without an answer where these rows have none, nor the other way round
        return {name: found[name] for name in metrics if name in found}

    def threshold(self, outputs_of: Callable[[], Tensor], rows: Any) -> float | None:
        """Of the null odds, the best by F1; infinity where all rows have an answer: who has to answer always must."""
        if not _may_be_unanswerable(rows):
            return math.inf
        return best_null_threshold(decode(rows, outputs_of().numpy()), rows.questions, "f1")[0]

    def num_scored(self, rows: Any) -> int:
        return len(rows.questions)

    def labelled(self, batch: Batch) -> dict[str, Tensor]:
        return {"start_positions": batch["labels"][:, 0], "end_positions": batch["labels"][:, 1]}

    @staticmethod
    def _masked(logits_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        # a finite number: a difference of infinities would be NaN
        return logits_BTC.float().masked_fill(~mask_BT.unsqueeze(-1), -1e4)


def _may_be_unanswerable(rows: Any) -> bool:
    return any(question.is_impossible for question in rows.questions)
