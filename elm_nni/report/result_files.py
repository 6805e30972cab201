"""Reads ``results.json``: architecture, scores, systems, comparisons and the cost of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elm_nni.report.fields import Fields, read_object

RESULTS_FILE = "results.json"

Verdict = Literal["ahead", "behind", "open"]


@dataclass(frozen=True)
class Layer:
    """One layer of the final architecture."""

    index: int
    block: str
    ffn: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Latency:
    """Latencies in milliseconds under ``condition``; what was not predicted, measured or limited is ``None``."""

    predicted: float | None
    measured: float | None
    limit: float | None
    condition: str


@dataclass(frozen=True)
class TaskResult:
    """The exported model's score on one task."""

    metric: str
    value: float
    split: str
    num_examples: int


@dataclass(frozen=True)
class System:
    """One row of the results table: the main metric of each task, and all of them; what is not known is ``None``."""

    name: str
    tasks: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]
    params: int | None
    params_outside_embeddings: int | None
    megabytes: float | None
    latency_ms: float | None
    condition: str
    note: str


@dataclass(frozen=True)
class Comparison:
    """Paired bootstrap of ours minus ``against`` in ``metric`` on the test rows of one task."""

    against: str
    task: str
    metric: str
    difference: float
    low: float
    high: float
    resamples: int
    num_examples: int

    @property
    def verdict(self) -> Verdict:
        """What the interval supports: one that includes zero, if only with its end, is ``"open"``."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "open"


@dataclass(frozen=True)
class Stage:
    """Cost of one stage; peak memory in MiB as recorded, or ``None``."""

    name: str
    seconds: float
    cached: bool
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Results:
    """``results.json``."""

    layers: tuple[Layer, ...]
    digest: str
    params: int
    params_outside_embeddings: int | None
    param_budget: int | None
    latency: Latency
    tasks: Mapping[str, TaskResult]
    systems: tuple[System, ...]
    comparisons: tuple[Comparison, ...]
    stages: tuple[Stage, ...]
    versions: Mapping[str, str]
    seed: int | None
    device: str


def load_results(run_dir: Path) -> Results | None:
    """``results.json``, or ``None`` where it is missing.

    Raises:
        UserError: the file is broken.
    """
    fields = read_object(run_dir, RESULTS_FILE)
    if fields is None:
        return None
    latency = fields.fields("latency_ms", optional=True)
    return Results(
        layers=_architecture(fields.fields("architecture")),
        digest=fields.text("digest", ""),
        params=fields.integer("params"),
        params_outside_embeddings=fields.optional_integer("params_outside_embeddings"),
        param_budget=fields.optional_integer("param_budget"),
        latency=Latency(
            predicted=latency.optional_number("predicted"),
            measured=latency.optional_number("measured"),
            limit=latency.optional_number("limit"),
            condition=latency.text("condition", ""),
        ),
        tasks=_tasks(fields.fields("tasks", optional=True)),
        systems=tuple(_system(system) for system in fields.objects("systems", optional=True)),
        comparisons=_comparisons(fields),
        stages=_stages(fields.fields("stages", optional=True)),
        versions={key: str(value) for key, value in fields.fields("versions", optional=True).values.items()},
        seed=fields.optional_integer("seed"),
        device=fields.text("device", ""),
    )


def _architecture(sample: Fields) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    while f"layer{len(layers)}" in sample.values:
        index = len(layers)
        block = sample.text(f"layer{index}")
        cell = f"layer{index}_{block}"
        layers.append(
            Layer(
                index=index,
                block=block,
                ffn=sample.integer(f"{cell}_ffn"),
                heads=sample.integer(f"{cell}_heads"),
                head_dim=sample.integer(f"{cell}_head_dim"),
            )
        )
    if not layers:
        raise sample.fail("layer0", "the name of a block")
    return tuple(layers)


def _tasks(fields: Fields) -> dict[str, TaskResult]:
    tasks = {name: fields.fields(name) for name in fields.values}
    return {
        name: TaskResult(task.text("metric"), task.number("value"), task.text("split", ""), task.integer("n"))
        for name, task in tasks.items()
    }


def _system(fields: Fields) -> System:
    metrics = fields.fields("metrics", optional=True)
    return System(
        name=fields.text("name"),
        tasks=fields.fields("tasks", optional=True).numbers(),
        metrics={task: metrics.fields(task).numbers() for task in metrics.values},
        params=fields.optional_integer("params"),
        params_outside_embeddings=fields.optional_integer("params_outside_embeddings"),
        megabytes=fields.optional_number("megabytes"),
        latency_ms=fields.optional_number("latency_ms"),
        condition=fields.text("condition", ""),
        note=fields.text("note", ""),
    )


def _comparisons(results: Fields) -> tuple[Comparison, ...]:
    """All intervals; a run that kept only the one against TF-IDF has it under ``comparison``."""
    found = results.objects("comparisons", optional=True)
    if not found and results.values.get("comparison"):
        found = [results.fields("comparison")]
    return tuple(_comparison(fields) for fields in found)


def _comparison(fields: Fields) -> Comparison:
    comparison = Comparison(
        against=fields.text("against"),
        task=fields.text("task"),
        metric=fields.text("metric", "accuracy"),
        difference=fields.number("difference"),
        low=fields.number("low"),
        high=fields.number("high"),
        resamples=fields.integer("resamples"),
        num_examples=fields.integer("n"),
    )
    if comparison.low > comparison.high:
        raise fields.fail("low", f"at most 'high' ({comparison.high})")
    return comparison


def _stages(fields: Fields) -> tuple[Stage, ...]:
    stages = {name: fields.fields(name) for name in fields.values}
    return tuple(
        Stage(name, stage.number("seconds"), stage.flag("cached"), stage.optional_number("peak_memory_mb"))
        for name, stage in stages.items()
    )
