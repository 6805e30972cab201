"""Test scores, sizes and latencies of our model and of the systems it must be compared with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.layer_parts import Model
from elm_nni.cost.onnx_graph import open_session
from elm_nni.data.metrics import compute_metric, paired_bootstrap, tfidf_baseline
from elm_nni.data.outputs import TokenizedRows, of_documents
from elm_nni.data.tasks import TaskData
from elm_nni.digest import derive_seed
from elm_nni.distillation.fine_tuned import FineTunedClassifier
from elm_nni.distillation.language import FittedHead, LanguageTeacher
from elm_nni.distillation.student import inputs_of
from elm_nni.distillation.teacher import Teacher, first_layers
from elm_nni.errors import UserError
from elm_nni.kinds import logits_of
from elm_nni.modeling.modeling_elm import ElmPreTrainedModel
from elm_nni.modeling.saved import load_saved
from elm_nni.pipeline.context import Context, Task
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.system_latency import SystemLatency, classifier_module, measure_systems
from elm_nni.pipeline.teacher_stage import (
    Classifier,
    linear_classifier,
    load_teacher_classifier,
    predictor,
)

logger = logging.getLogger(__name__)

OURS, INT8, UNIFORM = "ELM (ours)", "ELM int8 ONNX", "uniform bert"
TEACHER, HALF, TFIDF = "teacher + head", "teacher half depth", "TF-IDF + logistic regression"
RESAMPLES = 10_000

Batch = dict[str, Any]


@dataclass
class System:
    """One row of the table: how to predict each task, what it weighs, and what to time: a module or an ONNX file."""

    name: str
    logits: dict[str, Callable[[Batch], Tensor]]
    params: int | None = None
    params_outside_embeddings: int | None = None
    megabytes: float | None = None
    note: str = ""
    module: nn.Module | None = None
    file: Path | None = None
    results: dict[str, Tensor] = field(default_factory=dict)


def elm_system(name: str, folders: dict[str, Path], device: str, note: str = "") -> System:
    """Our model, or another ELM architecture, fine-tuned on each task."""
    models: dict[str, Any] = {task: load_saved(folder).to(device) for task, folder in folders.items()}
    first = next(iter(models))
    encoder = models[first].elm
    outside = encoder.num_parameters_outside_embeddings()
    return System(
        name, {task: _torch_logits(model) for task, model in models.items()},
        params=sum(p.numel() for p in encoder.parameters()), params_outside_embeddings=outside,
        megabytes=_megabytes(folders[first] / "model.safetensors"), note=note, module=Model(models[first]),
    )  # fmt: skip


def onnx_system(name: str, files: dict[str, Path], reference: System, threads: int, note: str = "") -> System:
    """The same models as ONNX files in onnxruntime."""
    sessions = {task: open_session(path, threads) for task, path in files.items()}
    first = next(iter(files))
    return System(
        name, {task: _onnx_logits(session) for task, session in sessions.items()}, params=reference.params,
        params_outside_embeddings=reference.params_outside_embeddings, megabytes=_megabytes(files[first]), note=note,
        file=files[first],
    )  # fmt: skip


def teacher_system(name: str, classifiers: dict[str, Classifier], device: str, note: str = "") -> System:
    """A teacher with a head for each task."""
    for classifier in classifiers.values():
        classifier.teacher.to(device)
        if isinstance(classifier, FineTunedClassifier):
            classifier.model.to(device)
    teacher = next(iter(classifiers.values())).teacher
    table = teacher.model.get_input_embeddings().weight.numel()
    embeddings = [module for path, module in teacher.model.named_modules() if path.split(".")[-1] == "embeddings"]
    inside = sum(p.numel() for p in embeddings[0].parameters()) if embeddings else table
    return System(
        name, {task: _classifier_logits(classifier) for task, classifier in classifiers.items()},
        params=teacher.num_parameters, params_outside_embeddings=teacher.num_parameters - inside,
        megabytes=round(teacher.num_parameters * 4 / 2**20, 2), note=note,
        module=classifier_module(next(iter(classifiers.values()))),
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
    note = f"{context.teacher.num_layers} layers, {_heads_of(heads, config.teacher.head)}"
    systems.append(teacher_system(TEACHER, heads, device, note))
    linear = all(task.kind.linear_head is not None for task in context.tasks.values())
    if linear and config.baselines.half_teacher and (cut := _half_depth(context.teacher)) is not None:
        note = f"first {cut.num_layers} layer{'' if cut.num_layers == 1 else 's'}, refitted linear head"
        systems.append(teacher_system(HALF, _linear_heads(context, cut), device, note))
    rows = {name: context.test_rows(name) for name in context.tasks}
    for system in systems:
        system.results = {
            name: task.outputs(system.logits[name], rows[name]) for name, task in context.tasks.items()
        }
    table = [_row(system, context.tasks, rows) for system in systems]
    for line, system in zip(table, systems):
        _add_further_tests(line, system, context)
    times = measure_systems(
        {system.name: system.module for system in systems if system.module is not None},
        {system.name: system.file for system in systems if system.file is not None},
        condition, context.settings.vocab_size,
    )  # fmt: skip
    for line in table:
        _add_latency(line, times[line["name"]])
    tfidf = _tfidf(context) if config.baselines.tfidf else {}
    if tfidf:
        table.append(_tfidf_row(tfidf, context.tasks, rows))
    comparisons = _comparisons(systems, tfidf, context, rows)
    write_json(folder / "evaluation.json", {
        "systems": table, "comparisons": comparisons,
        "comparison": next((one for one in comparisons if one["against"] == TFIDF), None),
        "tasks": {
            name: {
                "kind": task.kind.name, "metric": task.data.metric, "value": table[0]["tasks"][name], "split": "test",
                "n": task.kind.num_scored(rows[name]), "metrics": table[0]["metrics"][name],
            }
            for name, task in context.tasks.items()
        },
    })  # fmt: skip
    for line in table:
        context.log("system", **{key: line[key] for key in ("name", "tasks", "params", "latency_ms")})


def _row(system: System, tasks: dict[str, Task], rows: dict[str, TokenizedRows]) -> dict[str, Any]:
    found = {
        name: task.scores(system.results[name], rows[name], threshold=task.threshold(system.logits[name]))
        for name, task in tasks.items()
    }
    return {
        "name": system.name, "params": system.params, "megabytes": system.megabytes, "note": system.note,
        "params_outside_embeddings": system.params_outside_embeddings,
        "tasks": {name: found[name][task.data.metric] for name, task in tasks.items()}, "metrics": found,
    }  # fmt: skip


def _add_further_tests(line: dict[str, Any], system: System, context: Context) -> None:
    """Adds the metrics on test rows beside the main ones, such as ``mismatched accuracy`` of MNLI."""
    for name, task in context.tasks.items():
        for test, rows in context.further_test_rows(name).items():
            scores = task.scores(task.outputs(system.logits[name], rows), rows)
            line["metrics"][name] |= {f"{test} {metric}": value for metric, value in scores.items()}


def takes_tfidf(task: Task) -> bool:
    """Whether the task has classes of single texts."""
    return isinstance(task.data, TaskData) and task.data.kind == "classification" and not task.data.is_pair


def tfidf_classes(task: Task, split: str) -> NDArray[np.int64]:
    """Class ids (N,) that TF-IDF, fitted on the training rows, gives the rows of ``validation`` or ``test``.

    Args:
        task: one that :func:`takes_tfidf`.
        split: name of the rows.
    """
    data: Any = task.data
    return tfidf_baseline(list(data.train["text"]), list(data.train["label"]), list(getattr(data, split)["text"]))


def _tfidf(context: Context) -> dict[str, NDArray[np.int64]]:
    """Classes of the test rows by task, for those that TF-IDF can take."""
    return {name: tfidf_classes(task, "test") for name, task in context.tasks.items() if takes_tfidf(task)}


def _tfidf_row(
    found: dict[str, NDArray[np.int64]], tasks: dict[str, Task], rows: dict[str, TokenizedRows]
) -> dict[str, Any]:
    scores = {
        name: compute_metric(tasks[name].data.metric, classes_N, rows[name].labels.numpy())
        for name, classes_N in found.items()
    }
    return {
        "name": TFIDF, "params": None, "params_outside_embeddings": None, "megabytes": None, "latency_ms": None,
        "latency_iqr_ms": None, "condition": "", "note": "fitted in this run on the same rows", "tasks": scores,
        "metrics": {name: {tasks[name].data.metric: value} for name, value in scores.items()},
    }  # fmt: skip


def _comparisons(
    systems: list[System], tfidf: dict[str, NDArray[np.int64]], context: Context, rows: dict[str, TokenizedRows]
) -> list[dict[str, Any]]:
    """Paired bootstrap of ours minus each other system in accuracy, for every classification task."""
    found = []
    seed = derive_seed(context.config.seed, "bootstrap")
    for name, task in context.tasks.items():
        if task.data.kind != "classification":
            continue
        labels_N = rows[name].labels.numpy()
        classes = {one.name: one.results[name].argmax(-1).numpy() for one in systems if one.name != INT8}
        classes |= {TFIDF: tfidf[name]} if name in tfidf else {}
        ours_N = classes.pop(OURS) == labels_N
        for against, classes_N in classes.items():
            difference, low, high = paired_bootstrap(ours_N, classes_N == labels_N, resamples=RESAMPLES, seed=seed)
            found.append({
                "against": against, "task": name, "metric": "accuracy", "difference": difference, "low": low,
                "high": high, "resamples": RESAMPLES, "n": len(labels_N),
            })  # fmt: skip
    return found


def _heads_of(classifiers: dict[str, Classifier], how: str) -> str:
    """What the teacher's heads are, in words."""
    language = [one.head for one in classifiers.values() if isinstance(one, LanguageTeacher)]
    kinds = {"fitted language-model head" if isinstance(head, FittedHead) else "its own head" for head in language}
    return ", ".join(sorted(kinds | ({f"{how} head"} if len(language) < len(classifiers) else set())))


