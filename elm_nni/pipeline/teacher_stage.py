"""The teacher's side of the tasks: a head for each, its logits on training rows, its validation score."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from elm_nni.data.batches import StepBatchSampler
from elm_nni.data.language import LanguageRows
from elm_nni.data.outputs import RowBatches
from elm_nni.distillation.fine_tuned import FineTunedClassifier, fine_tune_teacher, load_classifier
from elm_nni.distillation.heads import LinearHead, TeacherClassifier
from elm_nni.distillation.language import FittedHead, LanguageTeacher, OwnHead, fit_head
from elm_nni.distillation.student import inputs_of
from elm_nni.distillation.teacher import Teacher
from elm_nni.errors import UserError
from elm_nni.kinds import LanguageModelling
from elm_nni.pipeline.context import TEXT, Context, Task, content_of, task_identity
from elm_nni.pipeline.store import write_json
from elm_nni.seeding import seeded

logger = logging.getLogger(__name__)

LM_HEAD, TEACHER_SCORES = "lm_head.safetensors", "scores.json"

Classifier = TeacherClassifier | FineTunedClassifier | LanguageTeacher


def needs_lm_head(context: Context) -> bool:
    """Whether a language-model head is fitted for the teacher."""
    return TEXT in context.tasks and context.config.teacher.lm_head == "refit"


def lm_head_inputs(context: Context) -> dict[str, Any]:
    """What a fitted language-model head depends on."""
    config = context.config
    identity = {key: value for key, value in context.identity.items() if key != "space"}
    return {
        **identity, "kind": context.tasks[TEXT].kind.name, "steps": config.teacher.lm_head_steps,
        "batch_size": config.supernet.pretrain.batch_size, **_text_inputs(context),
    }  # fmt: skip


def build_lm_head(context: Context, folder: Path) -> None:
    """Fits a language-model head on the features of a teacher that has none, on the training text."""
    rows, config = context.tasks[TEXT].train, context.config
    assert isinstance(rows, LanguageRows)
    steps = config.teacher.lm_head_steps
    sampler = StepBatchSampler(
        num_rows=len(rows), batch_size=config.supernet.pretrain.batch_size, seed=config.seed, stage="lm_head",
        num_steps=steps,
    )  # fmt: skip
    with seeded(config.seed, "lm_head"):
        head = fit_head(
            context.teacher, lambda step: rows.training_batch(sampler.batch(step), step), steps=steps,
            log=lambda step, loss: context.log("lm_head", step=step, loss=round(loss, 4)),
        )  # fmt: skip
    head.save(folder / LM_HEAD)


def load_language_teacher(context: Context, folder: Path, precision: str = "fp32") -> LanguageTeacher | None:
    """The teacher with its language-model head, own or fitted; None where no task is language modelling.

    Args:
        folder: of :func:`build_teacher`.
    """
    if TEXT not in context.tasks:
        return None
    teacher, fitted = context.teacher_in(precision), folder / LM_HEAD
    if fitted.exists():
        return LanguageTeacher(teacher, FittedHead.load(fitted, teacher))
    return LanguageTeacher(teacher, OwnHead.load(context.config.teacher.name, context.tasks[TEXT].kind.auto_class))


def teacher_inputs(context: Context, lm_head: str | None = None) -> dict[str, Any]:
    """What the teacher's heads depend on; ``lm_head`` names the stage of a fitted language-model head."""
    settings = asdict(context.config.teacher)
    for key in ("precision", "lm_head", "lm_head_steps"):
        settings.pop(key)
    settings["name"] = content_of(settings["name"])
    if settings["head"] not in ("linear", "finetune"):
        settings["head"] = content_of(settings["head"])
    # the heads are of the teacher alone, whatever space is searched
    identity = {key: value for key, value in context.identity.items() if key != "space"}
    return {
        **identity,
        "head": settings,
        "tasks": [task_identity(task) for task in context.config.tasks],
        "validation_size": context.config.search.validation_size,
        **_text_inputs(context),
        **({"lm_head": lm_head} if lm_head else {}),
    }


def _text_inputs(context: Context) -> dict[str, Any]:
    """The text that a language model's validation score is of."""
    if TEXT not in context.tasks:
        return {}
    return {"data": context.corpus[0].manifest["digest"], "holdout_rows": context.config.data.holdout_rows}


