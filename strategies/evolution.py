"""Evolution under hard limits, as an ask-and-tell core without NNI (arXiv 2510.27037, section III-D)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elm_nni.digest import digest
from elm_nni.errors import UserError

logger = logging.getLogger(__name__)

Sample = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """One hard limit: ``measure(sample)`` must not exceed ``maximum`` (same unit)."""

    measure: Callable[[Sample], float]
    maximum: float

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise ValueError(f"measure must be callable, got {self.measure!r}")
        if not self.maximum > 0:
            raise ValueError(f"maximum must be > 0, got {self.maximum!r}")


@dataclass(frozen=True)
class Individual:
    """A proposed architecture: its canonical sample, name, measured costs, and where it came from."""

    sample: Sample
    digest: str
    costs: dict[str, float]
    generation: int
    origin: str


@dataclass
class Counts:
    """What became of every sample that was drawn."""

    evaluated: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


class Constraints:
    """Hard limits and deduplication in one piece, usable by any search strategy.

    Args:
        limits: name to :class:`Limit`. All are checked on the sample alone, before any forward pass.
        canonical: maps a sample to its canonical form, so that samples which differ only in labels
            of candidates that were not chosen count as one.

    Example::

        constraints = Constraints({"params": Limit(count_parameters, 5e6)})
        costs = constraints.admit(sample)       # None: too large, or seen before
    """

    def __init__(
        self, limits: Mapping[str, Limit] | None = None, *, canonical: Callable[[Sample], Sample] = dict
    ) -> None:
        self.limits = dict(limits or {})
        self.canonical = canonical
        self.counts = Counts(rejected=dict.fromkeys(self.limits, 0))
        self.lowest: dict[str, float] = {}
        self._seen: set[str] = set()

    def admit(self, sample: Sample) -> tuple[Sample, str, dict[str, float]] | None:
        """Returns (canonical sample, digest, costs), or None for a duplicate or a sample over a limit."""
        sample = self.canonical(sample)
        name = digest(sample)
        if name in self._seen:
            self.counts.duplicates += 1
            return None
        costs = {key: float(limit.measure(sample)) for key, limit in self.limits.items()}
        for key, cost in costs.items():
            self.lowest[key] = min(cost, self.lowest.get(key, cost))
        violated = [key for key, limit in self.limits.items() if not costs[key] <= limit.maximum]
        for key in violated:
            self.counts.rejected[key] += 1
        if violated:
            return None
        self._seen.add(name)
        return sample, name, costs

    def explain(self) -> str:
        """One line on why nothing was feasible, with counts and the best value that was reached."""
        parts = [
            f"{key} <= {limit.maximum:g} refused {self.counts.rejected[key]} "
            f"(lowest seen {self.lowest.get(key, float('nan')):g})"
            for key, limit in self.limits.items()
        ]
        return f"{'; '.join(parts) or 'no limits'}; {self.counts.duplicates} duplicates"


class Evolution:
    """Keeps the best architectures, mutates and crosses them, and never evaluates one twice.

    The first generation is random; each later one holds ``mutations`` mutated and ``crossovers`` crossed
    children of the ``keep`` best so far. Every draw is bounded by ``max_tries``; where a small space is
    exhausted, generations get smaller, and one with nothing new ends the search. The sequence of proposals depends on
    ``seed`` and the metrics told, and on nothing else, so a search is resumed by telling recorded metrics again.

    Args:
        space: label to its allowed values; labels not to be searched are left out (or have one value).
        constraints: hard limits and deduplication.
        population: size of the first generation.
        generations: number of generations, the first one counted.
        mutation_prob: probability that one label is redrawn in a mutation.
        initial: samples proposed first (for example the cheapest one, known to be feasible).

    Raises:
        ValueError: a setting outside its range.
        UserError: from :meth:`ask`, when no feasible architecture was found at all.

    NaN metrics rank last. Source: section III-D and the author's settings (50 x 40, 25 + 25, 0.1).

    Example::

        search = Evolution(space={"x": range(9)}, population=5, generations=3, mutations=2, crossovers=2)
        while (one := search.ask()) is not None:
            search.tell(one, -abs(one.sample["x"] - 4))
    """

    def __init__(
        self,
        *,
        space: Mapping[str, Sequence[Any]],
        constraints: Constraints | None = None,
        population: int = 50,
        generations: int = 40,
        mutations: int = 25,
        crossovers: int = 25,
        mutation_prob: float = 0.1,
        keep: int = 50,
        max_tries: int = 500,
        initial: Sequence[Sample] = (),
        seed: int = 0,
    ) -> None:
        positive = {"population": population, "generations": generations, "keep": keep, "max_tries": max_tries}
        for key, value in positive.items():
            if value < 1:
                raise ValueError(f"{key} must be >= 1, got {value!r}")
        for key, value in (("mutations", mutations), ("crossovers", crossovers)):
            if value < 0:
                raise ValueError(f"{key} must be >= 0, got {value!r}")
        if not 0 < mutation_prob <= 1:
            raise ValueError(f"mutation_prob must be in (0, 1], got {mutation_prob!r}")
        empty = [label for label, values in space.items() if len(values) == 0]
        if empty or not space:
            raise ValueError(f"space must have values for every label, got none for {empty or 'the whole space'}")
        self.space = {label: list(values) for label, values in sorted(space.items())}
        self.constraints = constraints or Constraints()
        self.population, self.generations, self.keep = population, generations, keep
        self.mutations, self.crossovers, self.mutation_prob = mutations, crossovers, mutation_prob
        self.max_tries = max_tries
        self.kept: list[tuple[float, Individual]] = []
        self.generation = 0
        self._initial = [dict(sample) for sample in initial]
        self._rng = np.random.default_rng(seed)
        self._pending: set[str] = set()
        self._proposed = self._found = 0
        self._parents: list[Sample] = []
        self._exhausted = False

    @property
    def counts(self) -> Counts:
        """What was evaluated, drawn twice and rejected."""
        return self.constraints.counts

    @property
    def finished(self) -> bool:
        """True when nothing is left to propose and every proposal was told."""
        return self.generation >= self.generations and not self._pending

    @property
    def waiting(self) -> bool:
        """True when the next proposal needs metrics that were not told yet."""
        return bool(self._pending) and (self._exhausted or self._proposed >= self._generation_size())

    def ask(self) -> Individual | None:
        """The next architecture to evaluate; None when finished or while :attr:`waiting`."""
        while self.generation < self.generations:
            if self._exhausted or self._proposed >= self._generation_size():
                if self._pending:
                    return None
                self._next_generation()
                continue
            proposal = self._propose()
            if proposal is not None:
                self._pending.add(proposal.digest)
                return proposal
            self._exhausted = True
        return None

    def tell(self, individual: Individual, metric: float | None) -> None:
        """Records a metric (higher is better); None or NaN means the evaluation failed."""
        if individual.digest not in self._pending:
            raise ValueError(f"{individual.digest} was not proposed, or was told before")
        self._pending.discard(individual.digest)
        self.constraints.counts.evaluated += 1
        if metric is None or np.isnan(metric):
            logger.warning("no metric for architecture %s; it cannot become a parent", individual.digest)
            return
        self.kept.append((float(metric), individual))
        self.kept.sort(key=lambda pair: (-pair[0], pair[1].digest))
        del self.kept[self.keep :]

    @property
    def best(self) -> tuple[float, Individual]:
        """Highest metric and its architecture.

        Raises:
            UserError: nothing was evaluated successfully.
        """
        if not self.kept:
            raise UserError(f"no architecture was evaluated: {self.constraints.explain()}")
        return self.kept[0]

    def _generation_size(self) -> int:
        return self.population if self.generation == 0 else self.mutations + self.crossovers

    def _next_generation(self) -> None:
        if self.generation == 0 and not self.kept:
            if self.constraints.counts.evaluated:
                raise UserError("every evaluation of the first generation failed; see the log for the reasons")
            raise UserError(f"no feasible architecture in {self.max_tries} draws: {self.constraints.explain()}")
        if self.generation > 0 and not self._found:
            # the parents stay as they are, so a further generation would draw in vain too
            logger.info("the search ends in generation %d: nothing new is in reach", self.generation)
            self.generation = self.generations
            return
        self.generation += 1
        self._proposed, self._found, self._exhausted = 0, 0, False
        self._parents = [individual.sample for _, individual in self.kept]

    def _propose(self) -> Individual | None:
        origin = self._origin()
        for _ in range(self.max_tries):
            admitted = self.constraints.admit(self._draw(origin))
            if admitted is not None:
                self._proposed += 1
                self._found += 1
                sample, name, costs = admitted
                return Individual(sample, name, costs, self.generation, origin)
        if origin == "mutation" and self.crossovers:
            self._proposed = self.mutations
            return self._propose()
        logger.info(
            "generation %d ends after %d: nothing new in %d draws", self.generation, self._proposed, self.max_tries
        )
        return None

    def _origin(self) -> str:
        if self.generation == 0:
            return "random"
        return "mutation" if self._proposed < self.mutations else "crossover"

    def _draw(self, origin: str) -> Sample:
        if origin == "random":
            if self._initial:
                return self._initial.pop(0)
            return {label: self._choose(values) for label, values in self.space.items()}
        first = self._choose(self._parents)
        if origin == "mutation":
            flips = self._rng.random(len(self.space)) < self.mutation_prob
            flips[self._rng.integers(len(self.space))] = True
            return {
                label: self._choose(values) if flip else self._inherit(first, label)
                for flip, (label, values) in zip(flips, self.space.items(), strict=True)
            }
        second = self._choose(self._parents)
        return {label: self._inherit(first if self._rng.random() < 0.5 else second, label) for label in self.space}

    def _inherit(self, parent: Sample, label: str) -> Any:
        # a canonical parent has no labels of the candidates it did not choose
        return parent[label] if label in parent else self._choose(self.space[label])

    def _choose(self, values: Sequence[Any]) -> Any:
        return values[int(self._rng.integers(len(values)))]
