"""Pareto fronts and hypervolumes against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from elm_nni.analysis.pareto import hypervolume, non_dominated


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


def inclusion_exclusion(costs: np.ndarray, reference: np.ndarray) -> float:
    """Volume of the union of the rows' boxes: boxes of one row, less those common to two, plus those to three..."""
    total = 0.0
    for size in range(1, len(costs) + 1):
        for rows in combinations(costs, size):
            sides = np.maximum(reference - np.max(rows, axis=0), 0)
            total -= (-1) ** size * float(np.prod(sides))
    return total


@pytest.mark.parametrize("num_costs", [1, 2, 3, 4])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 9])
def test_the_hypervolume_of_few_rows_equals_inclusion_and_exclusion_of_their_boxes(
    num_costs: int, num_rows: int
) -> None:
    rng = np.random.default_rng(num_rows)
    reference = np.full(num_costs, 0.9)
    ties = rng.integers(0, 5, size=(num_rows, num_costs)) / 4
    for costs in (rng.random((num_rows, num_costs)), ties, ties - 3):
        assert hypervolume(costs, reference) == pytest.approx(inclusion_exclusion(costs, reference), rel=1e-12)


@pytest.mark.parametrize("num_costs", [1, 2, 3, 4])
def test_the_hypervolume_of_many_rows_equals_optunas(num_costs: int) -> None:
    rng = np.random.default_rng(num_costs)
    costs = rng.random((60, num_costs))
    # on a sphere every row is on the front
    for rows in (costs, costs / np.linalg.norm(costs, axis=1, keepdims=True), np.round(costs, 1)):
        reference = np.full(num_costs, 1.1)
        assert hypervolume(rows, reference) == pytest.approx(compute_hypervolume(rows, reference), rel=1e-9)


def test_the_hypervolume_is_the_part_of_random_points_that_a_row_dominates() -> None:
    rng = np.random.default_rng(0)
    costs, reference, num_points = rng.random((40, 3)), np.array([1.0, 0.9, 1.2]), 200_000
    points = rng.random((num_points, 3)) * reference
    dominated = np.zeros(num_points, dtype=bool)
    for row in costs:
        dominated |= (row <= points).all(axis=1)
    share = dominated.mean()
    deviation = np.sqrt(share * (1 - share) / num_points)
    assert hypervolume(costs, reference) / np.prod(reference) == pytest.approx(share, abs=4 * deviation)


def test_rows_that_are_not_below_the_reference_have_no_hypervolume() -> None:
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.zeros((0, 2)), reference) == 0
    assert hypervolume(np.array([[0.0, 1.0], [2.0, -5.0], [np.nan, 0.0], [0.0, np.inf]]), reference) == 0
    assert hypervolume(np.array([[0.5, 0.5], [0.0, 1.0], [0.5, np.nan]]), reference) == 0.25


@pytest.mark.parametrize(
    ("costs", "reference", "message"),
    [
        (np.zeros(3), np.zeros(3), r"of shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros(3), r"they must be \(N, M\) and \(M,\)"),
        (np.zeros((3, 0)), np.zeros(0), r"of shape \(3, 0\)"),
        (np.zeros((3, 2)), np.array([1.0, np.inf]), "it must be finite"),
        (np.array([[-np.inf, 0.0]]), np.ones(2), "no cost may be -inf"),
    ],
)
def test_a_hypervolume_that_is_not_defined_is_refused(costs: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hypervolume(costs, reference)
