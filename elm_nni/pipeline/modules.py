"""Lightning modules: distillation on text, and training on tasks; both take a plain model or a supernet.

Shape suffixes: B batch, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from elm_nni.data.tasks import Kind
from elm_nni.distillation.features import Features
from elm_nni.distillation.losses import kl_logit_loss, relational_logit_loss
from elm_nni.distillation.relational import FeatureDistiller
from elm_nni.distillation.taps import Taps
from elm_nni.distillation.teacher import Teacher
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.heads_elm import pool
from elm_nni.pipeline.config import DistillationConfig, TrainingConfig
from elm_nni.pipeline.training import optimizer_and_schedule

Batch = Mapping[str, Any]

# What a model reads out of a batch.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "document_ids")


class StudentFeatures:
    """Reads the features of an ELM model or supernet at every forward: embedding, layers, attention blocks.

    In a supernet the attention block is the one of the candidate that ran.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = model.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        self.num_layers = len(layers)
        paths = {"embedding": "embeddings", **{f"hidden{index}": f"layers.{index}" for index in range(len(layers))}}
        self._attention: list[list[str]] = []
        for index, layer in enumerate(layers):
            found = [name for name, _ in layer.named_modules() if name.split(".")[-1] == "attention"]
            self._attention.append([f"attention{index}/{name}" for name in found])
            paths.update({f"attention{index}/{name}": f"layers.{index}.{name}" for name in found})
        self.taps = Taps(model, paths)

    def read(self) -> Features:
        """The features of the latest forward."""
        hidden = [self.taps[f"hidden{index}"] for index in range(self.num_layers)]
        attention = [next(self.taps[name] for name in names if name in self.taps) for names in self._attention]
        return Features(self.taps["embedding"], hidden, attention)


def student_widths(config: ElmConfig, teacher: Teacher) -> dict[str, int | tuple[int, ...]]:
    """The widths that :class:`FeatureDistiller` must project, for every kind that the teacher shows."""
    widths: dict[str, int | tuple[int, ...]] = {"embedding": config.hidden_size, "hidden": config.hidden_size}
    if teacher.attention_width is not None:
        widths["attention"] = (config.hidden_size, config.bottleneck_size)
    return widths


def on_device(batch: Batch, device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that a model takes."""
    return {name: batch[name] for name in _INPUTS if name in batch}


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
        self.teacher = teacher
        self.training_config = training
        config = model.config
        assert isinstance(config, ElmConfig)
        self.distiller = FeatureDistiller(
            student_widths=student_widths(config, teacher), teacher_width=teacher.widths, loss=distillation.features
        )
        self.features = StudentFeatures(model)

    def feature_loss(self, batch: Batch) -> Tensor:
        """The summed feature losses of one batch."""
        with self.features.taps as taps:
            taps.clear()
            self.model(**inputs_of(batch))
            student = self.features.read()
            taps.clear()
        known = inputs_of(batch)
        teacher = self.teacher.features(known.pop("input_ids"), known.pop("attention_mask"), **known)
        return self.distiller(student, teacher, batch["attention_mask"])["total"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.feature_loss(batch)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self, self.training_config)


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
        self.teacher = teacher if distillation.lambda_feature > 0 else None
        self.distillation, self.training_config = distillation, training
        config = model.config
        assert isinstance(config, ElmConfig)
        self.pooling = config.classifier_pooling
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
        if self.teacher is not None:
            self.distiller = FeatureDistiller(
                student_widths=student_widths(config, self.teacher),
                teacher_width=self.teacher.widths,
                loss=distillation.features,
            )
        self.features = StudentFeatures(model)

    def head(self, task: str) -> nn.Module:
        """The linear head of a task."""
        return self.heads[head_key(task)]

    def logits(self, batch: Batch) -> Tensor:
        """Task logits (B, C) of a batch."""
        hidden = self.model(**inputs_of(batch))
        hidden_BTD = hidden if isinstance(hidden, Tensor) else hidden.last_hidden_state
        pooled_BD = pool(hidden_BTD, batch["attention_mask"], self.pooling)
        logits_BC: Tensor = self.head(batch["task"])(self.dropout(pooled_BD))
        return logits_BC

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with self.features.taps as taps:
            taps.clear()
            logits_BC = self.logits(batch)
            student = self.features.read()
            taps.clear()
        loss = self._task_loss(logits_BC, batch)
        if self.teacher is not None:
            known = inputs_of(batch)
            teacher = self.teacher.features(known.pop("input_ids"), known.pop("attention_mask"), **known)
            total = self.distiller(student, teacher, batch["attention_mask"])["total"]
            loss = loss + self.distillation.lambda_feature * total
        return loss

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self, self.training_config)

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


def head_key(task: str) -> str:
    """The name of a task's head among the weights."""
    return f"task_{task}"


@torch.inference_mode()
def predict(module: TaskTraining, batches: list[dict[str, Any]]) -> Tensor:
    """Logits (N, C) of all batches, in eval mode; the module's mode is restored."""
    training = module.training
    module.eval()
    try:
        return torch.cat([module.logits(on_device(batch, module.device)).float().cpu() for batch in batches])
    finally:
        module.train(training)
