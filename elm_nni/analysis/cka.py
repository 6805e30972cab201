"""Similarity of attention heads by unbiased linear CKA, streamed over batches.

CKA (Kornblith et al., 2019, arXiv 1905.00414) is the ratio HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). With the usual
biased HSIC it is close to 1 for unrelated features when there are few samples, so HSIC here is the U-statistic of
Song et al. (2012, "Feature Selection via Dependence Maximization", theorem 2): with K and L the Gram matrices whose
diagonals are set to zero,

    n (n - 3) HSIC = tr(K L) + (1'K1) (1'L1) / ((n - 1) (n - 2)) - 2 (1'KL1) / (n - 2).

For linear kernels each of these is a sum over samples of products of features and of squared norms, so the exact
statistic over all tokens streams without a Gram matrix.

Shape suffixes: B batch, T tokens, H heads, K head_dim, C = D = H * K; N samples, P and Q features.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Mode = Literal["tokens", "sequences"]

# A feature whose standard deviation is below this share of its size is constant up to float64 rounding.
_CONSTANT = 1e-12
# The U-statistic divides by n - 3.
_MIN_SAMPLES = 4


def linear_cka(x_NP: Tensor, y_NQ: Tensor, debiased: bool = True) -> float:
    """Linear CKA between two sets of features of the same samples.

    Args:
        x_NP: (N, P); computed in float64.
        y_NQ: (N, Q).
        debiased: the unbiased HSIC (may be slightly negative, needs four samples) or the biased one (needs two).

    Returns:
        At most 1 up to rounding for the biased form; 0 with a logged warning where either side is constant.

    Raises:
        ValueError: not two matrices of as many rows, or too few samples.

    Example::

        linear_cka(x_NP, x_NP @ rotation_PP)   # 1.0
    """
    if x_NP.ndim != 2 or y_NQ.ndim != 2 or len(x_NP) != len(y_NQ):
        raise ValueError(f"x {tuple(x_NP.shape)}, y {tuple(y_NQ.shape)}: must be matrices with as many rows")
    num_samples, least = len(x_NP), _MIN_SAMPLES if debiased else 2
    if num_samples < least:
        raise ValueError(f"{num_samples} samples: at least {least} are needed with debiased={debiased}")
    sides = [side.detach().to(torch.float64) for side in (x_NP, y_NQ)]
    size_2 = torch.stack([side.square().sum(1).mean() for side in sides])
    sides = [side - side.mean(0) for side in sides]
    hsic = _unbiased_hsic_of_features if debiased else _biased_hsic_of_features
    hsic_22 = torch.stack([torch.stack([hsic(a, b) for b in sides]) for a in sides])
    return float(_ratio(hsic_22, size_2)[0, 1])


class HeadSimilarity:
    """Unbiased linear CKA between all pairs of a layer's heads, accumulated over batches in float64.

    ``tokens``: every valid token is a sample. One matrix of products of the concatenated heads, its sums and the
    sums of squared norms give the exact U-statistic over all tokens of all batches.
    ``sequences``: every sequence is a sample, its tokens flattened into one row with padding set to zero; HSIC is
    computed in each batch and averaged over batches before the ratio. A batch of fewer than four sequences
    is left out with a warning.

    Example::

        similarity = HeadSimilarity(12, 44)
        similarity.update(context_BTC, mask_BT).matrix()   # (12, 12)
    """

    def __init__(self, num_heads: int, head_dim: int, mode: Mode = "tokens") -> None:
        if num_heads < 1:
            raise ValueError(f"num_heads={num_heads}: must be at least 1")
        if head_dim < 1:
            raise ValueError(f"head_dim={head_dim}: must be at least 1")
        if mode not in ("tokens", "sequences"):
            raise ValueError(f"mode={mode!r}: must be 'tokens' or 'sequences'")
        self.num_heads, self.head_dim, self.mode = num_heads, head_dim, mode
        self._statistics: _TokenStatistics | _SequenceStatistics = (
            _TokenStatistics(num_heads, head_dim) if mode == "tokens" else _SequenceStatistics(num_heads, head_dim)
        )

    @torch.no_grad()
    def update(self, context_BTC: Tensor, mask_BT: Tensor | None = None) -> HeadSimilarity:
        """Add a batch of the heads' contexts (softmax(QK)V, before the output projection) and return the object.

        Args:
            context_BTC: (B, T, H * K) in head order, dropout off.
            mask_BT: true or 1 for valid tokens; values at padding are never read.

        Raises:
            ValueError: wrong shapes.
        """
        if context_BTC.ndim != 3 or context_BTC.shape[2] != self.num_heads * self.head_dim:
            expected = f"(B, T, {self.num_heads * self.head_dim})"
            raise ValueError(f"context has shape {tuple(context_BTC.shape)}: must be {expected}")
        if mask_BT is None:
            mask_BT = torch.ones(context_BTC.shape[:2], dtype=torch.bool, device=context_BTC.device)
        if mask_BT.shape != context_BTC.shape[:2]:
            raise ValueError(f"mask has shape {tuple(mask_BT.shape)}: must be {tuple(context_BTC.shape[:2])}")
        keep_BT1 = mask_BT.to(device=context_BTC.device, dtype=torch.bool).unsqueeze(-1)
        self._statistics.update(context_BTC.detach().to(torch.float64), keep_BT1)
        return self

    def merge(self, other: HeadSimilarity) -> HeadSimilarity:
        """Add what another object has seen and return this one.

        Raises:
            ValueError: the two differ in heads, head_dim or mode.
        """
        own = (self.num_heads, self.head_dim, self.mode)
        if (other.num_heads, other.head_dim, other.mode) != own:
            raise ValueError(f"other is {(other.num_heads, other.head_dim, other.mode)}: must be {own}")
        self._statistics.merge(other._statistics)  # type: ignore[arg-type]  # same mode, so the same class
        return self

    @property
    def count(self) -> int:
        """Number of samples seen: valid tokens, or batches that entered the average."""
        return int(self._statistics.count)

    def matrix(self) -> Tensor:
        """CKA of all pairs, (H, H) float64, symmetric; a constant head has 0 everywhere, with a logged warning.

        Raises:
            ValueError: fewer than four tokens, or no batch of at least four sequences, was seen.
        """
        return _ratio(*self._statistics.hsic_and_size())


def redundant_heads(cka_HH: Tensor, eta: float, min_heads: int = 2) -> list[int]:
    """Heads to give up because an earlier head that stays says the same, in ascending order.

    Head j is redundant if CKA(i, j) > eta for some i < j that is itself kept; it counts once, however many
    heads it resembles. Heads are judged from first to last and judging stops when ``min_heads`` would be left.
    (arXiv 2510.27037, pruning of heads.)

    Args:
        cka_HH: symmetric (H, H); only entries above the diagonal are read.
        eta: similarity above which two heads are the same, in [0, 1].
        min_heads: how many heads stay at least, from 1.

    Raises:
        ValueError: not square, NaN, ``eta`` or ``min_heads`` out of range.

    Example::

        redundant_heads(torch.tensor([[1.0, 0.95], [0.95, 1.0]]), eta=0.9, min_heads=1)   # [1]
    """
    if cka_HH.ndim != 2 or cka_HH.shape[0] != cka_HH.shape[1]:
        raise ValueError(f"cka has shape {tuple(cka_HH.shape)}: must be square")
    if torch.isnan(cka_HH).any():
        raise ValueError("cka holds NaN: must be numbers")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: must be in [0, 1]")
    if min_heads < 1:
        raise ValueError(f"min_heads={min_heads}: must be at least 1")
    similar = (cka_HH > eta).tolist()
    num_heads = len(similar)
    kept: list[int] = []
    redundant: list[int] = []
    for head in range(num_heads):
        if num_heads - len(redundant) > min_heads and any(similar[earlier][head] for earlier in kept):
            redundant.append(head)
        else:
            kept.append(head)
    return redundant


class _TokenStatistics:
    """Sums over tokens of everything that the U-statistic needs, of features shifted by the first batch's mean.

    HSIC does not change under a shift; shifting keeps the differences of large sums accurate.
    With x the D = H * K features of a token and a its H squared head norms:
    ``sum_D`` = sum x, ``product_DD`` = sum x x', ``norm_H`` = sum a, ``norm_HH`` = sum a a', ``cross_DH`` = sum x a'.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        self.num_heads, self.head_dim = num_heads, head_dim
        size = num_heads * head_dim
        self.count = 0
        self.shift_D = torch.zeros(size, dtype=torch.float64)
        self.sum_D = torch.zeros(size, dtype=torch.float64)
        self.product_DD = torch.zeros(size, size, dtype=torch.float64)
        self.norm_H = torch.zeros(num_heads, dtype=torch.float64)
        self.norm_HH = torch.zeros(num_heads, num_heads, dtype=torch.float64)
        self.cross_DH = torch.zeros(size, num_heads, dtype=torch.float64)

    def update(self, context_BTC: Tensor, keep_BT1: Tensor) -> None:
        x_ND = context_BTC[keep_BT1[..., 0]]
        if len(x_ND) == 0:
            return
        if self.count == 0:
            self._move(x_ND.device)
            self.shift_D = x_ND.mean(0)
        x_ND = x_ND.to(self.shift_D.device) - self.shift_D
        norm_NH = x_ND.unflatten(1, (self.num_heads, self.head_dim)).square().sum(-1)
        self._add(len(x_ND), x_ND.sum(0), x_ND.T @ x_ND, norm_NH.sum(0), norm_NH.T @ norm_NH, x_ND.T @ norm_NH)

    def merge(self, other: _TokenStatistics) -> None:
        if other.count == 0:
            return
        if self.count == 0:
            self._move(other.shift_D.device)
            self.shift_D = other.shift_D.clone()
        self._add(other.count, *other._sums_at(self.shift_D))

    def hsic_and_size(self) -> tuple[Tensor, Tensor]:
        if self.count < _MIN_SAMPLES:
            raise ValueError(f"CKA of {self.count} tokens: at least {_MIN_SAMPLES} are needed")
        heads = (self.num_heads, self.head_dim)
        # one column a head: its own part of the sum, zero elsewhere
        sum_DH = torch.block_diag(*self.sum_D.view(heads)).T
        trace_HH = _block_sums(self.product_DD.square(), heads) - self.norm_HH
        total_H = self.sum_D.view(heads).square().sum(1) - self.norm_H
        # entry (g, h): sum over tokens of (x_g . sum_g) a_h
        mixed_HH = sum_DH.T @ self.cross_DH
        rows_HH = sum_DH.T @ self.product_DD @ sum_DH - mixed_HH - mixed_HH.T + self.norm_HH
        hsic_HH = _combine(self.count, trace_HH, torch.outer(total_H, total_H), rows_HH)
        shift_HK, mean_HK = self.shift_D.view(heads), self.sum_D.view(heads) / self.count
        size_H = self.norm_H / self.count + 2 * (shift_HK * mean_HK).sum(1) + shift_HK.square().sum(1)
        return hsic_HH, size_H

    def _sums_at(self, shift_D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The sums of the same tokens had they been shifted by ``shift_D``: y = x + d, b = a + 2 d.x + |d|^2."""
        heads = (self.num_heads, self.head_dim)
        n, device = self.count, shift_D.device
        d_D = self.shift_D.to(device) - shift_D
        sum_D, product_DD, norm_H, norm_HH, cross_DH = (
            part.to(device) for part in (self.sum_D, self.product_DD, self.norm_H, self.norm_HH, self.cross_DH)
        )
        d_DH = torch.block_diag(*d_D.view(heads)).T
        square_H = d_D.view(heads).square().sum(1)
        # linear_H = sum of 2 d.x, so b = a + (2 d.x) + |d|^2 term by term
        linear_H = 2 * d_DH.T @ sum_D
        product_with_linear_DH = 2 * product_DD @ d_DH
        new_norm_H = norm_H + linear_H + n * square_H
        a_linear_HH = 2 * cross_DH.T @ d_DH
        new_norm_HH = (
            norm_HH
            + a_linear_HH
            + a_linear_HH.T
            + 2 * d_DH.T @ product_with_linear_DH
            + torch.outer(norm_H + linear_H, square_H)
            + torch.outer(square_H, norm_H + linear_H)
            + n * torch.outer(square_H, square_H)
        )
        new_cross_DH = cross_DH + product_with_linear_DH + torch.outer(sum_D, square_H) + torch.outer(d_D, new_norm_H)
        new_product_DD = product_DD + torch.outer(d_D, sum_D) + torch.outer(sum_D, d_D) + n * torch.outer(d_D, d_D)
        return sum_D + n * d_D, new_product_DD, new_norm_H, new_norm_HH, new_cross_DH

    def _add(
        self, count: int, sum_D: Tensor, product_DD: Tensor, norm_H: Tensor, norm_HH: Tensor, cross_DH: Tensor
    ) -> None:
        self.count += count
        self.sum_D = self.sum_D + sum_D
        self.product_DD = self.product_DD + product_DD
        self.norm_H = self.norm_H + norm_H
        self.norm_HH = self.norm_HH + norm_HH
        self.cross_DH = self.cross_DH + cross_DH

    def _move(self, device: torch.device) -> None:
        for name in ("sum_D", "product_DD", "norm_H", "norm_HH", "cross_DH"):
            setattr(self, name, getattr(self, name).to(device))


class _SequenceStatistics:
    """Sums over batches of HSIC between heads, each head's sequence being one flattened row."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        self.num_heads, self.head_dim = num_heads, head_dim
        self.count = 0
        self.hsic_HH = torch.zeros(num_heads, num_heads, dtype=torch.float64)
        self.size_H = torch.zeros(num_heads, dtype=torch.float64)

    def update(self, context_BTC: Tensor, keep_BT1: Tensor) -> None:
        n = len(context_BTC)
        if n < _MIN_SAMPLES:
            logger.warning("A batch of %d sequences is left out of CKA: at least %d are needed", n, _MIN_SAMPLES)
            return
        rows_HBP = (
            context_BTC.masked_fill(~keep_BT1, 0)
            .unflatten(2, (self.num_heads, self.head_dim))
            .permute(2, 0, 1, 3)
            .flatten(2)
        )
        size_H = rows_HBP.square().sum(2).mean(1)
        rows_HBP = rows_HBP - rows_HBP.mean(1, keepdim=True)
        gram_HBB = rows_HBP @ rows_HBP.mT
        gram_HBB.diagonal(dim1=1, dim2=2).zero_()
        trace_HH = gram_HBB.flatten(1) @ gram_HBB.flatten(1).T
        row_HB = gram_HBB.sum(2)
        total_H = row_HB.sum(1)
        hsic_HH = _combine(n, trace_HH, torch.outer(total_H, total_H), row_HB @ row_HB.T)
        self._add(1, hsic_HH, size_H)

    def merge(self, other: _SequenceStatistics) -> None:
        self._add(other.count, other.hsic_HH, other.size_H)

    def hsic_and_size(self) -> tuple[Tensor, Tensor]:
        if self.count == 0:
            raise ValueError(f"CKA of 0 batches: at least one of {_MIN_SAMPLES} sequences is needed")
        return self.hsic_HH / self.count, self.size_H / self.count

    def _add(self, count: int, hsic_HH: Tensor, size_H: Tensor) -> None:
        self.count += count
        self.hsic_HH = self.hsic_HH.to(hsic_HH.device) + hsic_HH
        self.size_H = self.size_H.to(size_H.device) + size_H


def _combine(n: int, trace: Tensor, totals: Tensor, rows: Tensor) -> Tensor:
    """The U-statistic from tr(KL), (1'K1)(1'L1) and 1'KL1 of Gram matrices with zero diagonals."""
    return (trace + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def _unbiased_hsic_of_features(x_NP: Tensor, y_NQ: Tensor) -> Tensor:
    n = len(x_NP)
    a_N, b_N = x_NP.square().sum(1), y_NQ.square().sum(1)
    trace = (x_NP.T @ y_NQ).square().sum() - a_N @ b_N
    row_x_N, row_y_N = x_NP @ x_NP.sum(0) - a_N, y_NQ @ y_NQ.sum(0) - b_N
    return _combine(n, trace, row_x_N.sum() * row_y_N.sum(), row_x_N @ row_y_N)


def _biased_hsic_of_features(x_NP: Tensor, y_NQ: Tensor) -> Tensor:
    return (x_NP.T @ y_NQ).square().sum() / (len(x_NP) - 1) ** 2


def _block_sums(matrix_DD: Tensor, heads: tuple[int, int]) -> Tensor:
    num_heads, head_dim = heads
    return matrix_DD.view(num_heads, head_dim, num_heads, head_dim).sum((1, 3))


def _ratio(hsic_HH: Tensor, size_H: Tensor) -> Tensor:
    """CKA from HSIC; rounding is judged against ``size_H``, the mean squared norm of the uncentred features."""
    own_H = hsic_HH.diagonal()
    constant_H = ~(own_H > _CONSTANT**4 * size_H.square())
    if constant_H.any():
        constant = constant_H.nonzero().flatten().tolist()
        logger.warning("CKA is set to 0 where the features are constant or the samples too few: %s", constant)
    scale_H = own_H.masked_fill(constant_H, math.inf).sqrt()
    return hsic_HH / torch.outer(scale_H, scale_H)
