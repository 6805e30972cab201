"""A search for architectures as an Optuna study, ask and tell, without NNI: any sampler, several objectives and limits.

Shape suffixes: N architectures, M objectives.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from numbers import Real
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState, create_trial

from elm_nni.analysis.pareto import non_dominated
from elm_nni.digest import derive_seed, digest
from elm_nni.errors import UserError
from elm_nni.strategies.evaluation_claims import RUNNING, Claim, EvaluationClaims
from elm_nni.strategies.evolution import Counts, Limit, Sample
from elm_nni.strategies.optuna_samplers import checked_arguments, make_sampler, sampler_kind
from elm_nni.strategies.study_labels import StudyLabels
from elm_nni.strategies.study_settings import StudySettings, check_study
from elm_nni.strategies.study_storage import open_study

logger = logging.getLogger(__name__)

Outcome = tuple[dict[str, float], Sample]

_LARGEST_GRID = 1_000_000
# so many draws without anything new, and the next ones are random
_STUCK = 10
# a cost that is no number, or beyond all bounds, has to be some number for a sampler
_WORST_EXCESS = 1e6


@dataclass(frozen=True)
class Candidate:
    """An architecture to evaluate: canonical sample, its digest, costs by limit, number of the study's trial."""

    sample: Sample
    digest: str
    costs: dict[str, float]
    trial: int


