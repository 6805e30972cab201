"""A run: the stages in their order, each built once for what it depends on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elm_nni.cost.latency_table import LatencyTable
from elm_nni.cost.parameters import count_parameters, parameters_outside_embeddings, uniform_width
from elm_nni.errors import UserError
from elm_nni.pipeline import (
    evaluate_stage,
    latency_stage,
    precision,
    prune_stage,
    search_stage,
    student_stage,
    supernet_stage,
    teacher_stage,
)
from elm_nni.pipeline.checks import check_inputs
from elm_nni.pipeline.config import Config
from elm_nni.pipeline.context import Context, latency_condition
from elm_nni.pipeline.export_stage import build_onnx, export_model, onnx_inputs
from elm_nni.pipeline.probe import Point, read_points
from elm_nni.pipeline.run_dir import RESULTS, RunDirectory
from elm_nni.pipeline.store import StageResult, StageStore, versions, write_json
from elm_nni.pipeline.validation import validate
from elm_nni.pipeline.vocabulary_stage import vocabulary_facts
from elm_nni.search_spaces.architecture import architecture_digest
from elm_nni.seeding import seeded

logger = logging.getLogger(__name__)

Architecture = dict[str, Any]
Announce = Callable[[str, StageResult], None]


class Run:
    """Builds stages on demand; a stage asks for those it needs, and what is finished is not built again.

    Args:
        config: the resolved configuration.
        store: where stages live.
        directory: where the run's own files are; opened or made here.
        announce: called with the name and result of each stage when it is finished.
        observe: called with the validation metric of each supernet epoch and each generation, once and in order, those
            of stages that were found included.

    Raises:
        UserError: the directory is of another configuration or cannot be written.

    Example::

        run = Run(load_config("nano"), StageStore(default_store()), Path("runs/nano"))
        results = run.all()
    """

    def __init__(
        self, config: Config, store: StageStore, directory: Path, announce: Announce = lambda name, result: None,
        observe: Callable[[Point], None] = lambda point: None,
    ) -> None:  # fmt: skip
        self.config = config
        self.directory = RunDirectory(directory, config)
        self.context = Context(config, store, self.directory.log, self._observe)
        self._observer, self._observed = observe, set[tuple[str, int]]()
        self.announce = announce
        self._finished: dict[str, StageResult] = {}
        self._checked = False

    @property
    def trained(self) -> bool:
        """Whether any stage of this run was built, not found."""
        return any(not result.cached for result in self._finished.values())

    @property
    def num_stages(self) -> int:
        """Stages that this run has gone through."""
        return len(self._finished)

    def precision(self) -> dict[str, str]:
        """``student`` and ``teacher``: ``"fp32"`` or ``"bf16"``."""
        result = self._stage(
            "precision",
            precision.precision_inputs(self.context),
            lambda folder: precision.build_precision(self.context, folder),
        )
        found = precision.load_precision(result.folder)
        return {"student": found["student"], "teacher": found["teacher"]}

    def latency(self) -> LatencyTable:
        """The latency table: the user's own, checked against the condition, or measured here."""
        table = latency_stage.given_table(self.context)
        if table is not None:
            return table
        inputs = latency_stage.latency_inputs(self.context)
        result = self._stage(
            "latency", inputs, lambda folder: latency_stage.build_latency(self.context, folder), "latency"
        )
        return latency_stage.load_latency(result.folder)

    def check(self) -> None:
        """Everything that can be refused before training, looked at once: data, tasks, vocabulary, limits, growth."""
        if self._checked:
            return
        check_inputs(self.context)
        search_stage.check_reachable(self.context, self.latency(), self.config.limits)
        self._checked = True

    def teacher(self) -> StageResult:
        """Teacher heads and logits."""
        fitted = self.lm_head()
        inputs = teacher_stage.teacher_inputs(self.context, fitted.digest if fitted else None)
        return self._stage(
            "teacher", inputs,
            lambda folder: teacher_stage.build_teacher(self.context, folder, fitted.folder if fitted else None),
            "teacher",
        )  # fmt: skip

    def lm_head(self) -> StageResult | None:
        """The language-model head that is fitted for a teacher without one; None where it has its own or needs none."""
        if not teacher_stage.needs_lm_head(self.context):
            return None
        inputs = teacher_stage.lm_head_inputs(self.context)
        return self._stage("lm_head", inputs, lambda folder: teacher_stage.build_lm_head(self.context, folder))

    def supernet(self) -> StageResult:
        """The distilled and grown supernet."""
        self.check()
        chosen = self.precision()
        inputs = supernet_stage.supernet_inputs(self.context, chosen)
        result = self._stage(
            "supernet", inputs, lambda folder: supernet_stage.build_supernet(self.context, folder, chosen), "supernet"
        )
        self._observe_all(result)
        if (result.folder / supernet_stage.GROWTH).exists():
            self.directory.link(supernet_stage.GROWTH, result.folder / supernet_stage.GROWTH)
        return result

    def supernet_tasks(self) -> StageResult:
        """The supernet fine-tuned on the tasks."""
        self.check()
        teacher, supernet, chosen = self.teacher(), self.supernet(), self.precision()
        inputs = supernet_stage.supernet_tasks_inputs(self.context, supernet.digest, teacher.digest, chosen)
        result = self._stage(
            "supernet_tasks", inputs,
            lambda folder: supernet_stage.build_supernet_tasks(
                self.context, folder, supernet.folder, teacher.folder, chosen
            ),
            "supernet_tasks",
        )  # fmt: skip
        self._observe_all(result)
        return result

    def search(self) -> StageResult:
        """The winner of the search under the limits."""
        supernet, table = self.supernet_tasks(), self.latency()
        inputs = search_stage.search_inputs(self.context, supernet.digest, table, self.config.limits)
        result = self._stage(
            "search", inputs,
            lambda folder: search_stage.build_search(self.context, folder, supernet.folder, table, self.config.limits),
            "search",
        )  # fmt: skip
        self._observe_all(result)
        return result

    def prune(self) -> StageResult:
        """The winner after the head step."""
        supernet, search = self.supernet_tasks(), self.search()
        return self._stage(
            "prune", prune_stage.prune_inputs(self.context, search.digest),
            lambda folder: prune_stage.build_prune(self.context, folder, supernet.folder, search.folder), "prune",
        )  # fmt: skip

    def architecture(self) -> Architecture:
        """The canonical architecture that is trained and exported."""
        return prune_stage.pruned_architecture(self.prune().folder)

    def retrain(self) -> dict[str, StageResult]:
        """Task name to the winner trained on text and fine-tuned on that task."""
        inherited = None
        if self.config.retrain.init == "inherit":
            inherited = self.prune()
        return self.train(self.architecture(), "retrain", inherited)

    def validate(self) -> dict[str, float]:
        """What tuning compares runs by: the trained winner on validation rows, and its costs; test rows stay unread.

        Returns:
            ``validation``, the mean over tasks of the main metric; ``params``; ``params_outside_embeddings``;
            ``latency_ms``, predicted by the table; and each task's metric by its name.
        """
        scores = student_stage.validation_scores(self.retrain())
        architecture, settings = self.architecture(), self.context.settings
        return {
            "validation": sum(scores.values()) / len(scores),
            "params": count_parameters(architecture, settings),
            "params_outside_embeddings": parameters_outside_embeddings(architecture, settings),
            "latency_ms": round(self.latency().predict(architecture), 4),
            **scores,
        }

    def uniform(self) -> dict[str, StageResult]:
        """The uniform ``bert`` architecture of the winner's size, trained the same way; empty if there is none."""
        size = parameters_outside_embeddings(self.architecture(), self.context.settings)
        try:
            architecture = uniform_width("bert", size, self.context.settings)
        except UserError as error:
            logger.warning("the uniform baseline is left out: %s", error)
            return {}
        return self.train(architecture, "uniform", None)

    def train(self, architecture: Architecture, name: str, inherited: StageResult | None) -> dict[str, StageResult]:
        """Trains any architecture with the recipe of ``retrain``; one that was trained before is not trained again."""
        context, chosen, teacher = self.context, self.precision(), self.teacher()
        source = inherited.folder / prune_stage.PRUNED if inherited else None
        inputs = student_stage.pretrain_inputs(context, architecture, chosen, inherited.digest if inherited else None)
        pretrained = self._stage(
            "pretrain", inputs,
            lambda folder: student_stage.build_pretrain(context, folder, architecture, chosen, source),
            label=f"{name} pretrain",
        )  # fmt: skip
        return {
            task.name: self._stage(
                "finetune", student_stage.finetune_inputs(context, pretrained.digest, teacher.digest, task, chosen),
                partial(
                    student_stage.build_finetune, context, architecture=architecture, pretrain=pretrained.folder,
                    teacher=teacher.folder, task=task, precision=chosen,
                ),
                label=f"{name} {task.name}",
            )
            for task in context.tasks.values()
        }  # fmt: skip

    def onnx(self, *, int8: bool) -> dict[str, StageResult]:
        """Task name to its ONNX files."""
        return {
            name: self._stage(
                "onnx", onnx_inputs(result.digest, int8),
                partial(
                    build_onnx, result.folder / "model", int8=int8, pairs=self.context.tasks[name].data.is_pair,
                    max_length=self.context.tasks[name].data.max_length,
                ),
                label=f"onnx {name}",
            )
            for name, result in self.retrain().items()
        }  # fmt: skip

    def evaluate(self) -> StageResult:
        """Test scores, sizes and latencies of our model and the baselines; writes ``results.json``."""
        models, teacher = self.retrain(), self.teacher()
        uniform = self.uniform() if self.config.baselines.uniform else {}
        onnx = self.onnx(int8=True) if self.config.export.int8 else {}
        condition = latency_condition(self.config)
        inputs = {
            "models": {name: result.digest for name, result in models.items()}, "teacher": teacher.digest,
            "uniform": {name: result.digest for name, result in uniform.items()},
            "onnx": {name: result.digest for name, result in onnx.items()},
            "baselines": asdict(self.config.baselines), "condition": asdict(condition),
            "metrics": {name: list(task.data.metrics) for name, task in self.context.tasks.items()},
        }  # fmt: skip
        result = self._stage(
            "evaluate", inputs,
            lambda folder: evaluate_stage.build_evaluate(
                self.context, folder, models={name: one.folder / "model" for name, one in models.items()},
                uniform={name: one.folder / "model" for name, one in uniform.items()} or None, teacher=teacher.folder,
                onnx={name: one.folder / "model-int8.onnx" for name, one in onnx.items()} or None, condition=condition,
            ),
        )  # fmt: skip
        if self.trained or not (self.directory.path / RESULTS).exists():
            self._write_results(result)
        return result

    def export(self, *, onnx: bool | None = None, int8: bool | None = None) -> Path:
        """Writes ``model/``: the Hugging Face model with its code, tokenizer, card and, by option, ONNX files.

        Args:
            onnx: None takes ``export.onnx``.
            int8: None takes ``export.int8``.
        """
        options = self.config.export
        onnx, int8 = options.onnx if onnx is None else onnx, options.int8 if int8 is None else int8
        models = {name: result.folder / "model" for name, result in self.retrain().items()}
        files = {name: result.folder for name, result in self.onnx(int8=int8).items()} if onnx else {}
        results = self.directory.path / RESULTS
        facts = json.loads(results.read_text(encoding="utf-8")) if results.exists() else None
        kinds = {name: task.kind for name, task in self.context.tasks.items()}
        return export_model(self.directory.path / "model", models, kinds, files, facts)

    def all(self) -> dict[str, Any]:
        """Every stage; returns ``results.json``."""
        self.evaluate()
        if self.trained or not (self.directory.path / "model").exists():
            self.export()
        return self.results()

    def results(self) -> dict[str, Any]:
        """``results.json`` of a run that was evaluated."""
        return json.loads((self.directory.path / RESULTS).read_text(encoding="utf-8"))

    def _observe(self, point: Point) -> None:
        if (point.phase, point.step) not in self._observed:
            self._observed.add((point.phase, point.step))
            self._observer(point)

    def _observe_all(self, result: StageResult) -> None:
        """Tells the points of a stage that was found, or those before a resume."""
        for point in read_points(self.context, result.folder):
            self._observe(point)

    def _stage(
        self, name: str, inputs: dict[str, Any], builder: Callable[[Path], None], link: str | None = None,
        label: str | None = None,
    ) -> StageResult:  # fmt: skip
        label = label or name
        if label not in self._finished:
            if self.context.store.finished(name, inputs) is None:
                self.directory.log("stage", stage=label, state="started")
            with seeded(self.config.seed, name):
                result = self.context.store.build(name, inputs, builder)
            self._finished[label] = result
            self.directory.record(label, result, link)
            self.directory.log(
                "stage", stage=label, state="cached" if result.cached else "finished", seconds=result.seconds
            )
            self.announce(label, result)
        return self._finished[label]

    def _write_results(self, evaluation: StageResult) -> None:
        found = json.loads((evaluation.folder / "evaluation.json").read_text(encoding="utf-8"))
        architecture, settings, table = self.architecture(), self.context.settings, self.latency()
        ours = found["systems"][0]
        write_json(
            self.directory.path / RESULTS,
            {
                **found, "architecture": architecture, "digest": architecture_digest(architecture),
                "params": count_parameters(architecture, settings),
                "vocabulary": None if self.context.vocabulary is None else vocabulary_facts(self.context.vocabulary),
                "params_outside_embeddings": parameters_outside_embeddings(architecture, settings),
                "param_budget": self.config.limits.max_params,
                "latency_ms": {
                    "predicted": table.predict(architecture), "measured": ours["latency_ms"],
                    "limit": self.config.limits.max_latency_ms, "condition": table.condition.describe(),
                },
                "baselines": [line["name"] for line in found["systems"][1:]],
                "stages": {
                    label: {"seconds": one.seconds, "cached": one.cached, "peak_memory_mb": one.peak_memory_mb}
                    for label, one in self._finished.items()
                },
                "versions": versions(), "seed": self.config.seed, "device": device_name(self.context.device),
            },
        )  # fmt: skip


def with_latency_limit(config: Config, milliseconds: float) -> Config:
    """The same run under another latency limit."""
    changed = replace(config, limits=replace(config.limits, max_latency_ms=milliseconds))
    validate(changed)
    return changed


def with_strategy(config: Config, strategy: str, objectives: tuple[str, ...] | None = None) -> Config:
    """The same run searched by another strategy, for other objectives."""
    search = replace(config.search, strategy=strategy, objectives=objectives or config.search.objectives)
    changed = replace(config, search=search)
    validate(changed)
    return changed


def device_name(device: str) -> str:
    """The accelerator's name, or the processor's with the threads in use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = "cpu"
    return f"{name}, {torch.get_num_threads()} threads"
