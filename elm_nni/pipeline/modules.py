"""Lightning modules: distillation on text, and training on tasks; both take a plain model or a supernet.

Shape suffixes: B batch, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from elm_nni.data.tasks import Kind
from elm_nni.distillation.losses import kl_logit_loss, relational_logit_loss
from elm_nni.distillation.student import StudentConfig, StudentDistiller, inputs_of, pooled_output
from elm_nni.distillation.teacher import Teacher
from elm_nni.pipeline.config import DistillationConfig, TrainingConfig
from elm_nni.strategies.supernet_files import head_key
from elm_nni.training import optimizer_and_schedule

Batch = Mapping[str, Any]


def on_device(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class TextDistillation(LightningModule):
    """Distils a teacher's features into a model on packed text (arXiv 2510.27037, section III-C).

    Args:
        model: an ``ElmModel`` or a space turned into a supernet; it has ``embeddings``, ``layers`` and ``config``.
        teacher: stays out of parameters and checkpoint.

    Batches hold ``input_ids``, ``attention_mask`` and ``document_ids``, each (B, T).
    """

    def __init__(
        self, model: nn.Module, teacher: Teacher, *, distillation: DistillationConfig, training: TrainingConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.training_config = training
        self.distiller = StudentDistiller(model, teacher, loss=distillation.features)

    def feature_loss(self, batch: Batch) -> Tensor:
        """The summed feature losses of one batch."""
        _, student = self.distiller.record(lambda: self.model(**inputs_of(batch)))
        return self.distiller.feature_loss(student, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.feature_loss(batch)

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.training_config)


class TaskTraining(LightningModule):
    """Trains a model or supernet on tasks: feature, logit and label losses; one linear head a task.

    Args:
        heads: task name to (number of outputs, kind).
        teacher: None trains on labels and on the teacher logits in the batch alone.

    A batch holds ``input_ids`` and ``attention_mask`` (B, T), ``labels`` (B,), ``teacher_logits`` (B, C) and the name
    of its ``task``. For a regression the labels are compared by mean squared error and there is no logit term.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | None,
        *,
        heads: Mapping[str, tuple[int, Kind]],
        distillation: DistillationConfig,
        training: TrainingConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.distillation, self.training_config = distillation, training
        config = cast(StudentConfig, model.config)
        self.kinds = {name: kind for name, (_, kind) in heads.items()}
        # a prefix, since a module's own names (train, type) cannot be keys
        self.heads = nn.ModuleDict(
            {head_key(name): nn.Linear(config.hidden_size, outputs) for name, (outputs, _) in heads.items()}
        )
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=config.initializer_range)
            nn.init.zeros_(head.bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.distiller: StudentDistiller | None = None
        if teacher is not None and distillation.lambda_feature > 0:
            self.distiller = StudentDistiller(model, teacher, loss=distillation.features)

    def head(self, task: str) -> nn.Linear:
        """The linear head of a task."""
        head = self.heads[head_key(task)]
        assert isinstance(head, nn.Linear)
        return head

    def logits(self, batch: Batch) -> Tensor:
        """Task logits (B, C) of a batch."""
        logits_BC: Tensor = self.head(batch["task"])(self.dropout(pooled_output(self.model, batch)))
        return logits_BC

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.distiller is None:
            return self._task_loss(self.logits(batch), batch)
        logits_BC, student = self.distiller.record(lambda: self.logits(batch))
        features = self.distiller.feature_loss(student, batch)
        return self._task_loss(logits_BC, batch) + self.distillation.lambda_feature * features

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.training_config)

    def _task_loss(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        settings, labels_B = self.distillation, batch["labels"]
        if self.kinds[batch["task"]] == "regression":
            return nn.functional.mse_loss(logits_BC.float().squeeze(-1), labels_B.float())
        loss = settings.lambda_label * nn.functional.cross_entropy(logits_BC.float(), labels_B)
        if settings.lambda_logit > 0:
            targets_BC = batch["teacher_logits"]
            if settings.logits == "relational":
                term = relational_logit_loss(
                    logits_BC, targets_BC, beta=settings.beta, gamma=settings.gamma, tau=settings.tau
                )
            else:
                term = kl_logit_loss(logits_BC, targets_BC, tau=settings.tau)
            loss = loss + settings.lambda_logit * term
        return loss


def _optimizer(module: nn.Module, training: TrainingConfig) -> dict[str, Any]:
    return optimizer_and_schedule(
        module, steps=training.steps, lr=training.lr, weight_decay=training.weight_decay, warmup=training.warmup
    )


@torch.inference_mode()
def predict(module: TaskTraining, batches: list[dict[str, Any]]) -> Tensor:
    """Logits (N, C) of all batches, in eval mode; the module's mode is restored."""
    training = module.training
    module.eval()
    try:
        return torch.cat([module.logits(on_device(batch, module.device)).float().cpu() for batch in batches])
    finally:
        module.train(training)
