"""Systems that are not ELM: a BERT of transformers of the same size, the teacher fine-tuned, and the teacher cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel, GPT2LMHeadModel

from elm_nni.digest import digest
from elm_nni.distillation.heads import LinearHead, TeacherClassifier
from elm_nni.distillation.teacher import Teacher, first_layers
from elm_nni.kinds import CausalLM
from elm_nni.pipeline.context import Task, latency_condition
from elm_nni.pipeline.evaluate_stage import System, elm_system
from elm_nni.pipeline.store import StageResult, write_json
from elm_nni.pipeline.student_stage import SCORES, finetune_inputs, pretrain_inputs, train_on_task, train_on_text
from elm_nni.pipeline.system_latency import classifier_module, measure_systems
from elm_nni.pipeline.teacher_stage import TEACHER_SCORES, load_teacher_classifier, needs_lm_head
from elm_nni.seeding import seeded
from quality.decoders import StockDecoder, gpt2_config, load_decoders, save_decoder
from quality.encoders import HEAD, StockEncoder, factorise_table, load_stock, save_classifier, stock_config
from quality.trial import SHARED, LeftOut, Student, TracedRun, Trial

WEIGHTS, DEPTH = "encoder.safetensors", "depth.json"

# Makes a model with its first weights.
Start = Callable[[], Any]


def stock_bert(trial: Trial) -> list[Student]:
    """``BertConfig`` of full ELM's size, trained on text and tasks as every other system."""
    run = trial.run()
    context, chosen, config = run.context, run.precision(), stock_config(trial.target, run.context.settings)
    inputs = pretrain_inputs(context, {"bert": config.to_diff_dict()}, chosen, None)

    def build(folder: Path) -> None:
        with seeded(trial.seed, "stock/weights"):
            model = BertModel(config, add_pooling_layer=False)
            train_on_text(context, folder, StockEncoder(model), chosen)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)

    pretrained = run.stage("stock_pretrain", inputs, build, "stock pretrain")

    def start() -> Any:
        model = BertModel(config, add_pooling_layer=False)
        model.load_state_dict(load_file(pretrained.folder / WEIGHTS))
        return model

    facts = {"layers": config.num_hidden_layers, "ffn": config.intermediate_size}
    return [_fine_tuned(run, "stock", pretrained.digest, start, {"pretrain": pretrained}, facts)]


def stock_gpt2(trial: Trial) -> list[Student]:
    """``GPT2Config`` of full ELM's size, trained on text and tasks as every other system."""
    run = trial.run()
    context, chosen = run.context, run.precision()
    config = gpt2_config(trial.target, context.settings, context.tokenizer.eos_token_id)
    inputs = pretrain_inputs(context, {"gpt2": config.to_diff_dict()}, chosen, None)

    def build(folder: Path) -> None:
        with seeded(trial.seed, "stock/weights"):
            decoder = StockDecoder(GPT2LMHeadModel(config))
            train_on_text(context, folder, decoder, chosen)
        decoder.plain().save_pretrained(folder / "model")

    pretrained = run.stage("stock_pretrain", inputs, build, "stock pretrain")
    facts = {"layers": config.n_layer, "ffn": config.n_inner}
    start = partial(GPT2LMHeadModel.from_pretrained, pretrained.folder / "model")
    return [
        _fine_tuned(run, "stock", pretrained.digest, start, {"pretrain": pretrained}, facts, StockDecoder, save_decoder)
    ]


def frozen_teacher(trial: Trial) -> list[Student]:
    """The teacher as distillation sees it: a linear head on frozen features, or a language model as it is."""
    run = trial.run()
    context, teacher = run.context, run.teacher()
    scores = json.loads((teacher.folder / TEACHER_SCORES).read_text(encoding="utf-8"))

    def build(folder: Path, name: str) -> None:
        classifier = load_teacher_classifier(context, teacher.folder, name)
        if isinstance(classifier, TeacherClassifier):
            Teacher(classifier.teacher.model, tokenizer=context.tokenizer).save(folder / "model")
            classifier.head.save(folder / "model" / HEAD)
        else:
            model = AutoModelForCausalLM.from_pretrained(context.config.teacher.name)
            model.save_pretrained(folder / "model")
            context.tokenizer.save_pretrained(folder / "model")
        write_json(folder / SCORES, {"validation": scores[name]})

    models = {}
    for name, task in context.tasks.items():
        has_head = context.config.teacher.head == "linear" and not task.kind.per_token
        has_own = task.kind.name == CausalLM.name and not needs_lm_head(context)
        if not (has_head or has_own) or context.vocabulary is not None:
            raise LeftOut(f"task {name}: it needs a linear head, or a causal head of its own, and a whole vocabulary")
        inputs = {"teacher": teacher.digest, "task": name}
        models[name] = run.stage("frozen_teacher", inputs, partial(build, name=name), f"frozen teacher {name}")
    return [Student(models, {label: run.stages[label] for label in SHARED})]


