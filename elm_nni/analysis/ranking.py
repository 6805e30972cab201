"""How well one score ranks what another one ranks: Kendall's and Spearman's coefficient, each with an interval.

Shape suffixes: N pairs, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_PAIRS = 3
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Coefficient:
    """A rank correlation in [-1, 1] with the ends of its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RankCorrelation:
    """Both coefficients of N pairs; ``None`` with a ``reason`` where they are not defined.

    Attributes:
        n: number of pairs.
        resamples: how many resamples the intervals rest on.
    """

    n: int
    kendall: Coefficient | None
    spearman: Coefficient | None
    resamples: int = 0
    reason: str | None = None


def rank_correlation(
    a: Sequence[float] | NDArray[np.float64],
    b: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    resamples: int = 2000,
) -> RankCorrelation:
    """Kendall's tau-b and Spearman's rho of paired scores, with 95 % percentile bootstrap intervals over the pairs.

    Ties get the correction of tau-b and the mean of their ranks. Fewer than three pairs, or a side whose values are all
    equal, have no coefficients: both are ``None`` and ``reason`` says why. A resample in which a side is constant
    has none either and is left out; ``resamples`` counts the others. With few pairs the intervals are too narrow: three
    pairs in perfect order get [1, 1].

    Args:
        a: (N,) finite scores.
        b: (N,) finite scores of the same things in the same order.
        seed: of the resamples.
        resamples: how many are drawn, at least 1.

    Raises:
        ValueError: not two equally long rows of finite numbers, or no resamples.

    Source: M. G. Kendall, "The treatment of ties in ranking problems" (1945); B. Efron, "Bootstrap methods" (1979).

    Example:
        >>> rank_correlation([1, 2, 3, 4], [1, 2, 4, 3], seed=0).kendall.value  # doctest: +ELLIPSIS
        0.666...
    """
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.ndim != 1 or a_N.shape != b_N.shape:
        raise ValueError(f"a has shape {a_N.shape}, b {b_N.shape}: must be equally long rows")
    if not (np.isfinite(a_N).all() and np.isfinite(b_N).all()):
        raise ValueError("a or b holds NaN or infinity: must be finite")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    reason = _undefined(a_N, b_N)
    if reason:
        return RankCorrelation(len(a_N), None, None, reason=reason)
    drawn_RN = np.random.default_rng(seed).integers(len(a_N), size=(resamples, len(a_N)))
    a_RN, b_RN = a_N[drawn_RN], b_N[drawn_RN]
    defined_R = np.logical_and(np.ptp(a_RN, axis=1) > 0, np.ptp(b_RN, axis=1) > 0)
    a_RN, b_RN = a_RN[defined_R], b_RN[defined_R]
    taus_R = np.array([_kendall(x_N, y_N) for x_N, y_N in zip(a_RN, b_RN)])
    return RankCorrelation(
        n=len(a_N),
        kendall=_coefficient(_kendall(a_N, b_N), taus_R),
        spearman=_coefficient(float(_spearman(a_N[None], b_N[None])[0]), _spearman(a_RN, b_RN)),
        resamples=len(a_RN),
    )


def _undefined(a_N: NDArray[np.float64], b_N: NDArray[np.float64]) -> str | None:
    if len(a_N) < MIN_PAIRS:
        return f"{len(a_N)} pair{'' if len(a_N) == 1 else 's'}; at least {MIN_PAIRS} are needed"
    constant = [name for name, side_N in (("first", a_N), ("second", b_N)) if np.ptp(side_N) == 0]
    return f"all values of the {' and the '.join(constant)} side are equal, so there is no order" if constant else None


def _kendall(a_N: NDArray[np.float64], b_N: NDArray[np.float64]) -> float:
    # the p-value is not used; its exact form would take most of the time
    return float(stats.kendalltau(a_N, b_N, method="asymptotic").statistic)


def _spearman(a_RN: NDArray[np.float64], b_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = [stats.rankdata(side_RN, axis=1) for side_RN in (a_RN, b_RN)]
    a_RN, b_RN = (rank_RN - rank_RN.mean(axis=1, keepdims=True) for rank_RN in ranks)
    scale_R = np.sqrt((a_RN**2).sum(axis=1) * (b_RN**2).sum(axis=1))
    return np.asarray((a_RN * b_RN).sum(axis=1) / scale_R)


def _coefficient(value: float, drawn_R: NDArray[np.float64]) -> Coefficient:
    if not len(drawn_R):
        return Coefficient(value, -1.0, 1.0)
    low, high = np.percentile(drawn_R, _PERCENTILES)
    return Coefficient(value, float(low), float(high))
