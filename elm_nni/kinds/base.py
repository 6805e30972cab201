"""What a kind of task is: how its outputs are trained and scored, and which model of transformers they make.

Shape suffixes: N rows, B batch, T tokens, D hidden, C outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from elm_nni.data.metrics import Kind, compute_metrics, predictions_of
from elm_nni.data.outputs import TokenizedRows
from elm_nni.distillation.heads import LinearHead, fit_linear_head
from elm_nni.distillation.losses import kl_logit_loss, relational_logit_loss
from elm_nni.errors import UserError
from elm_nni.modeling.heads_elm import IGNORED_LABEL, pool

Batch = Mapping[str, Any]


class LossSettings(Protocol):
    """Weights of the label and logit terms, and the form of the logit term; the pipeline's configuration has them."""

    @property
    def logits(self) -> Literal["relational", "kl"]: ...
    @property
    def beta(self) -> float: ...
    @property
    def gamma(self) -> float: ...
    @property
    def tau(self) -> float: ...
    @property
    def lambda_logit(self) -> float: ...
    @property
    def lambda_label(self) -> float: ...


class TaskKind(ABC):
    """A kind of task. Logits are (B, C), or (B, T, C) where ``per_token``; see ``RowBatches`` for those of all rows.

    Attributes:
        name: in configurations and tables.
        per_token: a head reads every token instead of one vector a row.
        linear_head: how a linear head on the frozen teacher's features is fitted, ``identity`` where the features
            themselves teach, None where no linear head can.
        auto_class: the class of transformers that loads a model of this kind.
        elm_class: the name of our model of this kind.
        elm_head: its attribute that is the linear head.
        problem_type: of the model's configuration, None where transformers knows none.
        num_labels: outputs of the head, None where the task's classes say how many.
        pipeline_tag: what the hub calls the kind.
    """

    name: ClassVar[str]
    per_token: ClassVar[bool] = False
    linear_head: ClassVar[Literal["classification", "regression", "multi_label", "identity"] | None]
    auto_class: ClassVar[str]
    elm_class: ClassVar[str]
    elm_head: ClassVar[str] = "classifier"
    pipeline_tag: ClassVar[str]
    problem_type: ClassVar[str | None] = None
    num_labels: ClassVar[int | None] = None

    def features(self, hidden_BTD: Tensor, batch: Batch, pooling: str) -> Tensor:
        """What the head reads: pooled states (B, D), or all of them (B, T, D)."""
        return hidden_BTD if self.per_token else pool(hidden_BTD, batch["attention_mask"], pooling)

    def new_head(self, model: nn.Module, width: int, num_outputs: int) -> nn.Module:
        """A head with fresh weights from torch's generator, on hidden states of ``width``."""
        return nn.Linear(width, num_outputs)

    def start_head(self, head: nn.Module, std: float) -> None:
        """Draws the first weights of a head with a standard deviation; biases are 0."""
        for module in head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def install_head(self, head: nn.Module, model: nn.Module) -> None:
        """Copies a trained head into our transformers model of this kind."""
        model.get_submodule(self.elm_head).load_state_dict(head.state_dict())

    def config(self, num_outputs: int, label_names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
        """What a model's configuration says of its head."""
        known = {"num_labels": num_outputs, "problem_type": self.problem_type}
        if self.num_labels is not None:
            return known
        ids = {name: index for index, name in enumerate(label_names)}
        return {**known, "id2label": dict(enumerate(label_names)), "label2id": ids}

    def kept(self, logits: Tensor, batch: Batch) -> Tensor:
        """What is kept of the logits of a batch to score all rows, (B, C) or (B, T, C)."""
        return logits

    def loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        """The weighted label and logit terms of a batch with ``labels`` and, for the latter, ``teacher_logits``."""
        loss = settings.lambda_label * self.label_loss(logits, batch)
        if settings.lambda_logit > 0:
            loss = loss + settings.lambda_logit * self.logit_loss(logits, batch, settings)
        return loss

    @abstractmethod
    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """How far the outputs are from the labels of a batch."""

    def logit_loss(self, logits: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
        """How far the outputs are from the teacher's, in the form of the configuration."""
        return compare(logits, batch["teacher_logits"], settings)

    def scores(
        self, metrics: Sequence[str], outputs: Tensor, rows: TokenizedRows, label_names: Sequence[str] = (),
        threshold: float | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Metric to score of what was kept of all rows, as ``RowBatches.outputs`` has it.

        Args:
            metrics: names.
            outputs: of the rows.
            rows: with labels.
            label_names: of classes, labels or tags.
            threshold: of :meth:`threshold`; None takes the usual one.
        """
        predicted = predictions_of(outputs.numpy(), cast(Kind, self.name))
        return compute_metrics(
            metrics, predicted, rows.labels.numpy(), lengths=rows.lengths, label_names=label_names
        )

    def threshold(self, outputs_of: Callable[[], Tensor], rows: TokenizedRows) -> float | None:
        """What is chosen on the outputs of validation rows before test rows are scored; None where nothing is."""
        return None

    def num_scored(self, rows: Any) -> int:
        """How many items the scores are of: rows, unless an item is a part of one or several."""
        return len(rows)

    def check_labels(self, labels: Tensor, label_names: Sequence[str]) -> None:
        """Stops before a training on class numbers that are not those of the names.

        Raises:
            UserError: a number outside the names, one class alone, or another number of names than of columns.
        """
        if self.linear_head in ("regression", "multi_label"):
            columns = 1 if labels.ndim == 1 else labels.shape[1]
            if columns != len(label_names):
                raise UserError(f"{columns} columns of labels, label names {list(label_names)}: must be as many")
        if self.linear_head != "classification":
            return
        if len(label_names) < 2:
            raise UserError(f"the task has one class ({list(label_names)}): a classifier needs at least 2")
        counted_M = labels[labels != IGNORED_LABEL]
        if counted_M.min() < 0 or counted_M.max() >= len(label_names):
            span = f"{counted_M.min()}..{counted_M.max()}"
            raise UserError(f"labels range over {span}: must be in 0..{len(label_names) - 1}")

    def fit_head(self, features_ND: Tensor, labels: Tensor, *, num_outputs: int, seed: int) -> LinearHead:
        """A linear head on a frozen teacher's features of all rows, or of all their tokens.

        Raises:
            UserError: as of ``fit_linear_head``, or a kind that no linear head can teach.
        """
        if self.linear_head == "identity":
            width = features_ND.shape[1]
            return LinearHead(torch.eye(width), torch.zeros(width))
        if self.linear_head is None:
            raise UserError(f"teacher.head: linear is not allowed for {self.name}; it must be finetune or a folder")
        return fit_linear_head(features_ND, labels, num_labels=num_outputs, kind=self.linear_head, seed=seed)

    def labelled(self, batch: Batch) -> dict[str, Tensor]:
        """The labels of a batch under the names that a model of transformers takes them by."""
        return {"labels": batch["labels"]}


def logits_of(output: Any) -> Tensor:
    """The logits, as a kind has them, of what a model of transformers returns."""
    if hasattr(output, "sentence_embeddings"):
        embeddings: Tensor = output.sentence_embeddings
        return embeddings
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: Tensor = output.logits
    return logits


def compare(student_NC: Tensor, teacher_NC: Tensor, settings: LossSettings, *, independent: bool = False) -> Tensor:
    """The logit term of the configuration; ``independent`` outputs are probabilities each by itself."""
    if settings.logits == "kl":
        return kl_logit_loss(student_NC, teacher_NC, tau=settings.tau, independent=independent)
    return relational_logit_loss(
        student_NC, teacher_NC, beta=settings.beta, gamma=settings.gamma, tau=settings.tau, independent=independent
    )
