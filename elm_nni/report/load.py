"""Reads the files of a run directory into frozen dataclasses, or says in one line which value of which file is broken.

A file that is not there gives ``None`` or an empty tuple: the report leaves that part out and says so.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elm_nni.errors import UserError
from elm_nni.report.fields import Fields, parse_json, read_lines, read_object, read_text

GROWTH_FILE = "growth.jsonl"
HISTORY_FILE = "search/history.jsonl"
SUMMARY_FILE = "search/summary.json"
PARETO_FILE = "search/pareto.json"
CKA_FILE = "prune/cka.npz"
HEADS_FILE = "prune/heads.json"
RESULTS_FILE = "results.json"
MODEL_CONFIG_FILE = "model/config.json"

MODES = ("remove", "fuse")


@dataclass(frozen=True)
class GrowthEvent:
    """One cell (a block in a layer) that grew from ``old`` to ``new`` FFN features because of its ``score``."""

    cell: str
    old: int
    new: int
    score: float


@dataclass(frozen=True)
class GrowthEpoch:
    """What growth saw and did at the end of one supernet epoch; ``widths`` are those after the events."""

    epoch: int
    scores: Mapping[str, float]
    normalized: Mapping[str, float]
    widths: Mapping[str, int]
    events: tuple[GrowthEvent, ...]
    mean_params: float
    budget: float | None
    loss: float | None

    @property
    def num_events(self) -> int:
        """Cells that grew in this epoch."""
        return len(self.events)

    @property
    def budget_left(self) -> float | None:
        """Parameters that the mean architecture may still gain; negative where the budget is crossed."""
        return None if self.budget is None else self.budget - self.mean_params


@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture; ``metric`` is the search fitness, higher is better; a latency may be unknown."""

    generation: int
    digest: str
    metric: float
    params: int
    latency_ms: float | None
    origin: str


@dataclass(frozen=True)
class SearchSummary:
    """Counts of a finished search, its limits, and the candidate that won."""

    evaluated: int
    duplicates: int
    rejected: Mapping[str, int]
    limits: Mapping[str, float]
    best: Candidate


@dataclass(frozen=True)
class HeadLayer:
    """The head plan of one layer; ``kept`` and ``redundant`` number the heads before pruning."""

    layer: int
    before: int
    after: int
    kept: tuple[int, ...]
    redundant: tuple[int, ...]
    head_dim_before: int
    head_dim_after: int


@dataclass(frozen=True)
class HeadPruning:
    """The CKA step: plan, sweep over eta, and the matrices (H, H) before and after, by layer."""

    eta: float
    mode: str
    min_heads: int
    layers: tuple[HeadLayer, ...]
    eta_sweep: Mapping[float, tuple[int, ...]]
    cka_before: Mapping[int, NDArray[np.float64]]
    cka_after: Mapping[int, NDArray[np.float64]]

    @property
    def num_changed_layers(self) -> int:
        """Layers that end with another number of heads than they began with."""
        return sum(layer.after != layer.before for layer in self.layers)


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
    """One row of the results table; unknown sizes and latencies are ``None``."""

    name: str
    tasks: Mapping[str, float]
    params: int | None
    params_outside_embeddings: int | None
    megabytes: float | None
    latency_ms: float | None
    condition: str
    note: str


@dataclass(frozen=True)
class Comparison:
    """Paired bootstrap of ours minus ``against`` on the test rows of one task."""

    against: str
    task: str
    difference: float
    low: float
    high: float
    resamples: int
    num_examples: int


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
    comparison: Comparison | None
    stages: tuple[Stage, ...]
    versions: Mapping[str, str]
    seed: int | None
    device: str


