"""A search of the pipeline by a sampler of Optuna, in the shape of the evolution's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from elm_nni.cost.latency_table import LatencyTable
from elm_nni.cost.parameters import count_parameters
from elm_nni.errors import UserError
from elm_nni.pipeline.config import SearchConfig
from elm_nni.search_spaces.architecture import SpaceSettings
from elm_nni.strategies.architecture_study import ArchitectureStudy, Candidate
from elm_nni.strategies.evolution import Counts, Limit, Sample
from elm_nni.strategies.study_settings import Measure, StudySettings

METRIC = "metric"
STUDY_NAME = "search"


@dataclass(frozen=True)
class Proposal:
    """An architecture to evaluate, as the evolution's ``Individual``; ``origin`` is the sampler."""

    sample: Sample
    digest: str
    generation: int
    origin: str
    candidate: Candidate


class SamplerSearch:
    """Asks a sampler of Optuna for architectures and remembers the best one within the limits.

    The study is in memory and starts from the seed alone: told the same metrics it proposes the same architectures, so
    a resumed search goes through its history. Evaluations are counted in generations of the evolution's sizes, so that
    both strategies' histories can be laid beside each other.

    Args:
        search: its ``strategy`` is ``optuna:NAME``.
        space: layer label to its blocks.
        limits: name to limit, as of the evolution.
        measures: of the objectives that are not the metric.
        canonical: sample to its canonical form, widths included.
        first: samples proposed first.
        evaluations: architectures evaluated in all.

    Raises:
        UserError: from :meth:`ask`, when no feasible architecture was found.
    """

    def __init__(
        self,
        search: SearchConfig,
        *,
        space: Mapping[str, Sequence[Any]],
        limits: Mapping[str, Limit],
        measures: Mapping[str, Measure],
        canonical: Callable[[Sample], Sample],
        first: Sequence[Sample],
        evaluations: int,
        seed: int,
    ) -> None:
        self._search, self._sampler = search, sampler_of(search)
        directions = {name: "maximize" if name == METRIC else "minimize" for name in search.objectives}
        self._study = ArchitectureStudy(
            space, canonical=canonical,
            settings=StudySettings(
                sampler=self._sampler, sampler_args=search.sampler_args, directions=directions, limits=limits,
                objectives={name: measures[name] for name in search.objectives if name != METRIC},
                evaluations=evaluations, study_name=STUDY_NAME, seed=seed,
            ),
        )  # fmt: skip
        for sample in first:
            self._study.enqueue(sample)
        self._proposed = 0
        self._best: tuple[float, Proposal] | None = None

    @property
    def counts(self) -> Counts:
        """What was evaluated, drawn twice and rejected."""
        return self._study.counts

    @property
    def best(self) -> tuple[float, Proposal]:
        """Highest metric and its architecture."""
        if self._best is None:
            raise UserError("no architecture was evaluated")
        return self._best

    def ask(self) -> Proposal | None:
        """The next architecture to evaluate; None when the search has ended."""
        candidate = self._study.ask()
        if candidate is None:
            return None
        later = self._proposed - self._search.population
        size = max(1, self._search.mutations + self._search.crossovers)
        generation = 0 if later < 0 else 1 + later // size
        self._proposed += 1
        return Proposal(candidate.sample, candidate.digest, generation, self._sampler, candidate)

    def tell(self, proposal: Proposal, metric: float) -> None:
        """Records a metric, higher is better."""
        self._study.tell(proposal.candidate, {METRIC: metric})
        if self._best is None or (-metric, proposal.digest) < (-self._best[0], self._best[1].digest):
            self._best = metric, proposal

    def save(self, file: Path) -> None:
        """Writes the study as a database that optuna-dashboard and Optuna's own plots open."""
        file.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.copy_study(
                from_study_name=STUDY_NAME, from_storage=self._study.study._storage,
                to_storage=f"sqlite:///{file.absolute()}",
            )  # fmt: skip


def sampler_of(search: SearchConfig) -> str:
    """The sampler that ``optuna:NAME`` names."""
    return search.strategy.partition(":")[2]


def measures(settings: SpaceSettings, table: LatencyTable | None) -> dict[str, Measure]:
    """Objectives that an architecture's description gives: parameters and the table's milliseconds."""
    found: dict[str, Measure] = {"params": lambda sample: count_parameters(sample, settings)}
    return found if table is None else found | {"latency_ms": table.predict}
