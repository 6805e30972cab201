"""Pareto fronts: the rows of a table of costs that no other row beats, and the volume that they dominate.

Shape suffixes: N rows, M costs, F rows of the front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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


def hypervolume(costs_NM: NDArray[np.float64], reference_M: NDArray[np.float64]) -> float:
    """Volume between the rows and a reference point: of all that some row dominates and that lies below the reference.

    Exact for any number of costs, by slices along one cost after another. Every column is minimised. A row that is not
    below the reference in every cost adds nothing, nor does one with a NaN; no rows have volume 0. Time grows as N to
    the power M - 1: meant for fronts of some hundred rows and two to four costs.

    Args:
        costs_NM: N candidates, M costs, of one scale if the volume is to weigh them alike.
        reference_M: the worst cost that counts, for each column.

    Raises:
        ValueError: the shapes do not fit, the reference is not finite, or a cost is -inf.

    Source: Zitzler and Thiele, "Multiobjective evolutionary algorithms: a comparative case study" (1999), the measure;
    While et al., "A faster algorithm for calculating hypervolume" (2006), the slices.

    Example:
        >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0]))
        3.0
    """
    if costs_NM.ndim != 2 or not costs_NM.shape[1] or reference_M.shape != costs_NM.shape[1:]:
        shapes = f"costs_NM is of shape {costs_NM.shape} and reference_M of {reference_M.shape}"
        raise ValueError(f"{shapes}; they must be (N, M) and (M,)")
    if not np.isfinite(reference_M).all() or np.isneginf(costs_NM).any():
        raise ValueError(f"reference_M is {reference_M.tolist()}; it must be finite, and no cost may be -inf")
    below_N = (costs_NM < reference_M).all(axis=1)
    return _volume(costs_NM[below_N], reference_M)


def _volume(costs_NM: NDArray[np.float64], reference_M: NDArray[np.float64]) -> float:
    """Volume of rows that are all below the reference."""
    if not len(costs_NM):
        return 0.0
    if len(reference_M) == 1:
        return float(reference_M[0] - costs_NM.min())
    if len(reference_M) == 2:
        first_N, second_N = costs_NM[np.argsort(costs_NM[:, 0])].T
        widths_N = np.diff(first_N, append=reference_M[0])
        return float(widths_N @ (reference_M[1] - np.minimum.accumulate(second_N)))
    front_FM = costs_NM[non_dominated(costs_NM)]
    edges = np.unique(front_FM[:, -1])
    depths = np.diff(edges, append=reference_M[-1])
    slices = [_volume(front_FM[front_FM[:, -1] <= edge, :-1], reference_M[:-1]) for edge in edges]
    return float(depths @ np.array(slices))
