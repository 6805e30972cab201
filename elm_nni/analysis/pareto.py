"""Pareto fronts: the rows of a table of costs that no other row beats.

Shape suffixes: N rows, M costs.
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
