"""How much of an objective's variance each parameter explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator

from elm_nni.report.study.load import StudyData, StudyTrial

MIN_TRIALS, FEW_TRIALS = 10, 50
_SEED = 0


@dataclass(frozen=True)
class Importances:
    """Objective to parameter to its share of the variance, the largest first; or a reason why there is none.

    Attributes:
        constant: objectives that are the same in all trials, so nothing explains them.
    """

    num_trials: int
    shares: Mapping[str, Mapping[str, float]]
    constant: tuple[str, ...] = ()
    reason: str | None = None


def find_importances(study: StudyData) -> Importances:
    """fANOVA (a forest fitted to the complete trials) of every objective, main effects alone.

    What is missing to 1 belongs to interactions. Parameters that some trial lacks, or that do not vary, are left out.

    Source: Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter importance" (2014).
    """
    trials = study.complete
    if len(trials) < MIN_TRIALS:
        return Importances(len(trials), {}, reason=f"{len(trials)} complete trials; at least {MIN_TRIALS} are needed")
    names = [name for name in study.distributions if len({repr(trial.params.get(name)) for trial in trials}) > 1]
    names = sorted(name for name in names if all(name in trial.params for trial in trials))
    if len(names) < 2:
        only = f"only {names[0]} varies" if names else "no parameter varies"
        return Importances(len(trials), {}, reason=f"{only} over all complete trials, so there is nothing to compare")
    distributions = {name: _distribution(name, study.distributions[name], trials) for name in names}
    varying = [objective for objective in study.objectives if len({trial.values[objective] for trial in trials}) > 1]
    return Importances(
        num_trials=len(trials),
        shares={objective: _shares(objective, trials, distributions) for objective in varying},
        constant=tuple(objective for objective in study.objectives if objective not in varying),
    )


def _shares(
    objective: str, trials: Sequence[StudyTrial], distributions: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    with _quiet():
        held = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    held.add_trials([
        optuna.trial.create_trial(
            params={name: trial.params[name] for name in distributions}, distributions=dict(distributions),
            value=trial.values[objective],
        )
        for trial in trials
    ])  # fmt: skip
    found = FanovaImportanceEvaluator(seed=_SEED).evaluate(held, params=list(distributions))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna would announce a study that nobody asked for."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _distribution(name: str, last: BaseDistribution, trials: Sequence[StudyTrial]) -> BaseDistribution:
    """A range that holds the values of all trials: a study that goes on may have got another one."""
    values = [trial.params[name] for trial in trials]
    if isinstance(last, CategoricalDistribution):
        return last
    assert isinstance(last, FloatDistribution | IntDistribution)
    low, high = min(last.low, *values), max(last.high, *values)
    if isinstance(last, IntDistribution):
        return IntDistribution(int(low), int(high), log=last.log)
    return FloatDistribution(low, high, log=last.log)
