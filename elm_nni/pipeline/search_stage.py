"""The search on the supernet under hard limits."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from tqdm import tqdm

from elm_nni.analysis.pareto import non_dominated
from elm_nni.cost.latency_table import LatencyTable, cheapest
from elm_nni.cost.parameters import (
    count_parameters,
    embedding_parameters,
    extreme_architecture,
    parameters_outside_embeddings,
)
from elm_nni.data.outputs import RowBatches
from elm_nni.errors import UserError
from elm_nni.pipeline.config import LimitsConfig, SearchConfig
from elm_nni.pipeline.context import Context, Task
from elm_nni.pipeline.modules import TaskTraining, predict
from elm_nni.pipeline.probe import ProbeRecorder
from elm_nni.pipeline.sampler_search import Proposal, SamplerSearch, measures
from elm_nni.pipeline.store import append_json_line, read_json_lines, write_json
from elm_nni.pipeline.supernet_stage import load_supernet, load_widths
from elm_nni.search_spaces.architecture import cell_name, chosen_blocks, layer_label
from elm_nni.search_spaces.space import ElmSpace
from elm_nni.strategies.evolution import Constraints, Evolution, Individual, Limit
from elm_nni.strategies.one_shot import set_path
from elm_nni.strategies.supernet_files import HEADS

HISTORY, SUMMARY, PARETO, STUDY = "history.jsonl", "summary.json", "pareto.json", "study.db"
_OF_SAMPLERS = ("strategy", "objectives", "evaluations", "sampler_args")


class SupernetScorer:
    """Scores architectures with the supernet's weights: the mean main metric over the search tasks' search rows."""

    def __init__(self, context: Context, folder: Path) -> None:
        self.space = load_supernet(context, folder)
        names = context.config.search.tasks or tuple(context.tasks)
        self.tasks: list[Task] = [context.tasks[name] for name in names]
        self.module = TaskTraining(
            self.space, None, distillation=context.config.distillation, training=context.config.supernet.tasks,
            heads={name: (task.num_outputs, task.kind) for name, task in context.tasks.items()},
        )  # fmt: skip
        self.module.heads.load_state_dict(load_file(folder / HEADS))
        self.module.to(context.device)
        self._batches = [RowBatches(task.search, task.name, keep=True) for task in self.tasks]

    def __call__(self, sample: dict[str, Any]) -> float:
        set_path(self.space, sample)
        scores = [
            task.score(predict(self.module, batches), task.search) for task, batches in zip(self.tasks, self._batches)
        ]
        return float(np.mean(scores))


def search_inputs(context: Context, supernet: str, table: LatencyTable | None, limits: LimitsConfig) -> dict[str, Any]:
    """What the winner depends on."""
    return {
        "supernet": supernet, "seed": context.config.seed, "search": _settings_that_count(context.config.search),
        "limits": asdict(limits), "latency": table.digest if table is not None else None,
    }  # fmt: skip


def build_search(
    context: Context, folder: Path, supernet: Path, table: LatencyTable | None, limits: LimitsConfig
) -> None:
    """Runs the strategy. Finished evaluations are read from the history instead of being run again."""
    widths = load_widths(supernet)
    scorer = SupernetScorer(context, supernet)
    searched = make_search(context, scorer.space, table, limits, widths)
    known = {line["digest"]: line["metric"] for line in read_json_lines(folder / HISTORY)}
    lines: list[dict[str, Any]] = []
    recorder, generation = ProbeRecorder(context, scorer.space, folder, "search"), 0
    with SearchProgress(max_evaluations(context.config.search), context.log) as progress:
        while (individual := searched.ask()) is not None:
            if individual.generation != generation:
                recorder.record(generation, samples=[searched.best[1].sample])
                generation = individual.generation
            metric = known.get(individual.digest)
            line = history_line(context, individual, metric if metric is not None else scorer(individual.sample), table)
            if metric is None:
                append_json_line(folder / HISTORY, line)
            searched.tell(individual, line["metric"])
            lines.append(line)
            progress.step(individual.generation, line["metric"], known=metric is not None)
    metric, best = searched.best
    recorder.record(generation, samples=[best.sample])
    counts = searched.counts
    write_json(folder / PARETO, pareto_lines(lines))
    write_json(
        folder / SUMMARY,
        {
            "evaluated": counts.evaluated, "duplicates": counts.duplicates, "rejected": counts.rejected,
            "limits": {name: limit.maximum for name, limit in make_limits(context, table, limits).items()},
            "best": history_line(context, best, metric, table),
        },
    )  # fmt: skip
    if isinstance(searched, SamplerSearch):
        searched.save(folder / STUDY)


def make_search(
    context: Context, space: ElmSpace, table: LatencyTable | None, limits: LimitsConfig, widths: dict[str, int]
) -> Evolution | SamplerSearch:
    """The configured strategy over the blocks of each layer, at fixed widths."""
    search, seed = context.config.search, context.config.seed
    choices = {layer_label(index): list(space.blocks) for index in range(context.settings.num_layers)}
    costs, first = make_limits(context, table, limits), cheapest_first(context, table, widths)

    def canonical(sample: dict[str, Any]) -> dict[str, Any]:
        return space.canonical(with_widths(sample, widths))

    if search.strategy != "evolution":
        return SamplerSearch(
            search, space=choices, limits=costs, measures=measures(context.settings, table), canonical=canonical,
            first=first, evaluations=max_evaluations(search), seed=seed,
        )  # fmt: skip
    return Evolution(
        space=choices, constraints=Constraints(costs, canonical=canonical), population=search.population,
        generations=search.generations, mutations=search.mutations, crossovers=search.crossovers,
        mutation_prob=search.mutation_prob, keep=search.keep, initial=first, seed=seed,
    )  # fmt: skip


def _settings_that_count(search: SearchConfig) -> dict[str, Any]:
    """Settings that the strategy reads, so that those of the other one leave its stage as it is."""
    if search.strategy == "evolution":
        return {k: v for k, v in asdict(search).items() if k not in _OF_SAMPLERS}
    counted = {k: v for k, v in asdict(search).items() if k in (*_OF_SAMPLERS, "tasks", "validation_size")}
    return {**counted, "evaluations": max_evaluations(search)}


def max_evaluations(search: SearchConfig) -> int:
    """The most architectures that a search evaluates; a small space gives out earlier."""
    if search.evaluations is not None:
        return search.evaluations
    return search.population + (search.generations - 1) * (search.mutations + search.crossovers)


class SearchProgress:
    """Writes a line for every generation to a log function and, where stderr is a terminal, draws a bar.

    Args:
        total: the most evaluations that can come.
        log: called with an event name and plain values at the end of each generation. A generation that was read from
            the history is not told again.
        clock: seconds.
    """

    def __init__(self, total: int, log: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.write, self._clock = total, log, clock
        self._start = self._now = clock()
        self._generation = self._evaluated = self._measured = self._told = 0
        self._best = -math.inf
        self._bar = tqdm(total=total, desc="search", unit="model", file=sys.stderr, disable=not sys.stderr.isatty())

    def __enter__(self) -> SearchProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tell()
        self._bar.close()

    def step(self, generation: int, metric: float, *, known: bool) -> None:
        """Counts one architecture; a ``known`` one was not evaluated now and does not count for the rate."""
        if generation != self._generation:
            self._tell()
            self._generation = generation
        self._now = self._clock()
        self._evaluated += 1
        self._measured += not known
        self._best = max(self._best, metric)
        self._bar.update()

    def _tell(self) -> None:
        if self._measured == self._told:
            return
        self._told = self._measured
        rate = self._measured / max(self._now - self._start, 1e-9)
        self.write(
            "generation", generation=self._generation, evaluated=self._evaluated, of=self.total, best=self._best,
            evaluations_per_second=round(rate, 2), seconds_left=round((self.total - self._evaluated) / rate),
        )  # fmt: skip


def history_line(
    context: Context, individual: Individual | Proposal, metric: float, table: LatencyTable | None
) -> dict[str, Any]:
    """One evaluated architecture with its costs, limited or not."""
    return {
        "generation": individual.generation, "digest": individual.digest, "sample": individual.sample,
        "metric": metric, "params": count_parameters(individual.sample, context.settings),
        "latency_ms": None if table is None else round(table.predict(individual.sample), 5),
        "origin": individual.origin,
    }  # fmt: skip


def pareto_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that no other dominates in metric, parameters and, where known, latency."""
    if not lines:
        return []
    costs = np.array([[-line["metric"], line["params"], line["latency_ms"] or 0.0] for line in lines], dtype=np.float64)
    return [line for line, kept in zip(lines, non_dominated(costs)) if kept]


