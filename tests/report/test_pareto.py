"""Pareto fronts against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from elm_nni.report.load import Candidate
from elm_nni.report.pareto import non_dominated, pareto_front


def brute_force(costs: np.ndarray) -> list[bool]:
    rows = [tuple(map(float, row)) for row in costs]
    return [
        not any(all(b <= a for a, b in zip(row, other)) and any(b < a for a, b in zip(row, other)) for other in rows)
        for row in rows
    ]


@pytest.mark.parametrize("num_costs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_equals_brute_force_with_ties(num_costs: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 8, size=(120, num_costs)).astype(float)
    assert non_dominated(costs).tolist() == brute_force(costs)


def test_equal_rows_stand_together() -> None:
    assert non_dominated(np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])).tolist() == [True, True, False]


def test_nan_is_never_on_the_front_and_dominates_nothing() -> None:
    assert non_dominated(np.array([[0.0, np.nan], [1.0, 1.0]])).tolist() == [False, True]


def test_empty() -> None:
    assert non_dominated(np.zeros((0, 3))).tolist() == []
    assert pareto_front([]) == ()


def test_wrong_dimensions() -> None:
    with pytest.raises(ValueError, match="1 dimensions"):
        non_dominated(np.zeros(3))


def candidate(digest: str, metric: float, params: int, latency_ms: float | None) -> Candidate:
    return Candidate(0, digest, metric, params, latency_ms, "random")


def test_metric_counts_upwards_and_costs_downwards() -> None:
    candidates = [candidate("a", 0.7, 10, 3.0), candidate("b", 0.8, 10, 3.0), candidate("c", 0.6, 5, 9.0),
                  candidate("d", 0.5, 9, 1.0)]
    assert [c.digest for c in pareto_front(candidates)] == ["b", "c", "d"]


def test_without_any_latency_two_objectives_are_left() -> None:
    candidates = [candidate("a", 0.7, 10, None), candidate("b", 0.8, 10, None), candidate("c", 0.6, 5, None)]
    assert [c.digest for c in pareto_front(candidates)] == ["b", "c"]
