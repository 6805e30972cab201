"""How alike the outputs of several networks are on the same inputs: mean cosine similarity over tokens.

Shape suffixes: B batch, T tokens, D hidden, C candidates, N valid tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def candidate_similarity(outputs: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """Mean cosine similarity over valid tokens between each pair of outputs; computed in float64.

    A token whose output is all zeros counts as 0 with everything, itself included; NaN at a valid token spreads to the
    entries of its output.

    Args:
        outputs: C tensors (B, T, D) of the same tokens.
        mask_BT: true or 1 for valid tokens; values at padding are never read.

    Returns:
        (C, C), symmetric, in [-1, 1] up to rounding.

    Raises:
        ValueError: no outputs, shapes that differ, or no valid token.

    Source: the measure of block diversity of arXiv 2510.27037, figure 6.

    Example:
        >>> ones = torch.ones(1, 2, 3)
        >>> candidate_similarity([ones, -2 * ones], torch.ones(1, 2)).tolist()  # doctest: +SKIP
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    shapes = {tuple(one.shape) for one in outputs}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3:
        found = [tuple(one.shape) for one in outputs]
        raise ValueError(f"outputs have shapes {found}: must be one or more of the same (B, T, D)")
    if mask_BT.shape != shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask_BT.shape)}: must be {shape[:2]}")
    keep_BT = mask_BT.bool()
    if not keep_BT.any():
        raise ValueError("mask has no valid token: must have at least one")
    units_CND = torch.stack([functional.normalize(one[keep_BT].double(), dim=-1) for one in outputs])
    return torch.einsum("cnd,end->ce", units_CND, units_CND) / units_CND.shape[1]


def mean_of_pairs(matrix_CC: Tensor) -> float:
    """Mean of the entries above the diagonal.

    Raises:
        ValueError: not square, or fewer than two rows.

    Example:
        >>> mean_of_pairs(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        0.5
    """
    if matrix_CC.ndim != 2 or matrix_CC.shape[0] != matrix_CC.shape[1] or len(matrix_CC) < 2:
        raise ValueError(f"matrix has shape {tuple(matrix_CC.shape)}: must be square with at least two rows")
    rows, columns = torch.triu_indices(len(matrix_CC), len(matrix_CC), offset=1)
    return float(matrix_CC[rows, columns].mean())