def make_limits(context: Context, table: LatencyTable | None, limits: LimitsConfig) -> dict[str, Limit]:
    """The configured limits as functions of a canonical architecture."""
    settings = context.settings
    found = {}
    if limits.max_params is not None:
        found["params"] = Limit(lambda sample: count_parameters(sample, settings), limits.max_params)
    if limits.max_params_outside_embeddings is not None:
        found["params_outside_embeddings"] = Limit(
            lambda sample: parameters_outside_embeddings(sample, settings), limits.max_params_outside_embeddings
        )
    if limits.max_latency_ms is not None:
        if table is None:
            raise UserError("limits.max_latency_ms needs a latency table")
        found["latency_ms"] = Limit(table.predict, limits.max_latency_ms)
    return found


def check_reachable(context: Context, table: LatencyTable | None, limits: LimitsConfig) -> None:
    """Stops before any training when even the smallest or fastest architecture breaks a limit.

    Raises:
        UserError: naming the limit and the best reachable value.
    """
    settings = context.settings
    smallest = extreme_architecture(settings)
    embeddings = f", {embedding_parameters(settings):,} of them embeddings of {settings.vocab_size:,} tokens"
    checks = (
        ("limits.max_params", limits.max_params, count_parameters(smallest, settings), embeddings),
        (
            "limits.max_params_outside_embeddings", limits.max_params_outside_embeddings,
            parameters_outside_embeddings(smallest, settings), "",
        ),
    )  # fmt: skip
    for key, limit, best, inside in checks:
        if limit is not None and best > limit:
            raise UserError(
                f"{key}: {limit:,.10g} is not allowed; the smallest architecture has {best:,} parameters{inside}"
            )
    if limits.max_latency_ms is not None and table is not None:
        _, fastest = cheapest(table, settings)
        if fastest > limits.max_latency_ms:
            raise UserError(
                f"limits.max_latency_ms: {limits.max_latency_ms:g} is not reachable; the fastest architecture takes "
                f"{fastest:.3f} ms ({table.condition.describe()})"
            )


def cheapest_first(context: Context, table: LatencyTable | None, widths: dict[str, int]) -> list[dict[str, Any]]:
    """The smallest and the fastest architecture at these widths: if anything is feasible, one of them tends to be."""
    first = [extreme_architecture(context.settings, widths=widths)]
    return first if table is None else [*first, cheapest(table, context.settings, widths)[0]]


def with_widths(sample: dict[str, Any], widths: dict[str, int]) -> dict[str, Any]:
    """Adds the grown width of each chosen cell."""
    cells = [cell_name(index, block) for index, block in enumerate(chosen_blocks(sample))]
    return {**sample, **{f"{cell}_ffn": widths[cell] for cell in cells}}


def winner_line(folder: Path) -> dict[str, Any]:
    """The history line of the best architecture that a search found."""
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["best"]


def winner(folder: Path) -> dict[str, Any]:
    """The canonical architecture that a search found."""
    return winner_line(folder)["sample"]