def _half_depth(teacher: Teacher) -> Teacher | None:
    try:
        return first_layers(teacher, teacher.num_layers // 2)
    except UserError as error:
        logger.warning("the half-depth teacher is left out: %s", error)
        return None


def _linear_heads(context: Context, teacher: Teacher) -> dict[str, Classifier]:
    return {name: linear_classifier(teacher, task, context.config.seed)[0] for name, task in context.tasks.items()}


def _add_latency(line: dict[str, Any], found: SystemLatency) -> None:
    line["latency_ms"], line["latency_iqr_ms"], line["condition"] = found.median_ms, found.iqr_ms, found.condition
    if found.reason:
        line["note"] = "; ".join(filter(None, [line["note"], f"latency not measured: {found.reason}"]))


def _torch_logits(model: ElmPreTrainedModel) -> Callable[[Batch], Tensor]:
    @torch.inference_mode()
    def run(batch: Batch) -> Tensor:
        return logits_of(model(**{name: value.to(model.device) for name, value in inputs_of(batch).items()}))

    return run


def _classifier_logits(classifier: Classifier) -> Callable[[Batch], Tensor]:
    predict = predictor(classifier)

    def run(batch: Batch) -> Tensor:
        device = classifier.teacher.device
        return predict({name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)})

    return run


def _onnx_logits(session: Any) -> Callable[[Batch], Tensor]:
    """Logits as a kind has them; the documents of a packed row are run one by one, since a file knows of none."""
    names = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()]

    def run(batch: Batch) -> Tensor:
        feeds = {name: batch[name].numpy() if name in batch else np.zeros_like(batch["input_ids"]) for name in names}
        return logits_of(SimpleNamespace(**dict(zip(outputs, map(torch.from_numpy, session.run(None, feeds))))))

    return lambda batch: of_documents(run, batch) if "document_ids" in batch else run(batch)


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 2**20, 2)
