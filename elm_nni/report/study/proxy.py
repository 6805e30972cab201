"""Cheap trials against full ones: do they rank alike, and what do they save?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from elm_nni.analysis.ranking import RankCorrelation, rank_correlation
from elm_nni.report.study.load import StudyData, StudyTrial, completed

# The head step is cheap, and whichever of two trials runs second finds it in the store.
_CHEAP_STAGES = frozenset({"prune"})
_SEED = 0


@dataclass(frozen=True)
class ProxyPair:
    """Full and cheap trials of equal parameters: how many, and the mean of each objective."""

    params: Mapping[str, Any]
    num_full: int
    num_proxy: int
    full: Mapping[str, float]
    proxy: Mapping[str, float]


@dataclass(frozen=True)
class ProxyTimes:
    """Median seconds of full and cheap trials that built the same stages.

    Attributes:
        stages: that all of them built.
        full_pruned: how many of the full trials built the head step too, which the others found.
    """

    stages: tuple[str, ...]
    num_full: int
    full: float
    full_pruned: int
    num_proxy: int
    proxy: float
    proxy_pruned: int


@dataclass(frozen=True)
class ProxyComparison:
    """What the report says of the cheap trials; ``times`` is ``None`` where no two trials built the same stages."""

    num_complete: int
    pairs: tuple[ProxyPair, ...]
    correlations: Mapping[str, RankCorrelation]
    times: ProxyTimes | None


def compare_proxy(study: StudyData) -> ProxyComparison | None:
    """Compares the cheap trials of a study with its full ones; ``None`` if there is no cheap trial.

    Trials belong together when their parameters are equal; repeats count with their mean.
    """
    if not study.proxy_trials:
        return None
    proxies = completed(study.proxy_trials, study.objectives)
    pairs = _pairs(study.complete, proxies, list(study.objectives))
    correlations = {
        name: rank_correlation([pair.proxy[name] for pair in pairs], [pair.full[name] for pair in pairs], seed=_SEED)
        for name in study.objectives
    }
    return ProxyComparison(len(proxies), pairs, correlations, compare_times(study.complete, proxies))


def compare_times(full: Sequence[StudyTrial], proxies: Sequence[StudyTrial]) -> ProxyTimes | None:
    """Median wall times of trials that trained a model and built the same stages, the head step aside.

    A trial that finds its model in the store takes no time and says nothing. Of several sets of stages that both kinds
    of trials have built, the one with the most trials counts.
    """
    kinds = [Counter(_kind(trial) for trial in trials if _is_timed(trial)) for trials in (full, proxies)]
    common = sorted(set(kinds[0]) & set(kinds[1]), key=lambda kind: (-min(k[kind] for k in kinds), len(kind), kind))
    if not common:
        return None
    chosen = [[t for t in trials if _is_timed(t) and _kind(t) == common[0]] for trials in (full, proxies)]
    seconds = [median(t.seconds for t in trials if t.seconds is not None) for trials in chosen]
    pruned = [sum(not _CHEAP_STAGES.isdisjoint(t.built) for t in trials) for trials in chosen]
    return ProxyTimes(common[0], len(chosen[0]), seconds[0], pruned[0], len(chosen[1]), seconds[1], pruned[1])


def _is_timed(trial: StudyTrial) -> bool:
    return trial.seconds is not None and any("pretrain" in stage for stage in trial.built)


def _kind(trial: StudyTrial) -> tuple[str, ...]:
    return tuple(sorted(set(trial.built) - _CHEAP_STAGES))


def _pairs(
    full: Sequence[StudyTrial], proxies: Sequence[StudyTrial], names: Sequence[str]
) -> tuple[ProxyPair, ...]:
    by_params: dict[str, tuple[list[StudyTrial], list[StudyTrial]]] = {}
    for side, trials in enumerate((full, proxies)):
        for trial in trials:
            by_params.setdefault(_key(trial), ([], []))[side].append(trial)
    return tuple(
        ProxyPair(some[0].params, len(some), len(cheap), _means(some, names), _means(cheap, names))
        for some, cheap in by_params.values()
        if some and cheap
    )


def _key(trial: StudyTrial) -> str:
    return json.dumps(dict(trial.params), sort_keys=True, default=repr)


def _means(trials: Sequence[StudyTrial], names: Sequence[str]) -> dict[str, float]:
    return {name: fmean(trial.values[name] for trial in trials) for name in names}