def build_teacher(context: Context, folder: Path, lm_head: Path | None = None) -> None:
    """Fits or loads a head for each task and stores its logits on the training rows.

    Logits of language modelling are as wide as the vocabulary and are not stored.
    """
    scores = {}
    if lm_head is not None:
        shutil.copyfile(lm_head / LM_HEAD, folder / LM_HEAD)
    for name, task in context.tasks.items():
        if not isinstance(task.kind, LanguageModelling):
            save_file({"logits": _teach(context, task, folder).contiguous()}, folder / f"{name}.logits.safetensors")
        classifier = load_teacher_classifier(context, folder, name)
        scores[name] = task.score(task.outputs(predictor(classifier), task.validation), task.validation)
        context.log("teacher", task=name, validation=scores[name])
    write_json(folder / TEACHER_SCORES, scores)


def load_teacher_classifier(context: Context, folder: Path, name: str) -> Classifier:
    """The classifier that :func:`build_teacher` stored, or the teacher's language-model head."""
    if isinstance(context.tasks[name].kind, LanguageModelling):
        language = load_language_teacher(context, folder)
        assert language is not None
        return language
    head = folder / f"{name}.head.safetensors"
    if head.exists():
        per_token = context.tasks[name].kind.per_token
        return TeacherClassifier(context.teacher, LinearHead.load(head), per_token=per_token)
    return _load_folder(context, context.tasks[name], _classifier_folder(context, folder, name))


def load_teacher_logits(folder: Path, name: str) -> Tensor:
    """Teacher logits on the training rows of a task, as :meth:`RowBatches.outputs` has them."""
    return load_file(folder / f"{name}.logits.safetensors")["logits"]


def linear_classifier(teacher: Teacher, task: Task, seed: int) -> tuple[TeacherClassifier, Tensor]:
    """A linear head on the frozen teacher, fitted on the training rows of a task, and its logits on them."""
    kind, batches = task.kind, RowBatches(task.train, task.name)

    def features_of(batch: dict[str, Any]) -> Tensor:
        mask_BT = batch["attention_mask"]
        features = teacher.features(batch["input_ids"], mask_BT, token_type_ids=batch.get("token_type_ids"))
        return kind.features(features.hidden[-1], batch, "mean")

    # rows are sorted by length, tokens in the order of the rows
    order = torch.arange(len(task.train.labels)) if kind.per_token else batches.order
    features_ND = batches.outputs(features_of)[order]
    head = kind.fit_head(features_ND, task.train.labels[order], num_outputs=task.num_outputs, seed=seed)
    # back in the order of the rows
    logits_NC = head(features_ND)[order.argsort()]
    return TeacherClassifier(teacher, head, per_token=kind.per_token), logits_NC


def predictor(classifier: Classifier) -> Callable[[dict[str, Any]], Tensor]:
    """A function from a batch to the teacher's logits, as the task's kind has them."""
    if isinstance(classifier, LanguageTeacher):
        return classifier.logits
    return lambda batch: classifier.logits(**inputs_of(batch))


def _teach(context: Context, task: Task, folder: Path) -> Tensor:
    """Makes the head of a task and gives its logits on the training rows."""
    if context.config.teacher.head == "linear":
        classifier, logits_NC = linear_classifier(context.teacher, task, context.config.seed)
        classifier.head.save(folder / f"{task.name}.head.safetensors")
        return logits_NC
    fine_tuned = _fine_tuned_classifier(context, task, folder)
    return RowBatches(task.train, task.name).outputs(predictor(fine_tuned))


def _fine_tuned_classifier(context: Context, task: Task, folder: Path) -> FineTunedClassifier:
    how = context.config.teacher
    target = _classifier_folder(context, folder, task.name)
    if how.head == "finetune" and not target.exists():
        # renamed when complete: a killed run must not find half a model
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        fine_tune_teacher(
            context.teacher, task.train, task.data.label_names or (task.name,), partial, kind=task.kind.name,
            epochs=how.finetune_epochs, lr=how.finetune_lr, seed=context.config.seed,
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
    kept = None if context.vocabulary is None else context.vocabulary.kept_ids_V
    return load_classifier(
        folder, names, context.full_teacher.tokenizer, kind=task.kind.name, token_map=kept, device=context.device
    )
