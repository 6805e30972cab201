"""Test scores, sizes and latencies of our model and of the systems it must be compared with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.timing import median_iqr, pinned_threads, time_interleaved
from elm_nni.data.batches import TaskRows
from elm_nni.data.metrics import paired_bootstrap, tfidf_baseline
from elm_nni.digest import derive_seed
from elm_nni.distillation.fine_tuned import FineTunedClassifier
from elm_nni.distillation.teacher import Teacher, half_depth
from elm_nni.errors import UserError
from elm_nni.modeling.modeling_elm import ElmForSequenceClassification
from elm_nni.pipeline.context import Context, Task, evaluation_batches
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.teacher_stage import (
    Classifier,
    in_row_order,
    linear_classifier,
    load_teacher_classifier,
    predictions,
    score,
)

logger = logging.getLogger(__name__)

OURS, INT8, UNIFORM = "ELM (ours)", "ELM int8 ONNX", "uniform bert"
TEACHER, HALF, TFIDF = "teacher + head", "teacher half depth", "TF-IDF + logistic regression"
RESAMPLES = 10_000
_LATENCY_REPEATS = 40

Batch = dict[str, Any]


@dataclass
class System:
    """One row of the table: how to predict each task, what it weighs, and one forward to time."""

    name: str
    logits: dict[str, Callable[[Batch], Tensor]]
    params: int | None = None
    params_outside_embeddings: int | None = None
    megabytes: float | None = None
    note: str = ""
    forward: Callable[[Batch], Any] | None = None
    results: dict[str, Tensor] = field(default_factory=dict)


def elm_system(name: str, folders: dict[str, Path], device: str, note: str = "") -> System:
    """Our model, or another ELM architecture, fine-tuned on each task."""
    models = {
        task: ElmForSequenceClassification.from_pretrained(folder).to(device).eval() for task, folder in folders.items()
    }
    first = next(iter(models))
    encoder = models[first].elm
    outside = encoder.num_parameters_outside_embeddings()
    return System(
        name, {task: _torch_logits(model) for task, model in models.items()},
        params=sum(p.numel() for p in encoder.parameters()), params_outside_embeddings=outside,
        megabytes=_megabytes(folders[first] / "model.safetensors"), note=note, forward=_torch_logits(models[first]),
    )  # fmt: skip


def onnx_system(name: str, files: dict[str, Path], reference: System, threads: int, note: str = "") -> System:
    """The same models as ONNX files in onnxruntime."""
    sessions = {task: _session(path, threads) for task, path in files.items()}
    first = next(iter(files))
    return System(
        name, {task: _onnx_logits(session) for task, session in sessions.items()}, params=reference.params,
        params_outside_embeddings=reference.params_outside_embeddings, megabytes=_megabytes(files[first]), note=note,
        forward=_onnx_logits(sessions[first]),
    )  # fmt: skip


def teacher_system(name: str, classifiers: dict[str, Classifier], device: str, note: str = "") -> System:
    """A teacher with a head for each task."""
    for classifier in classifiers.values():
        classifier.teacher.to(device)
        if isinstance(classifier, FineTunedClassifier):
            classifier.model.to(device)
    teacher = next(iter(classifiers.values())).teacher
    table = teacher.token_embeddings.numel()
    embeddings = [module for path, module in teacher.model.named_modules() if path.split(".")[-1] == "embeddings"]
    inside = sum(p.numel() for p in embeddings[0].parameters()) if embeddings else table
    return System(
        name, {task: _classifier_logits(classifier) for task, classifier in classifiers.items()},
        params=teacher.num_parameters, params_outside_embeddings=teacher.num_parameters - inside,
        megabytes=round(teacher.num_parameters * 4 / 2**20, 2), note=note,
        forward=_classifier_logits(next(iter(classifiers.values()))),
    )  # fmt: skip


def build_evaluate(
    context: Context, folder: Path, *, models: dict[str, Path], uniform: dict[str, Path] | None,
    teacher: Path, onnx: dict[str, Path] | None, condition: LatencyCondition,
) -> None:  # fmt: skip
    """Scores every system on the test rows, times them side by side, and writes ``evaluation.json``."""
    config = context.config
    device = condition.device
    systems = [elm_system(OURS, models, device)]
    if onnx:
        systems.append(onnx_system(INT8, onnx, systems[0], condition.threads, "weights in 8 bits, onnxruntime"))
    if uniform:
        note = "same parameters outside the embeddings, same steps, from scratch"
        systems.append(elm_system(UNIFORM, uniform, device, note))
    heads = {name: load_teacher_classifier(context, teacher, name) for name in context.tasks}
    note = f"{context.teacher.num_layers} layers, {config.teacher.head} head"
    systems.append(teacher_system(TEACHER, heads, device, note))
    if config.baselines.half_teacher and (cut := _half_depth(context.teacher)) is not None:
        note = f"first {cut.num_layers} layers, refitted linear head"
        systems.append(teacher_system(HALF, _linear_heads(context, cut), device, note))
    rows = {name: context.test_rows(name) for name in context.tasks}
    for system in systems:
        system.results = {name: _predict(system.logits[name], rows[name], name) for name in context.tasks}
    table = [_row(system, context.tasks, rows) for system in systems]
    times = _measure(systems, condition, context)
    for line in table:
        line["latency_ms"], line["latency_iqr_ms"] = times[line["name"]]
        line["condition"] = _condition(line["name"], condition)
    comparison = None
    if config.baselines.tfidf:
        found, comparison = _tfidf(context, rows, systems[0])
        if found:
            table.append(found)
    write_json(folder / "evaluation.json", {
        "systems": table, "comparison": comparison,
        "tasks": {
            name: {"metric": task.data.metric, "value": table[0]["tasks"][name], "split": "test", "n": len(rows[name])}
            for name, task in context.tasks.items()
        },
    })  # fmt: skip
    for line in table:
        context.log("system", **{key: line[key] for key in ("name", "tasks", "params", "latency_ms")})


def _row(system: System, tasks: dict[str, Task], rows: dict[str, TaskRows]) -> dict[str, Any]:
    return {
        "name": system.name, "params": system.params, "megabytes": system.megabytes, "note": system.note,
        "params_outside_embeddings": system.params_outside_embeddings,
        "tasks": {name: score(task, system.results[name], rows[name].labels) for name, task in tasks.items()},
    }  # fmt: skip


def _tfidf(
    context: Context, rows: dict[str, TaskRows], ours: System
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """TF-IDF on the same training and test rows, and the paired bootstrap of the first classification task."""
    scores, comparison = {}, None
    for name, task in context.tasks.items():
        if task.kind != "classification" or task.data.is_pair:
            continue
        train = task.data.train
        found = tfidf_baseline(list(train["text"]), list(train["label"]), list(task.data.test["text"]))
        labels = rows[name].labels.numpy()
        scores[name] = float(
            score(task, torch.nn.functional.one_hot(torch.from_numpy(found), task.num_outputs), rows[name].labels)
        )
        if comparison is None:
            mine = predictions(ours.results[name], task.kind).numpy()
            difference, low, high = paired_bootstrap(
                mine == labels, found == labels, resamples=RESAMPLES, seed=derive_seed(context.config.seed, "bootstrap")
            )
            comparison = {
                "against": TFIDF, "task": name, "difference": difference, "low": low, "high": high,
                "resamples": RESAMPLES, "n": len(labels),
            }  # fmt: skip
    if not scores:
        return None, None
    row = {
        "name": TFIDF, "params": None, "params_outside_embeddings": None, "megabytes": None, "latency_ms": None,
        "latency_iqr_ms": None, "condition": "", "note": "fitted in this run on the same rows", "tasks": scores,
    }  # fmt: skip
    return row, comparison


def _half_depth(teacher: Teacher) -> Teacher | None:
    try:
        return half_depth(teacher)
    except UserError as error:
        logger.warning("the half-depth teacher is left out: %s", error)
        return None


def _linear_heads(context: Context, teacher: Teacher) -> dict[str, Classifier]:
    return {name: linear_classifier(teacher, task, context.config.seed)[0] for name, task in context.tasks.items()}


def _measure(
    systems: list[System], condition: LatencyCondition, context: Context
) -> dict[str, tuple[float | None, float | None]]:
    ids = torch.randint(
        5, min(1000, context.settings.vocab_size), (condition.batch_size, condition.sequence_length),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    timed = {system.name: (lambda forward=system.forward: forward(batch)) for system in systems if system.forward}
    with pinned_threads(condition.threads):
        times = time_interleaved(timed, repeats=_LATENCY_REPEATS)
    found: dict[str, tuple[float | None, float | None]] = {name: median_iqr(values) for name, values in times.items()}
    return {system.name: found.get(system.name, (None, None)) for system in systems}


def _condition(name: str, condition: LatencyCondition) -> str:
    text = condition.describe()
    return text.replace("eager fp32", "onnx-int8") if name == INT8 else text


def _predict(logits_of: Callable[[Batch], Tensor], rows: TaskRows, name: str) -> Tensor:
    batches, order = evaluation_batches(rows, name)
    return in_row_order(torch.cat([logits_of(batch).float().cpu() for batch in batches]), order)


def _torch_logits(model: ElmForSequenceClassification) -> Callable[[Batch], Tensor]:
    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        known = ("input_ids", "attention_mask", "token_type_ids")
        logits_BC: Tensor = model(**{name: batch[name].to(model.device) for name in known if name in batch}).logits
        return logits_BC

    return run


def _classifier_logits(classifier: Classifier) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        known = ("input_ids", "attention_mask", "token_type_ids")
        device = classifier.teacher.device
        return classifier.logits(**{name: batch[name].to(device) for name in known if name in batch})

    return run


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _onnx_logits(session: Any) -> Callable[[Batch], Tensor]:
    names = [item.name for item in session.get_inputs()]

    def run(batch: Batch) -> Tensor:
        feeds = {name: batch[name].numpy() if name in batch else np.zeros_like(batch["input_ids"]) for name in names}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 2**20, 2)
