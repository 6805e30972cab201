"""Pareto front of evaluated architectures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elm_nni.analysis.pareto import non_dominated
from elm_nni.report.search_files import Candidate


def candidate_costs(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Costs (N, 3), all to be minimised: minus the metric, parameters, latency in ms (NaN where unknown)."""
    rows = [(-c.metric, c.params, np.nan if c.latency_ms is None else c.latency_ms) for c in candidates]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def pareto_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Non-dominated candidates in metric (up), parameters and latency (down), the best metric first.

    Where no candidate has a latency, the front is that of metric and parameters.
    """
    costs_NM = candidate_costs(candidates)
    if np.isnan(costs_NM[:, 2]).all():
        costs_NM = costs_NM[:, :2]
    front = [candidate for candidate, on_front in zip(candidates, non_dominated(costs_NM)) if on_front]
    return tuple(sorted(front, key=lambda c: (-c.metric, c.params, c.digest)))
