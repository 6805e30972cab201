"""The teacher's side of the tasks: a head for each, its logits on training rows, its validation score."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elm_nni.data.batches import TaskRows, evaluation_batches, in_row_order
from elm_nni.data.metrics import compute_metric, predictions_of
from elm_nni.distillation.fine_tuned import FineTunedClassifier, fine_tune_teacher, load_classifier
from elm_nni.distillation.heads import LinearHead, TeacherClassifier, fit_linear_head, mean_pool
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.pipeline.context import Context, Task, content_of
from elm_nni.pipeline.store import write_json

logger = logging.getLogger(__name__)

Classifier = TeacherClassifier | FineTunedClassifier


def teacher_inputs(context: Context) -> dict[str, Any]:
    """What the teacher's heads depend on."""
    settings = asdict(context.config.teacher)
    settings.pop("precision")
    settings["name"] = content_of(settings["name"])
    if settings["head"] not in ("linear", "finetune"):
        settings["head"] = content_of(settings["head"])
    # the heads are of the teacher alone, whatever space is searched
    identity = {key: value for key, value in context.identity.items() if key != "space"}
    return {
        **identity,
        "head": settings,
        "tasks": [{**asdict(task), "source": task.source and content_of(task.source)} for task in context.config.tasks],
        "validation_size": context.config.search.validation_size,
    }


def build_teacher(context: Context, folder: Path) -> None:
    """Fits or loads a head for each task and stores its logits on the training rows."""
    scores = {}
    classifier: Classifier
    for name, task in context.tasks.items():
        if context.config.teacher.head == "linear":
            classifier, logits_NC = linear_classifier(context.teacher, task, context.config.seed)
            classifier.head.save(folder / f"{name}.head.safetensors")
        else:
            classifier = _fine_tuned_classifier(context, task, folder)
            logits_NC = classifier_logits(classifier, task.train, name)
        save_file({"logits": logits_NC.contiguous()}, folder / f"{name}.logits.safetensors")
        scores[name] = score(task, classifier_logits(classifier, task.validation, name), task.validation.labels)
        context.log("teacher", task=name, validation=scores[name])
    write_json(folder / "scores.json", scores)


def load_teacher_classifier(context: Context, folder: Path, name: str) -> Classifier:
    """The classifier that :func:`build_teacher` stored."""
    head = folder / f"{name}.head.safetensors"
    if head.exists():
        return TeacherClassifier(context.teacher, LinearHead.load(head))
    return _load_folder(context, context.tasks[name], _classifier_folder(context, folder, name))


def load_teacher_logits(folder: Path, name: str) -> Tensor:
    """Teacher logits (N, C) on the training rows of a task."""
    return load_file(folder / f"{name}.logits.safetensors")["logits"]


def linear_classifier(teacher: Teacher, task: Task, seed: int) -> tuple[TeacherClassifier, Tensor]:
    """A linear head on the frozen teacher, fitted on the training rows of a task, and its logits (N, C) on them."""
    batches, order = evaluation_batches(task.train, task.name)
    features_ND = torch.cat([_pooled(teacher, batch) for batch in batches])
    head = fit_linear_head(
        features_ND, task.train.labels[order], num_labels=task.num_outputs, kind=task.kind, seed=seed
    )
    return TeacherClassifier(teacher, head), in_row_order(head(features_ND), order)


def classifier_logits(classifier: Classifier, rows: TaskRows, name: str) -> Tensor:
    """Logits (N, C) in the order of the rows."""
    batches, order = evaluation_batches(rows, name)
    known = ("input_ids", "attention_mask", "token_type_ids")
    parts = [classifier.logits(**{key: batch[key] for key in known if key in batch}).float().cpu() for batch in batches]
    return in_row_order(torch.cat(parts), order)


def _pooled(teacher: Teacher, batch: dict[str, Any]) -> Tensor:
    mask_BT = batch["attention_mask"]
    features = teacher.features(batch["input_ids"], mask_BT, token_type_ids=batch.get("token_type_ids"))
    return mean_pool(features.hidden[-1], mask_BT).float().cpu()


def score(task: Task, logits_NC: Tensor, labels_N: Tensor) -> float:
    """The task's main metric."""
    return compute_metric(task.data.metric, predictions_of(logits_NC, task.kind), labels_N.numpy())


def _fine_tuned_classifier(context: Context, task: Task, folder: Path) -> FineTunedClassifier:
    how = context.config.teacher
    target = _classifier_folder(context, folder, task.name)
    if how.head == "finetune" and not target.exists():
        rows = [task.train[index] for index in range(len(task.train))]
        ids = [row["input_ids"].tolist() for row in rows]
        types = [row["token_type_ids"].tolist() for row in rows] if "token_type_ids" in rows[0] else None
        # renamed when complete: a killed run must not find half a model
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        fine_tune_teacher(
            context.teacher, ids, task.train.labels, task.data.label_names or (task.name,), partial,
            token_type_ids=types, epochs=how.finetune_epochs, lr=how.finetune_lr, seed=context.config.seed,
        )  # fmt: skip
        partial.rename(target)
    return _load_folder(context, task, target)


def _classifier_folder(context: Context, folder: Path, name: str) -> Path:
    how = context.config.teacher.head
    if how == "finetune":
        return folder / f"{name}.finetuned"
    if len(context.config.tasks) > 1:
        raise UserError(
            f"teacher.head: a classifier folder ({how}) serves one task, but tasks names {len(context.config.tasks)}"
        )
    return Path(how)


def _load_folder(context: Context, task: Task, folder: Path) -> FineTunedClassifier:
    if not folder.is_dir():
        raise UserError(f"teacher.head: {str(folder)!r} is not allowed; it must be linear, finetune or a folder")
    names = task.data.label_names or (task.name,)
    return load_classifier(folder, names, context.tokenizer, device=context.device)