class ArchitectureStudy:
    """Asks a sampler of Optuna for architectures, none of them twice.

    Every draw is a trial of the study. The first worker that inserts a claim on an architecture's digest evaluates it.
    A draw of a finished one is told its metrics without an evaluation; one that is being evaluated, here or elsewhere,
    fails as a trial and costs nothing. Draws over a limit are told as infeasible. What a dead worker was at is taken
    over when its heartbeat is older than the grace time. While a sampler goes on repeating itself, as TPE, GP and
    genetic ones do on small spaces, draws are random.

    A result without a finite number for every objective counts as failed and is not evaluated again.

    Args:
        space: label to its values, see :class:`~elm_nni.strategies.study_labels.StudyLabels`.
        settings: see :class:`StudySettings`.
        canonical: maps a sample to its canonical form, in which labels that do not count are missing.

    Raises:
        UserError: the storage cannot be opened, or its study has other directions or another space; a grid is too
            large; from :meth:`ask`, when no feasible architecture was found, with counts.

    Example::

        study = ArchitectureStudy({"x": [1, 2, 3]}, settings=StudySettings(sampler="random", evaluations=3))
        while (candidate := study.ask()) is not None:
            study.tell(candidate, float(candidate.sample["x"]))
    """

    def __init__(
        self,
        space: Mapping[str, Sequence[Any]],
        *,
        settings: StudySettings,
        canonical: Callable[[Sample], Sample] = dict,
    ) -> None:
        self.settings, self.canonical = settings, canonical
        self.counts = Counts(rejected=dict.fromkeys(settings.limits, 0))
        self._labels = StudyLabels(space, canonical)
        self._lowest: dict[str, float] = {}
        self._costs: dict[str, dict[str, float]] = {}
        self._ended, self._next_look = False, 0.0
        # a label that does not count is an empty branch to brute force, and a gene to carry along to others
        self._is_tree = settings.sampler_class is optuna.samplers.BruteForceSampler
        self._study, engine = open_study(settings.storage, settings.study_name, list(settings.directions.values()))
        check_study(self._study, settings, space=digest(self._labels.values), tree=self._is_tree)
        self._claims = EvaluationClaims(
            engine, self._study._study_id,
            total=settings.evaluations, grace=settings.grace, beat=settings.storage is not None,
        )  # fmt: skip
        if self._claims.all() and not self._study.get_trials(deepcopy=False):
            # a claim follows its trial, so these are of a deleted study whose number was used again
            self._claims.clear()
        self._study.sampler = self._sampler()
        self._is_exhaustive = isinstance(
            self._study.sampler, (optuna.samplers.GridSampler, optuna.samplers.BruteForceSampler)
        )
        self._random = optuna.samplers.RandomSampler(derive_seed(settings.seed, "stuck", self._claims.worker) % 2**32)

    @property
    def study(self) -> optuna.Study:
        """Optuna's study, for its plots and the dashboard."""
        return self._study

    @property
    def waiting(self) -> bool:
        """True when an evaluation runs, here or elsewhere, whose end can lead to more to ask for."""
        return self._claims.counts()[RUNNING] > 0

    @property
    def finished(self) -> list[Claim]:
        """Everything evaluated by all workers, failed ones too, in the order of trials."""
        done = [claim for claim in self._claims.all() if claim.state != RUNNING]
        return [replace(claim, sample=self._sample(claim)) for claim in done]

    @property
    def outcomes(self) -> list[Outcome]:
        """Metrics and sample of every successful evaluation within the limits, by Pareto rank, then by objective."""
        found = [(claim.metrics, claim) for claim in self._claims.all() if claim.metrics is not None]
        within = [(metrics, claim) for metrics, claim in found if not self._over(self._sample(claim), claim.digest)]
        costs_NM = self._signed([metrics for metrics, _ in within])
        ranks = _ranks(costs_NM)
        order = sorted(range(len(within)), key=lambda i: (ranks[i], *costs_NM[i], within[i][1].digest))
        return [(within[i][0], self._sample(within[i][1])) for i in order]

    @property
    def front(self) -> list[Outcome]:
        """The outcomes that no other one beats, best first objective first; equal ones stand together."""
        outcomes = self.outcomes
        on_front = non_dominated(self._signed([metrics for metrics, _ in outcomes]))
        return [outcome for outcome, is_on in zip(outcomes, on_front, strict=True) if is_on]

    @property
    def best(self) -> Outcome:
        """Metrics and sample of the best outcome.

        Raises:
            UserError: there are several objectives, or nothing was evaluated successfully.
        """
        if len(self.settings.directions) > 1:
            raise UserError(f"{len(self.settings.directions)} objectives have no best architecture: use front")
        outcomes = self.outcomes
        if not outcomes:
            raise UserError(f"no architecture was evaluated: {self._explain()}")
        return outcomes[0]

    def ask(self) -> Candidate | None:
        """The next architecture to evaluate; None while :attr:`waiting`, or when the search has ended."""
        for tries in range(self.settings.max_tries):
            trial = self._left_behind()
            if isinstance(trial, Claim):
                return self._candidate(trial)
            if trial is None:
                if self._ended or self._claims.counts().total() >= self.settings.evaluations:
                    break
                candidate = self._draw_new(at_random=tries >= _STUCK and not self._is_exhaustive)
            else:
                candidate = self._admit(trial)
            if candidate is not None:
                return candidate
        else:
            self._ended = True
            logger.info("the search ends: nothing new in %d draws", self.settings.max_tries)
        if sum(self.counts.rejected.values()) and not self._claims.counts():
            raise UserError(f"no feasible architecture: {self._explain()}")
        return None

    def tell(self, candidate: Candidate, result: float | Mapping[str, Any] | None) -> bool:
        """Records an evaluation: a number for ``default``, metrics by name, or None for a failure.

        Returns False, and records nothing, when another worker has taken the evaluation over.

        Raises:
            UserError: a metric of ``directions`` is not in the result; the architecture can then be evaluated again.
        """
        try:
            metrics = None if result is None else self._metrics(candidate, result)
        except UserError:
            self.release(candidate)
            raise
        if not self._claims.finish(candidate.digest, metrics):
            logger.warning("the result of %s is left out: another worker has taken it over", candidate.digest)
            return False
        self.counts.evaluated += 1
        self._tell(candidate.trial, metrics)
        return True

    def release(self, candidate: Candidate) -> None:
        """Gives back what was interrupted: this worker's next start, or another worker, evaluates it."""
        self._claims.release(candidate.digest)

    def enqueue(self, sample: Sample) -> None:
        """Has a sample drawn before the sampler is asked, such as one known to be feasible.

        Raises:
            ValueError: a value is not in the space.
        """
        self._study.enqueue_trial(self._labels.encode(sample, only_counting=self._is_tree))

    def adopt(self, sample: Sample, metrics: Mapping[str, float] | None) -> None:
        """Adds a finished evaluation of another study, None for a failed one, unless this one has it."""
        sample = self.canonical(sample)
        if self._claims.get(digest(sample)) is not None:
            return
        try:
            params = self._labels.encode(sample, only_counting=self._is_tree)
        except ValueError:
            logger.warning("the earlier evaluation of %s is left out: it is not in the space", sample)
            return
        distributions = {label: self._labels.distributions[label] for label in params}
        template = create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        storage = self._study._storage
        trial_id = storage.create_new_trial(self._study._study_id, template_trial=template)
        number = storage.get_trial_number_from_id(trial_id)
        self._claims.adopt(digest(sample), number, sample, metrics)
        self._tell(number, metrics)

    def close(self) -> None:
        """Ends the heartbeats: what still runs here can be taken over after the grace time."""
        self._claims.close()

    def _sampler(self) -> optuna.samplers.BaseSampler:
        settings = self.settings
        if not isinstance(settings.sampler, str):
            return settings.sampler
        kind = sampler_kind(settings.sampler)
        grid = self._labels.grid
        num_cells = math.prod(map(len, grid.values()))
        if kind == "grid" and num_cells > _LARGEST_GRID:
            raise UserError(
                f"sampler 'grid' would have {num_cells:.3g} cells, at most {_LARGEST_GRID}: use 'bruteforce', which "
                "draws only labels that count"
            )
        # a grid's cells are numbered in an order that its seed decides; any other sampler starts from a new place,
        # after a resume and beside other workers
        seed = settings.seed if kind == "grid" else derive_seed(settings.seed, "search", self._claims.worker)
        return make_sampler(kind, checked_arguments(kind, settings.sampler_args or {}), seed=seed % 2**32, grid=grid)

    def _left_behind(self) -> Claim | Trial | None:
        """What a worker that died was at: an evaluation, or a draw without a claim."""
        if time.monotonic() < self._next_look:
            return None
        taken = self._claims.take_stale()
        if taken is not None:
            logger.info("architecture %s of a worker that shows no sign of life is evaluated here", taken.digest)
            return taken
        claims = {claim.trial: claim for claim in self._claims.all()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            claim = claims.get(trial.number)
            if claim is None:
                started = trial.datetime_start
                if started is not None and time.time() - started.timestamp() > self.settings.grace:
                    # it is drawn to its end: brute force would take a part of it for the whole
                    return Trial(self._study, trial._trial_id)
            elif claim.state != RUNNING:
                self._tell(trial.number, claim.metrics)
        self._next_look = time.monotonic() + self.settings.grace / 6
        return None

    def _draw_new(self, *, at_random: bool) -> Candidate | None:
        """A new draw, by the sampler or, where that goes on repeating itself, at random."""
        sampler = self._study.sampler
        if at_random:
            self._study.sampler = self._random
        try:
            return self._admit(self._study.ask())
        finally:
            self._study.sampler = sampler

    def _admit(self, trial: Trial) -> Candidate | None:
        sample = self.canonical(self._draw(trial))
        name = digest(sample)
        over = self._over(sample, name)
        known = trial.constraints
        for key, limit in self.settings.limits.items():
            if key not in known:
                trial.set_constraint(key, min(_excess(self._costs[name][key], limit), _WORST_EXCESS))
        if over:
            for key in over:
                self.counts.rejected[key] += 1
            # never evaluated: the sampler goes by the constraints, and the values are worse than any
            self._tell(trial.number, dict.fromkeys(self.settings.directions, math.nan))
            return None
        claim = self._claims.claim(name, trial.number, sample)
        if claim is None:
            self._tell(trial.number, None)
        elif claim.trial == trial.number:
            # of another owner: two workers went on with one draw, and the other one evaluates it
            return self._candidate(claim) if claim.owner == self._claims.owner else None
        else:
            self.counts.duplicates += 1
            self._tell(trial.number, claim.metrics)
        return None

    def _draw(self, trial: Trial) -> Sample:
        return self._labels.draw(trial, only_counting=self._is_tree)

    def _over(self, sample: Sample, name: str) -> list[str]:
        """The limits that a sample exceeds."""
        if name not in self._costs:
            self._costs[name] = {key: float(limit.measure(sample)) for key, limit in self.settings.limits.items()}
            for key, cost in self._costs[name].items():
                self._lowest[key] = min(cost, self._lowest.get(key, cost))
        return [key for key, limit in self.settings.limits.items() if not self._costs[name][key] <= limit.maximum]

    def _sample(self, claim: Claim) -> Sample:
        return self.canonical(self._labels.restore(claim.sample))

    def _candidate(self, claim: Claim) -> Candidate:
        sample = self._sample(claim)
        self._over(sample, claim.digest)
        return Candidate(sample, claim.digest, dict(self._costs[claim.digest]), claim.trial)

    def _metrics(self, candidate: Candidate, result: float | Mapping[str, Any]) -> dict[str, float] | None:
        told = result if isinstance(result, Mapping) else {"default": result}
        measured = {name: measure(candidate.sample) for name, measure in self.settings.objectives.items()}
        everything = {**told, **candidate.costs, **measured}
        missing = [name for name in self.settings.directions if name not in everything]
        if missing:
            raise UserError(
                f"the result has no {', '.join(map(repr, missing))}, which directions name; it has {', '.join(told)}"
            )
        numbers = {str(name): float(value) for name, value in everything.items() if _is_number(value)}
        return numbers if all(name in numbers for name in self.settings.directions) else None

    def _tell(self, number: int, metrics: Mapping[str, float] | None) -> None:
        """Ends a trial; NaN stands for the worst value, None fails the trial."""
        try:
            if metrics is None:
                self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            else:
                self._study.tell(number, self._values(metrics), skip_if_finished=True)
        except UpdateFinishedTrialError:
            # two workers found it unfinished; they tell the same
            logger.debug("trial %d was told by another worker", number)
        except RuntimeError:
            # how grid and brute force end a study; they expect to be inside Study.optimize
            if self._study.trials[number].state == TrialState.RUNNING:
                raise
            self._ended = True

    def _values(self, metrics: Mapping[str, float]) -> list[float]:
        worst = {"maximize": -math.inf, "minimize": math.inf}
        pairs = [(metrics[name], worst[direction]) for name, direction in self.settings.directions.items()]
        return [bad if math.isnan(value) else value for value, bad in pairs]

    def _signed(self, outcomes: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        signs = {name: -1.0 if direction == "maximize" else 1.0 for name, direction in self.settings.directions.items()}
        rows = [[sign * metrics[name] for name, sign in signs.items()] for metrics in outcomes]
        return np.array(rows, dtype=float).reshape(len(rows), len(signs))

    def _explain(self) -> str:
        parts = [
            f"{key} <= {limit.maximum:g} refused {self.counts.rejected[key]} "
            f"(lowest seen {self._lowest.get(key, math.nan):g})"
            for key, limit in self.settings.limits.items()
        ]
        return f"{'; '.join(parts) or 'no limits'}; {self.counts.duplicates} duplicates"


def _ranks(costs_NM: NDArray[np.float64]) -> list[int]:
    """Number of the front each row is on, when the fronts before it are taken away."""
    ranks_N = np.zeros(len(costs_NM), dtype=int)
    left_N = np.arange(len(costs_NM))
    for rank in count():
        if not len(left_N):
            break
        on_front = non_dominated(costs_NM[left_N])
        ranks_N[left_N[on_front]] = rank
        left_N = left_N[~on_front]
    return [int(rank) for rank in ranks_N]


def _excess(cost: float, limit: Limit) -> float:
    """How far a cost is over its limit, in parts of the limit; 0 or less within it."""
    return _WORST_EXCESS if math.isnan(cost) else cost / limit.maximum - 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