def load_frozen(name: str, folders: Mapping[str, Path], device: str) -> System:
    """The teachers of all tasks as a system that can be scored and timed."""
    is_encoder = all((folder / HEAD).exists() for folder in folders.values())
    return (load_stock if is_encoder else load_decoders)(name, folders, device)


def fine_tuned_teacher(trial: Trial) -> list[Student]:
    """All weights of the teacher on the labels of each task; there is nobody to distil from."""
    changes = {"distillation.lambda_logit": 0.0, "distillation.lambda_feature": 0.0}
    run = trial.run({"retrain.finetune.lr": trial.comparison.teacher_lr, **changes})
    teacher = run.context.teacher
    return [_fine_tuned(run, "teacher", "whole", partial(_copy, teacher, teacher.num_layers), {}, {})]


def cut_teacher(trial: Trial, *, low_rank: bool) -> list[Student]:
    """The teacher's first layers, as many as have full ELM's latency, fine-tuned with the whole teacher's logits."""
    run = trial.run({"retrain.finetune.lr": trial.comparison.teacher_lr, "distillation.lambda_feature": 0.0})
    depth = _depth(trial)
    found = json.loads((depth.folder / DEPTH).read_text(encoding="utf-8"))
    size = run.context.settings.embedding_size if low_rank else None
    name = f"cut {found['layers']} {size}"
    start = partial(_copy, run.context.teacher, found["layers"], size)
    return [_fine_tuned(run, name, name, start, {"depth": depth}, found)]


def _copy(teacher: Teacher, layers: int, table_size: int | None = None) -> Any:
    model = first_layers(teacher, layers).model
    if table_size is not None:
        factorise_table(model, table_size)
    return model


def _fine_tuned(
    run: TracedRun, name: str, start_digest: str, start: Start, before: dict[str, StageResult], facts: dict[str, Any],
    wrap: Callable[[Any], Any] = StockEncoder, save: Callable[..., None] = save_classifier,
) -> Student:  # fmt: skip
    """A student of its own for each task, from the same start."""
    context, chosen, teacher = run.context, run.precision(), run.teacher()

    def build(folder: Path, task: Task) -> None:
        with seeded(context.config.seed, f"stock/{task.name}"):
            encoder = wrap(start())
            head = train_on_task(context, folder, encoder, teacher.folder, task, chosen)
        save(encoder, head, context.tokenizer, folder / "model")

    models = {}
    for task in context.tasks.values():
        inputs = finetune_inputs(context, digest([context.identity, start_digest]), teacher.digest, task, chosen)
        models[task.name] = run.stage(
            "stock_finetune", inputs, partial(build, task=task), f"{name} {task.name}"
        )
    stages = {label: run.stages[label] for label in SHARED} | before
    return Student(models, stages | {f"finetune {task}": one for task, one in models.items()}, facts=facts)


def _depth(trial: Trial) -> StageResult:
    """The number of the teacher's layers whose latency is nearest to that of full ELM's winner, timed side by side."""
    run = trial.run()
    context, architecture = run.context, run.architecture()
    [task, *_] = context.tasks
    condition = latency_condition(run.config)

    def build(folder: Path) -> None:
        ours = elm_system("ours", {task: run.retrain()[task].folder / "model"}, condition.device)
        assert ours.module is not None
        modules = {"ours": ours.module}
        outputs, width = context.tasks[task].num_outputs, context.teacher.width
        head = LinearHead(torch.zeros(outputs, width), torch.zeros(outputs))
        for layers in range(1, context.teacher.num_layers + 1):
            cut = first_layers(context.teacher, layers)
            modules[str(layers)] = classifier_module(TeacherClassifier(cut, head)).to(condition.device)
        times = measure_systems(modules, {}, condition, context.settings.vocab_size)
        write_json(folder / DEPTH, nearest_depth({name: one.median_ms for name, one in times.items()}))

    inputs = {
        **context.identity, "architecture": architecture, "condition": asdict(condition), "device": context.device
    }  # fmt: skip
    return run.stage("teacher_depth", inputs, build, "teacher depth")


def nearest_depth(milliseconds: dict[str, float | None]) -> dict[str, Any]:
    """The number of layers whose milliseconds are nearest to those of ``ours``.

    Example:
        >>> nearest_depth({"ours": 5.0, "1": 2.0, "2": 4.5, "3": 6.0})["layers"]
        2
    """
    times = {name: value for name, value in milliseconds.items() if value is not None}
    ours = times.pop("ours")
    layers = min(times, key=lambda name: abs(times[name] - ours))
    return {"layers": int(layers), "ours_ms": ours, "layers_ms": times}
