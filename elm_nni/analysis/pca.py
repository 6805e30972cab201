"""How many principal components a layer's features need.

Shape suffixes: F features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pca_rank(covariance_FF: Tensor, threshold: float = 0.99) -> int:
    """Smallest k whose k largest eigenvalues reach ``threshold`` of their total.

    The PCA score of a candidate block in elastic architecture search ("Elastic Architecture Search for Efficient
    Language Models", arXiv 2510.27037, growth of the feed-forward widths). A covariance of zero needs no component:
    the result is 0. The scale of the covariance and a rotation of the features do not matter.

    Args:
        covariance_FF: symmetric positive semi-definite, of any floating type; decomposed in float64.
        threshold: share of the variance to keep, in (0, 1].

    Returns:
        A number from 0 to F.

    Raises:
        ValueError: not a square matrix, not finite, or ``threshold`` outside (0, 1].

    Example::

        pca_rank(torch.diag(torch.tensor([90.0, 9.5, 0.5])))   # 2
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be in (0, 1]")
    if covariance_FF.ndim != 2 or covariance_FF.shape[0] != covariance_FF.shape[1]:
        raise ValueError(f"covariance has shape {tuple(covariance_FF.shape)}: must be square")
    if not torch.isfinite(covariance_FF).all():
        raise ValueError("covariance holds NaN or infinity: the features must be finite")
    # rounding leaves eigenvalues of a singular matrix a little below zero
    eigenvalues_F = torch.linalg.eigvalsh(covariance_FF.detach().to(torch.float64)).flip(0).clamp(min=0)
    cumulative_F = eigenvalues_F.cumsum(0)
    total = cumulative_F[-1]
    if total == 0:
        return 0
    return int((cumulative_F < threshold * total).sum()) + 1
