"""Rows that hold several documents, for models that do not know of such rows.

Shape suffixes: B batch, T tokens, N documents, L tokens of the longest document.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def document_positions(document_ids_BT: Tensor) -> Tensor:
    """Position of each token in its run of equal document numbers, from 0; (B, T).

    Example::

        document_positions(torch.tensor([[1, 1, 2, 2, 2, 0]]))   # [[0, 1, 0, 1, 2, 0]]
    """
    steps_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    starts_BT = torch.where(_is_start(document_ids_BT), steps_T, 0).cummax(1).values
    return steps_T - starts_BT


def block_diagonal_mask(document_ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask (B, 1, T, T): 0 inside a document, the lowest number of ``dtype`` across documents.

    Padding (document 0) sees only padding, so no row of the mask is empty and no output is NaN.
    """
    same_BTT = document_ids_BT.unsqueeze(2) == document_ids_BT.unsqueeze(1)
    mask_BTT = torch.zeros(same_BTT.shape, dtype=dtype, device=document_ids_BT.device)
    return mask_BTT.masked_fill(~same_BTT, torch.finfo(dtype).min).unsqueeze(1)


@dataclass(frozen=True)
class Unpacked:
    """Where each token of a packed batch goes when every document gets a row of its own.

    Attributes:
        source_NL: flat index into B * T of each token; 0 where ``mask_NL`` is false.
        mask_NL: valid tokens.
    """

    source_NL: Tensor
    mask_NL: Tensor

    @classmethod
    def of(cls, document_ids_BT: Tensor) -> Unpacked:
        """Plan for a batch with at least one document."""
        flat = document_ids_BT.flatten()
        start = (_is_start(document_ids_BT) & (document_ids_BT != 0)).flatten()
        lengths_N = torch.bincount((start.cumsum(0) - 1)[flat != 0])
        steps_L = torch.arange(int(lengths_N.max()), device=flat.device)
        mask_NL = steps_L < lengths_N.unsqueeze(1)
        source_NL = start.nonzero() + steps_L
        return cls(source_NL.masked_fill(~mask_NL, 0), mask_NL)

    def split(self, x_BT: Tensor, fill: int) -> Tensor:
        """(B, T) -> (N, L), with ``fill`` after the end of each document."""
        return x_BT.flatten()[self.source_NL].masked_fill(~self.mask_NL, fill)

    def join(self, x_NLD: Tensor, shape_BT: tuple[int, int]) -> Tensor:
        """(N, L, D) -> (B, T, D), zero at padding."""
        joined = x_NLD.new_zeros(shape_BT[0] * shape_BT[1], x_NLD.shape[-1])
        joined[self.source_NL[self.mask_NL]] = x_NLD[self.mask_NL]
        return joined.unflatten(0, shape_BT)


def _is_start(document_ids_BT: Tensor) -> Tensor:
    start_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    start_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    return start_BT
