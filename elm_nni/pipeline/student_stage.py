"""Training of one plain architecture: distillation on text, then fine-tuning on each task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from elm_nni import modeling
from elm_nni.data.outputs import RowBatches
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.modeling_elm import ElmModel, ElmPreTrainedModel
from elm_nni.pipeline.context import Context, Task
from elm_nni.pipeline.modules import TaskTraining, TextDistillation, on_device, predict
from elm_nni.pipeline.store import CHECKPOINTS, StageResult, write_json
from elm_nni.pipeline.supernet_stage import (
    load_lm_head,
    save_lm_head,
    start_token_table,
    task_batches,
    text_batches,
    text_objective,
)
from elm_nni.pipeline.teacher_stage import load_language_teacher
from elm_nni.pipeline.training import fit
from elm_nni.search_spaces.architecture import shared_config
from elm_nni.seeding import seeded

WEIGHTS, SCORES = "encoder.safetensors", "scores.json"


def pretrain_inputs(
    context: Context, architecture: dict[str, Any], precision: dict[str, str], inherited: str | None
) -> dict[str, Any]:
    """What a pre-trained architecture depends on; ``inherited`` names the stage its first weights come from."""
    config = context.config
    return {
        **context.identity, "architecture": architecture, "training": asdict(config.retrain.pretrain),
        "data": context.corpus[0].manifest["digest"], "holdout_rows": config.data.holdout_rows,
        **text_objective(config.distillation), "precision": precision, "inherited": inherited,
    }  # fmt: skip


def build_pretrain(
    context: Context, folder: Path, architecture: dict[str, Any], precision: dict[str, str], inherited: Path | None
) -> None:
    """Distils the teacher into the architecture on text, from scratch or from ``inherited`` (a saved ``ElmModel``)."""
    config = context.config
    with seeded(config.seed, "pretrain/weights"):
        model = ElmModel(ElmConfig.from_architecture(architecture, **shared_config(context.settings)))
        if inherited is not None:
            model = ElmModel.from_pretrained(inherited)
        elif config.distillation.token_table == "svd":
            start_token_table(model.embeddings.tokens.weight, context)
        train_on_text(context, folder, model, precision)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def train_on_text(context: Context, folder: Path, model: nn.Module, precision: dict[str, str]) -> None:
    """Trains any model with ``embeddings``, ``layers`` and ``config`` on text, in place; saves a language-model head.

    Call it with seeded generators: the projections to the teacher's width are drawn here.
    """
    config = context.config
    module = TextDistillation(
        model, context.teacher_in(precision["teacher"]), distillation=config.distillation,
        training=config.retrain.pretrain,
    )  # fmt: skip
    fit(
        module, text_batches(context, config.retrain.pretrain, "pretrain"), config.retrain.pretrain,
        folder=folder / CHECKPOINTS, seed=config.seed, stage="pretrain", precision=precision["student"],
        log=context.log,
    )  # fmt: skip
    save_lm_head(module, folder)
    context.log("pretrain", holdout_loss=_holdout_loss(context, module, config.retrain.pretrain.batch_size))


@torch.inference_mode()
def _holdout_loss(context: Context, module: TextDistillation, batch_size: int) -> float:
    """The mean loss on the text rows that are held out of training; the test part of a text task stays unread."""
    rows = context.held_out_text
    # Lightning leaves the module on the CPU after a fit, the teacher stays where it was
    module.to(context.device).eval()
    starts = range(0, len(rows), batch_size)
    batches = [rows.batch(list(range(start, min(start + batch_size, len(rows))))) for start in starts]
    losses = [float(module.loss(on_device(batch, module.device))) for batch in batches]
    sizes = [len(batch["input_ids"]) for batch in batches]
    module.cpu().train()
    return round(sum(loss * size for loss, size in zip(losses, sizes)) / len(rows), 5)


def finetune_inputs(
    context: Context, pretrain: str, teacher: str, task: Task, precision: dict[str, str]
) -> dict[str, Any]:
    """What a fine-tuned model depends on."""
    config = context.config
    distillation = asdict(config.distillation)
    distillation.pop("token_table"), distillation.pop("objective")
    return {
        "pretrain": pretrain, "teacher": teacher, "task": task.name, "seed": config.seed, "precision": precision,
        "training": asdict(config.retrain.finetune), "distillation": distillation,
    }  # fmt: skip


def build_finetune(
    context: Context, folder: Path, architecture: dict[str, Any], pretrain: Path, teacher: Path, task: Task,
    precision: dict[str, str],
) -> None:  # fmt: skip
    """Fine-tunes on one task and writes a Hugging Face model with its tokenizer and validation score."""
    with seeded(context.config.seed, f"finetune/{task.name}"):
        model = ElmModel(ElmConfig.from_architecture(architecture, **shared_config(context.settings)))
        model.load_state_dict(load_file(pretrain / WEIGHTS))
        head = train_on_task(context, folder, model, teacher, task, precision, pretrain)
    to_transformers(model, head, task, context.tokenizer).save_pretrained(folder / "model")
    context.tokenizer.save_pretrained(folder / "model")


def train_on_task(
    context: Context, folder: Path, model: nn.Module, teacher: Path, task: Task, precision: dict[str, str],
    pretrain: Path | None = None,
) -> nn.Module:  # fmt: skip
    """Fine-tunes any model with ``embeddings``, ``layers`` and ``config`` in place; returns the head.

    A language-model head starts from that of ``pretrain``, the folder of :func:`train_on_text`, if there is one. Writes
    the validation score. Call it with seeded generators: head and projections are drawn here.
    """
    config = context.config
    module = TaskTraining(
        model, context.teacher_in(precision["teacher"]), distillation=config.distillation,
        training=config.retrain.finetune, heads={task.name: (task.num_outputs, task.kind)},
        language=load_language_teacher(context, teacher, precision["teacher"]),
    )  # fmt: skip
    if pretrain is not None:
        load_lm_head(module, pretrain)
    fit(
        module, task_batches([task], teacher, config.retrain.finetune, config.seed, "finetune"),
        config.retrain.finetune, folder=folder / CHECKPOINTS, seed=config.seed, stage="finetune",
        precision=precision["student"], log=context.log,
    )  # fmt: skip
    value = task.score(predict(module, RowBatches(task.validation, task.name)), task.validation)
    context.log("finetune", task=task.name, validation=value)
    write_json(folder / SCORES, {"validation": value})
    return module.head(task.name)


def validation_scores(models: Mapping[str, StageResult]) -> dict[str, float]:
    """Task to the score on validation rows that the stage of its model wrote."""
    return {
        task: float(json.loads((model.folder / SCORES).read_text(encoding="utf-8"))["validation"])
        for task, model in models.items()
    }


def to_transformers(model: ElmModel, head: nn.Module, task: Task, tokenizer: Any) -> ElmPreTrainedModel:
    """The transformers model with the trained encoder and head."""
    names, kind = list(task.data.label_names) or [task.name], task.kind
    config = ElmConfig.from_dict({**model.config.to_dict(), **kind.config(task.num_outputs, names, tokenizer)})
    whole: ElmPreTrainedModel = getattr(modeling, kind.elm_class)(config)
    whole.get_submodule("elm").load_state_dict(model.state_dict())
    kind.install_head(head, whole)
    return whole.eval()
