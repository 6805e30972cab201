"""Pareto fronts of evaluated architectures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elm_nni.report.load import Candidate


def non_dominated(costs_NM: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks the rows that no other row dominates; every column is minimised.

    A row dominates another if it is nowhere larger and somewhere smaller, so equal rows stand on the front together.
    A row with a NaN is never on the front and dominates nothing. No rows give an empty mask.

    Args:
        costs_NM: N candidates, M costs.

    Raises:
        ValueError: ``costs_NM`` has not two dimensions.

    Example:
        >>> non_dominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])).tolist()
        [True, True, False]
    """
    if costs_NM.ndim != 2:
        raise ValueError(f"costs_NM has {costs_NM.ndim} dimensions; it must have 2")
    front_N: NDArray[np.bool_] = np.logical_not(np.isnan(costs_NM).any(axis=1))
    for i in np.flatnonzero(front_N):
        nowhere_larger_N = (costs_NM <= costs_NM[i]).all(axis=1)
        somewhere_smaller_N = (costs_NM < costs_NM[i]).any(axis=1)
        front_N[i] = not (nowhere_larger_N & somewhere_smaller_N).any()
    return front_N


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