@dataclass(frozen=True)
class RunData:
    """All a run directory holds for the report."""

    run_dir: Path
    growth: tuple[GrowthEpoch, ...]
    history: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    summary: SearchSummary | None
    pruning: HeadPruning | None
    results: Results | None
    model_class: str | None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The evaluated architectures; a search that keeps no history still shows its Pareto front."""
        return self.history or self.pareto


def load_run(run_dir: Path) -> RunData:
    """Reads a run directory.

    Example:
        >>> run = load_run(Path("runs/nano"))  # doctest: +SKIP
        >>> run.results.params                 # doctest: +SKIP

    Raises:
        UserError: the directory is missing, holds none of the files of a report, or one of them is broken.
    """
    if not run_dir.is_dir():
        raise UserError(f"run directory {str(run_dir)!r} does not exist or is not a directory")
    run = RunData(
        run_dir=run_dir,
        growth=tuple(_growth_epoch(line) for line in read_lines(run_dir, GROWTH_FILE)),
        history=tuple(_candidate(line) for line in read_lines(run_dir, HISTORY_FILE)),
        pareto=_load_pareto(run_dir),
        summary=_load_summary(run_dir),
        pruning=_load_pruning(run_dir),
        results=_load_results(run_dir),
        model_class=_load_model_class(run_dir),
    )
    if not (run.growth or run.candidates or run.summary or run.pruning or run.results):
        wanted = ", ".join((RESULTS_FILE, GROWTH_FILE, HISTORY_FILE, HEADS_FILE))
        raise UserError(f"run directory {str(run_dir)!r} holds nothing to report; at least one is needed of: {wanted}")
    return run


def parse_cell(cell: str) -> tuple[int, str] | None:
    """Layer number and block name of a cell such as ``layer3_bert_kv``, or ``None`` if it is no cell.

    Example:
        >>> parse_cell("layer3_bert_kv")
        (3, 'bert_kv')
    """
    prefix, _, block = cell.partition("_")
    number = prefix.removeprefix("layer")
    if not block or not prefix.startswith("layer") or not (number.isascii() and number.isdigit()):
        return None
    return int(number), block


def _growth_epoch(line: Fields) -> GrowthEpoch:
    for cell in line.fields("widths").values:
        if parse_cell(cell) is None:
            raise UserError(f"{line.place}: cell {cell!r:.80} is not of the form layer<number>_<block>")
    return GrowthEpoch(
        epoch=line.integer("epoch"),
        scores=line.fields("scores").numbers(),
        normalized=line.fields("normalized", optional=True).numbers(),
        widths=line.fields("widths").integers(),
        events=tuple(_growth_event(event) for event in line.objects("events")),
        mean_params=line.number("mean_params"),
        budget=line.optional_number("budget"),
        loss=line.optional_number("loss"),
    )


def _growth_event(event: Fields) -> GrowthEvent:
    cell = event.text("cell")
    if parse_cell(cell) is None:
        raise event.fail("cell", "of the form layer<number>_<block>")
    return GrowthEvent(cell, event.integer("old"), event.integer("new"), event.number("score"))


def _candidate(line: Fields) -> Candidate:
    latency = line.optional_number("latency_ms")
    return Candidate(
        generation=line.integer("generation"),
        digest=line.text("digest"),
        metric=line.number("metric"),
        params=line.integer("params"),
        latency_ms=latency,
        origin=line.text("origin", "unknown"),
    )


def _load_pareto(run_dir: Path) -> tuple[Candidate, ...]:
    path = run_dir / PARETO_FILE
    text = read_text(path)
    if text is None:
        return ()
    wrapped = Fields({"front": parse_json(text, str(path))}, str(path))
    return tuple(_candidate(line) for line in wrapped.objects("front"))


def _load_summary(run_dir: Path) -> SearchSummary | None:
    fields = read_object(run_dir, SUMMARY_FILE)
    if fields is None:
        return None
    return SearchSummary(
        evaluated=fields.integer("evaluated"),
        duplicates=fields.integer("duplicates"),
        rejected=fields.fields("rejected", optional=True).integers(),
        limits=fields.fields("limits", optional=True).numbers(),
        best=_candidate(fields.fields("best")),
    )


def _load_pruning(run_dir: Path) -> HeadPruning | None:
    fields = read_object(run_dir, HEADS_FILE)
    if fields is None:
        return None
    mode = fields.text("mode")
    if mode not in MODES:
        raise fields.fail("mode", " or ".join(MODES))
    layers = tuple(_head_layer(layer) for layer in fields.objects("layers"))
    before, after = _load_cka(run_dir / CKA_FILE, layers)
    return HeadPruning(
        eta=fields.number("eta"),
        mode=mode,
        min_heads=fields.integer("min_heads"),
        layers=layers,
        eta_sweep=_eta_sweep(fields.fields("eta_sweep", optional=True), len(layers)),
        cka_before=before,
        cka_after=after,
    )


def _head_layer(fields: Fields) -> HeadLayer:
    layer = HeadLayer(
        layer=fields.integer("layer"),
        before=fields.integer("before"),
        after=fields.integer("after"),
        kept=fields.indices("kept"),
        redundant=fields.indices("redundant"),
        head_dim_before=fields.integer("head_dim_before"),
        head_dim_after=fields.integer("head_dim_after"),
    )
    if layer.before < 1:
        raise fields.fail("before", "at least 1")
    if not 1 <= layer.after <= layer.before:
        raise fields.fail("after", f"from 1 to {layer.before}")
    for key, heads in (("kept", layer.kept), ("redundant", layer.redundant)):
        if any(head >= layer.before for head in heads) or len(set(heads)) < len(heads):
            raise fields.fail(key, f"distinct head numbers below {layer.before}")
    return layer


def _eta_sweep(fields: Fields, num_layers: int) -> dict[float, tuple[int, ...]]:
    sweep: dict[float, tuple[int, ...]] = {}
    for key in fields.values:
        try:
            eta = float(key)
        except ValueError as error:
            raise UserError(f"{fields.place}: key {key!r:.80}; it must be a number such as '0.9'") from error
        heads = fields.indices(key)
        if len(heads) != num_layers:
            raise fields.fail(key, f"a list of {num_layers} head counts")
        sweep[eta] = heads
    return dict(sorted(sweep.items()))


_Matrices = dict[int, NDArray[np.float64]]


def _load_cka(path: Path, layers: tuple[HeadLayer, ...]) -> tuple[_Matrices, _Matrices]:
    """The matrices that are stored; a layer without one is left out."""
    if not path.exists():
        return {}, {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name], dtype=np.float64) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a numpy .npz file of float arrays") from error
    for layer in layers:
        expected = {f"layer{layer.layer}_before": layer.before, f"layer{layer.layer}_after": layer.after}
        for name, num_heads in expected.items():
            shape = arrays[name].shape if name in arrays else (num_heads, num_heads)
            if shape != (num_heads, num_heads):
                raise UserError(f"{path}: {name!r} has shape {shape}; it must be {(num_heads, num_heads)}")
    before = {x.layer: arrays[f"layer{x.layer}_before"] for x in layers if f"layer{x.layer}_before" in arrays}
    after = {x.layer: arrays[f"layer{x.layer}_after"] for x in layers if f"layer{x.layer}_after" in arrays}
    return before, after


def _load_results(run_dir: Path) -> Results | None:
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
        comparison=_comparison(fields),
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
    return System(
        name=fields.text("name"),
        tasks=fields.fields("tasks", optional=True).numbers(),
        params=fields.optional_integer("params"),
        params_outside_embeddings=fields.optional_integer("params_outside_embeddings"),
        megabytes=fields.optional_number("megabytes"),
        latency_ms=fields.optional_number("latency_ms"),
        condition=fields.text("condition", ""),
        note=fields.text("note", ""),
    )


def _comparison(results: Fields) -> Comparison | None:
    if not results.values.get("comparison"):
        return None
    fields = results.fields("comparison")
    comparison = Comparison(
        against=fields.text("against"),
        task=fields.text("task"),
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


def _load_model_class(run_dir: Path) -> str | None:
    """The class name that the exported configuration gives, which decides the Auto class to load it with."""
    fields = read_object(run_dir, MODEL_CONFIG_FILE)
    names = [] if fields is None else fields.items("architectures", optional=True)
    return str(names[0]) if names else None
