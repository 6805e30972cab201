"""Pareto fronts against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from elm_nni.analysis.pareto import non_dominated


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


def test_wrong_dimensions() -> None:
    with pytest.raises(ValueError, match="1 dimensions"):
        non_dominated(np.zeros(3))
