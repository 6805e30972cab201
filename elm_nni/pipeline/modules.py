"""Lightning modules: distillation on text, and training on tasks; both take a plain model or a supernet.

Shape suffixes: B batch, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from elm_nni.data.outputs import RowBatches
from elm_nni.distillation.features import Features
from elm_nni.distillation.language import LanguageTeacher
from elm_nni.distillation.student import (
    StudentConfig,
    StudentDistiller,
    last_hidden,
    teacher_features,
)
from elm_nni.distillation.teacher import Teacher
from elm_nni.kinds import LanguageModelling, TaskKind, language_kind
from elm_nni.pipeline.config import DistillationConfig, TrainingConfig
from elm_nni.strategies.supernet_files import head_key
from elm_nni.training import optimizer_and_schedule

Batch = Mapping[str, Any]


def on_device(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class TextDistillation(LightningModule):
    """Trains a model on text: by a teacher's features (arXiv 2510.27037, section III-C), tokens to predict, or both.

    Args:
        model: an ``ElmModel`` or a space turned into a supernet; it has ``embeddings``, ``layers`` and ``config``.
        teacher: stays out of parameters and checkpoint.
        distillation: its ``objective`` says what is learnt.

    Batches hold ``input_ids``, ``attention_mask``, ``document_ids`` and, where tokens are predicted, ``labels``, each
    (B, T).
    """

    def __init__(
        self, model: nn.Module, teacher: Teacher, *, distillation: DistillationConfig, training: TrainingConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.distillation, self.training_config, self.teacher = distillation, training, teacher
        self.distiller: StudentDistiller | None = None
        if "distill" in distillation.objective.split("+"):
            self.distiller = StudentDistiller(model, teacher, loss=distillation.features)
        self.kind, self.lm_head = language_kind(distillation.objective), None
        if self.kind is not None:
            config = cast(StudentConfig, model.config)
            self.lm_head = self.kind.new_head(model, config.hidden_size, 0)
            self.kind.start_head(self.lm_head, config.initializer_range)

    def loss(self, batch: Batch, teacher: Features | None = None) -> Tensor:
        """The summed losses of one batch.

        Args:
            teacher: its features of the batch, where they are known already.
        """
        if self.distiller is None:
            return self._language_loss(last_hidden(self.model, batch), batch)
        hidden_BTD, student = self.distiller.record(lambda: last_hidden(self.model, batch))
        teacher = teacher or teacher_features(self.teacher, batch)
        loss: Tensor = self.distiller(student, teacher, batch["attention_mask"])["total"]
        return loss if self.kind is None else loss + self._language_loss(hidden_BTD, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def _language_loss(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        assert self.kind is not None
        assert self.lm_head is not None
        logits_MV = self.lm_head(self.kind.features(hidden_BTD, batch, ""))
        return self.distillation.lambda_label * self.kind.label_loss(logits_MV, batch)

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.training_config)


class TaskTraining(LightningModule):
    """Trains a model or supernet on tasks: feature, logit and label losses; one linear head a task.

    Args:
        heads: task name to (number of outputs, kind).
        teacher: None trains on labels and on the teacher logits in the batch alone.
        language: the teacher with its language-model head, whose logits are too wide to be kept; None trains language
            modelling on the text alone.

    A batch holds ``input_ids`` and ``attention_mask`` (B, T), ``labels`` and ``teacher_logits`` as the task's kind has
    them, and the name of its ``task``.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | None,
        *,
        heads: Mapping[str, tuple[int, TaskKind]],
        distillation: DistillationConfig,
        training: TrainingConfig,
        language: LanguageTeacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.distillation, self.training_config = distillation, training
        self.teacher, self.language = teacher, language
        config = cast(StudentConfig, model.config)
        self.kinds = {name: kind for name, (_, kind) in heads.items()}
        # a prefix, since a module's own names (train, type) cannot be keys
        width = config.hidden_size
        self.heads = nn.ModuleDict(
            {head_key(name): kind.new_head(model, width, outputs) for name, (outputs, kind) in heads.items()}
        )
        for name, (_, kind) in heads.items():
            kind.start_head(self.head(name), config.initializer_range)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.distiller: StudentDistiller | None = None
        if teacher is not None and distillation.lambda_feature > 0:
            self.distiller = StudentDistiller(model, teacher, loss=distillation.features)

    def head(self, task: str) -> nn.Module:
        """The head of a task."""
        return self.heads[head_key(task)]

    def logits(self, batch: Batch) -> Tensor:
        """Task logits of a batch, (B, C) or (B, T, C)."""
        pooling = cast(StudentConfig, self.model.config).classifier_pooling
        hidden_BTD = last_hidden(self.model, batch)
        features = self.kinds[batch["task"]].features(hidden_BTD, batch, pooling)
        logits: Tensor = self.head(batch["task"])(self.dropout(features))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.distiller is None or self.teacher is None:
            return self._task_loss(self.logits(batch), batch, None)
        logits, student = self.distiller.record(lambda: self.logits(batch))
        teacher = teacher_features(self.teacher, batch)
        features: Tensor = self.distiller(student, teacher, batch["attention_mask"])["total"]
        return self._task_loss(logits, batch, teacher) + self.distillation.lambda_feature * features

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.training_config)

    def _task_loss(self, logits: Tensor, batch: Batch, teacher: Features | None) -> Tensor:
        kind = self.kinds[batch["task"]]
        if isinstance(kind, LanguageModelling):
            if self.language is None:
                return self.distillation.lambda_label * kind.label_loss(logits, batch)
            if self.distillation.lambda_logit > 0:
                batch = {**batch, "teacher_logits": self.language.logits(batch, teacher)}
        return kind.loss(logits, batch, self.distillation)


def _optimizer(module: nn.Module, training: TrainingConfig) -> dict[str, Any]:
    return optimizer_and_schedule(
        module, steps=training.steps, lr=training.lr, weight_decay=training.weight_decay, warmup=training.warmup
    )


@torch.inference_mode()
def predict(module: TaskTraining, batches: RowBatches) -> Tensor:
    """What the task's kind keeps of the logits of all rows, in their order, in eval mode; the mode is restored."""
    training = module.training
    module.eval()

    def kept(batch: dict[str, Any]) -> Tensor:
        batch = on_device(batch, module.device)
        return module.kinds[batch["task"]].kept(module.logits(batch), batch)

    try:
        return batches.outputs(kept)
    finally:
        module.train(training)
