"""The int8 form of a system: its models as ONNX graphs with weights in 8 bits, scored and timed in onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from elm_nni.cost.onnx_graph import quantize_graph, require, write_graph
from elm_nni.pipeline.context import Context, Task
from elm_nni.pipeline.evaluate_stage import System as Loaded
from elm_nni.pipeline.evaluate_stage import onnx_system
from elm_nni.pipeline.store import write_json
from elm_nni.pipeline.student_stage import SCORES
from quality.trial import LeftOut, Loader, Student, Students, Trial

FILE, FACTS = "model-int8.onnx", "facts.json"
_AXES = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}


def quantised(students: Students, load: Loader) -> Students:
    """Students of a system in int8; the models are those of the system."""

    def found(trial: Trial) -> list[Student]:
        return [_quantised(trial, one, load) for one in students(trial)]

    return found


def load_int8(name: str, folders: Mapping[str, Path], device: str) -> Loaded:
    """The graphs of all tasks as a system; onnxruntime runs them on the CPU, whatever the device."""
    files = {task: folder / FILE for task, folder in folders.items()}
    facts = json.loads((next(iter(folders.values())) / FACTS).read_text(encoding="utf-8"))
    return onnx_system(name, files, Loaded(name, {}, **facts), threads=1)


def _quantised(trial: Trial, one: Student, load: Loader) -> Student:
    run, models = trial.run(), {}
    for name, source in one.models.items():
        if run.context.tasks[name].kind.linear_head in (None, "identity"):
            raise LeftOut(f"task {name}: a graph holds the first output of a model, and that is not its logits here")
        build = partial(_build, run.context, task=run.context.tasks[name], source=source.folder / "model", load=load)
        inputs = {"model": f"{source.name}/{source.digest}"}
        models[name] = run.stage("int8", inputs, build, f"int8 {source.name} {source.digest}")
    stages = {**one.stages, **{f"int8 {name}": result for name, result in models.items()}}
    return Student(models, stages, one.architecture, one.facts)


def _build(context: Context, folder: Path, task: Task, source: Path, load: Loader) -> None:
    model = load(task.name, {task.name: source}, "cpu")
    assert model.module is not None
    target, plain = folder / "model", folder / "model" / "model.onnx"
    target.mkdir(exist_ok=True)
    ids_BT = torch.ones((2, 8), dtype=torch.long)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    require("onnx").save(write_graph(model.module.eval(), inputs, _AXES, ["logits"], plain), plain)
    quantize_graph(plain, target / FILE)
    plain.unlink()
    facts = {"params": model.params, "params_outside_embeddings": model.params_outside_embeddings}
    write_json(target / FACTS, facts)
    graph = load_int8(task.name, {task.name: target}, "cpu")
    value = task.score(task.outputs(graph.logits[task.name], task.validation), task.validation)
    write_json(folder / SCORES, {"validation": value})
